"""Measures the ops against what one would use instead, on this machine's CPU or GPU.

    python -m benchmarks.ops [--device cpu|cuda] [--threads N] [--repeats N] [--batches N ...] [--output FOLDER]

The table is printed and written to FOLDER (benchmarks/results) as <machine>.md and <machine>.json.

Ours and a rival are timed in turn within one run. On the CPU the process's CPU time counts, so that other load on the
machine matters little. It adds up over threads, also over those that only wait; so one thread is the default. What
needs no gradient runs in inference mode, as `Model.predict` does. Caches are cold, and freed memory stays with the
process, that no call pays for giving back what another one used.

On a GPU a call is captured in a graph ten times over, and a replay's time is divided by ten: what the device needs, the
host's time left out, caches as warm as right behind the layer that wrote the inputs. The rivals there are the official
path (benchmarks/classic.cu) and deformops where it is installed.

An entry gives minimum, median and maximum in ms, the ratio of the medians, and our error relative to the definition in
float64.
"""

from __future__ import annotations

import argparse
import contextlib
import ctypes
import importlib.util
import json
import platform
import re
import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.classic import classic_path
from piip.ops import deform_attn, pyramid_resize, reference
from piip.ops._extension import describe

# name: query grid, value grids, heads, head width, points, batch
ATTENTION = {
    "T<-S 98x98 from 70x70, D 6": ((98, 98), [(70, 70)], 16, 6, 4),
    "S<-T 70x70 from 98x98, D 12": ((70, 70), [(98, 98)], 16, 12, 4),
    "S<-B 70x70 from 42x42, D 12": ((70, 70), [(42, 42)], 16, 12, 4),
    "B<-S 42x42 from 70x70, D 24": ((42, 42), [(70, 70)], 16, 24, 4),
    "L<-B 28x28 from 42x42, D 32": ((28, 28), [(42, 42)], 16, 32, 4),
    "H<-L 32x32 from 64x64, D 40": ((32, 32), [(64, 64)], 16, 40, 4),
    "6B<-H 32x32 from 64x64, D 100": ((32, 32), [(64, 64)], 16, 100, 4),
    "DINO encoder, 4 levels, D 32": (None, [(100, 100), (50, 50), (25, 25), (13, 13)], 8, 32, 4),
    "DINO encoder at 1792 pixels, D 32": (None, [(224, 224), (112, 112), (56, 56), (28, 28)], 8, 32, 4),
}
MEAN, STD = [123.7, 116.3, 103.5], [58.4, 57.1, 57.4]
# A case that takes longer than so many seconds is repeated so many times only.
LONGEST, FEWEST = 20, 3
CALLS = 10  # in a graph
Timed = Callable[[], Any]


def grid_sample_path(
    value: Tensor, shapes: Sequence[tuple[int, int]], ref: Tensor, offsets: Tensor, logits: Tensor
) -> Tensor:
    """What Deformable-DETR, mmcv and the official code run without their CUDA kernel, in the dtype of the inputs."""
    batch, _, heads, width = value.shape
    queries, levels, points = offsets.shape[1], offsets.shape[3], offsets.shape[4]
    size = offsets.new_tensor([(w, h) for h, w in shapes])
    grids = 2 * (ref[:, :, None, :, None] + offsets / size[:, None]) - 1
    weights = logits.softmax(-1).view(batch, queries, heads, levels, points)
    sampled = []
    for level, (part, (h, w)) in enumerate(zip(value.split([h * w for h, w in shapes], 1), shapes)):
        image = part.flatten(2).transpose(1, 2).reshape(batch * heads, width, h, w)
        sampled.append(F.grid_sample(image, grids[:, :, :, level].transpose(1, 2).flatten(0, 1), align_corners=False))
    attention = weights.transpose(1, 2).reshape(batch * heads, 1, queries, levels * points)
    summed = (torch.stack(sampled, -2).flatten(-2) * attention).sum(-1)
    return summed.view(batch, heads * width, queries).transpose(1, 2).contiguous()


class Clock:
    """Times calls in turn: CPU time of the process, or on a GPU the time between two events, caches cold."""

    def __init__(self, device: torch.device, repeats: int) -> None:
        self.device, self.repeats = device, repeats
        self.flush = torch.zeros(8 * 2**20) if device.type == "cpu" else None

    def prepare(self, call: Timed) -> Timed:
        """What is timed in the place of a call, which has run before: on a GPU the replay of a graph of calls."""
        if self.device.type != "cuda":
            return call
        graph = torch.cuda.CUDAGraph()
        # A backward runs on the stream of its forward, so all of it is on one stream that can be captured.
        with torch.cuda.graph(graph, stream=torch.cuda.current_stream()):
            for _ in range(CALLS):
                call()
        return graph.replay

    def once(self, call: Timed) -> float:
        if self.device.type == "cuda":
            begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            begin.record()
            call()
            end.record()
            end.synchronize()
            return begin.elapsed_time(end) / CALLS
        self.flush.add_(1)  # zeros alone would be written past the caches
        start = time.process_time()
        call()
        return (time.process_time() - start) * 1e3

    def compare(self, ours: Timed, rivals: dict[str, Timed]) -> list[dict[str, Any]]:
        calls = {"piip": ours} | rivals
        times: dict[str, list[float]] = {name: [] for name in calls}
        for name, call in calls.items():
            call()
            call()
            calls[name] = self.prepare(call)
            calls[name]()
        begin = time.monotonic()
        for repeat in range(self.repeats):
            if repeat >= FEWEST and time.monotonic() - begin > LONGEST:
                break
            for name, call in calls.items():
                times[name].append(self.once(call))
        median = {name: statistics.median(values) for name, values in times.items()}
        return [
            {
                "rival": name,
                "ours_ms": [min(times["piip"]), median["piip"], max(times["piip"])],
                "rival_ms": [min(times[name]), median[name], max(times[name])],
                "ratio": median[name] / median["piip"],
                "repeats": len(times[name]),
            }
            for name in rivals
        ]


def keep_freed_memory() -> None:
    """Lets glibc's malloc keep what is freed, of tensors up to 32 MB, where its own threshold ends up."""
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt:
        trim_threshold, mmap_threshold = -1, -3  # M_TRIM_THRESHOLD and M_MMAP_THRESHOLD in malloc.h
        mallopt(mmap_threshold, 32 << 20)
        mallopt(trim_threshold, 2**31 - 1)


def attention_inputs(
    name: str, batch: int, device: torch.device
) -> tuple[list[tuple[int, int]], tuple[Tensor, Tensor, Tensor, Tensor]]:
    """Queries look around their own place, as trained networks do: offsets of about three cells."""
    query_grid, shapes, heads, width, points = ATTENTION[name]
    generator = torch.Generator().manual_seed(0)
    refs = []
    for h, w in [query_grid] if query_grid else shapes:
        y, x = torch.meshgrid((torch.arange(h) + 0.5) / h, (torch.arange(w) + 0.5) / w, indexing="ij")
        refs.append(torch.stack([x, y], -1).reshape(1, -1, 1, 2))
    ref = torch.cat(refs, 1)
    queries, levels = ref.shape[1], len(shapes)
    value = torch.randn(batch, sum(h * w for h, w in shapes), heads, width, generator=generator)
    offsets = torch.randn(batch, queries, heads, levels, points, 2, generator=generator) * 3
    logits = torch.randn(batch, queries, heads, levels * points, generator=generator)
    return shapes, tuple(t.to(device) for t in (value, ref, offsets, logits))  # type: ignore[return-value]


def attention_rivals(
    shapes: list[tuple[int, int]], tensors: tuple[Tensor, ...], lowered: tuple[Tensor, ...], what: str
) -> dict[str, Timed]:
    """tensors: in float32, as the official code runs; lowered: in the dtype that ours is measured in."""
    if tensors[0].device.type == "cpu":
        return {"grid_sample path": call_of(grid_sample_path, shapes, tensors, what)}
    sizes = torch.tensor([(w, h) for h, w in shapes], dtype=torch.float32, device=tensors[0].device)
    rivals: dict[str, Timed] = {"official path, float32": call_of(classic_path(sizes), shapes, tensors, what)}
    if importlib.util.find_spec("deformops"):
        call = call_of(deformops_path(shapes, sizes), shapes, lowered, what)
        try:
            call()
            rivals["deformops"] = call
        except Exception as error:  # whatever a rival raises for a shape that it does not take
            print(f"deformops leaves out {what} of {tuple(lowered[0].shape)}: {error}")
    return rivals


def deformops_path(shapes: list[tuple[int, int]], sizes: Tensor) -> Callable[..., Tensor]:
    """deformops 3 with its softmax inside the kernel; locations are formed in float32."""
    from deformops.registry import msda

    grids = torch.tensor(shapes, device=sizes.device)
    areas = grids.prod(1)
    starts = areas.cumsum(0) - areas

    def run(value: Tensor, _: Sequence[tuple[int, int]], ref: Tensor, offsets: Tensor, logits: Tensor) -> Tensor:
        locations = ref[:, :, None, :, None] + offsets.float() / sizes[:, None]
        return msda(value, grids, starts, locations, logits, method="softmax").flatten(2)

    return run


def call_of(op: Callable[..., Tensor], shapes: list[tuple[int, int]], tensors: tuple[Tensor, ...], what: str) -> Timed:
    """what: "forward", "backward" alone, or "forward + backward"."""
    value, ref, offsets, logits = tensors
    if what == "forward":
        return lambda: op(value, shapes, ref, offsets, logits)
    leaves = [t.detach().clone().requires_grad_() for t in (value, offsets, logits)]
    grad = torch.randn(value.shape[0], offsets.shape[1], value.shape[2] * value.shape[3], device=value.device)
    grad = grad.to(value.dtype)

    def forward() -> Tensor:
        return op(leaves[0], shapes, ref, leaves[1], leaves[2])

    if what == "forward + backward":
        return lambda: torch.autograd.grad(forward(), leaves, grad)
    out = forward()
    return lambda: torch.autograd.grad(out, leaves, grad, retain_graph=True)


def bench_attention(clock: Clock, batches: Sequence[int], dtypes: Sequence[torch.dtype]) -> list[dict[str, Any]]:
    rows = []
    for name in ATTENTION:
        # The definition in float64 of many images of a detector's encoder fits no GPU.
        for batch in (batch for batch in batches if batch <= 2 or "<-" in name):
            shapes, tensors = attention_inputs(name, batch, clock.device)
            exact = reference.deform_attn(tensors[0].double(), shapes, *tensors[1:])
            for dtype in dtypes:
                ref = tensors[1]
                lowered = tuple(t if t is ref else t.to(dtype) for t in tensors)
                error = ((deform_attn(lowered[0], shapes, *lowered[1:]).double() - exact).norm() / exact.norm()).item()
                # A graph holds no autograd of its own forward for long: on a GPU the backward is timed alone.
                for what in ("forward", "forward + backward" if clock.device.type == "cpu" else "backward"):
                    with torch.inference_mode() if what == "forward" else contextlib.nullcontext():
                        rivals = attention_rivals(shapes, tensors, lowered, what)
                        results = clock.compare(call_of(deform_attn, shapes, lowered, what), rivals)
                    label = {"op": "deform_attn", "case": name, "batch": batch, "dtype": str(dtype)[6:], "what": what}
                    rows += [label | result | {"error": error} for result in results]
    return rows


@torch.inference_mode()
def bench_resize(clock: Clock, batch: int) -> list[dict[str, Any]]:
    """1568 x 1120 uint8 images (height, width, channel) to three normalised levels, as prediction does."""
    device = clock.device
    factors = [1.0, 1120 / 1568, 672 / 1568]
    image = torch.randint(0, 256, (batch, 1120, 1568, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    planar = image.permute(0, 3, 1, 2).contiguous().to(device)
    image = image.to(device)
    mean, std = (torch.tensor(x, device=device)[:, None, None] for x in (MEAN, STD))
    sizes = [(int(1120 * f), int(1568 * f)) for f in factors]
    rows = []
    for mode, antialias in (("bilinear", False), ("bilinear", True), ("bicubic", False), ("bicubic", True)):
        settings = {"mode": mode, "antialias": antialias}

        def official(settings: dict[str, Any] = settings) -> list[Tensor]:
            source = (planar - mean) / std
            return [source, *(F.interpolate(source, scale_factor=f, **settings) for f in factors[1:])]

        def uint8_first(settings: dict[str, Any] = settings) -> list[Tensor]:
            levels = [planar, *(F.interpolate(planar, size=size, **settings) for size in sizes[1:])]
            return [(level - mean) / std for level in levels]

        def ours(settings: dict[str, Any] = settings) -> list[Tensor]:
            return pyramid_resize(image, scale_factors=factors, mean=MEAN, std=STD, **settings)

        rivals: dict[str, Timed] = {"normalise, F.interpolate": official, "uint8 F.interpolate, normalise": uint8_first}
        if device.type == "cuda":
            del rivals["uint8 F.interpolate, normalise"]  # not implemented there
        if importlib.util.find_spec("cv2") and device.type == "cpu" and not antialias:
            import cv2

            kind = cv2.INTER_LINEAR if mode == "bilinear" else cv2.INTER_CUBIC
            cv2.setNumThreads(torch.get_num_threads())
            array = image[0].numpy()

            def opencv(kind: int = kind, array: Any = array) -> list[Tensor]:
                levels = [array, *(cv2.resize(array, (w, h), interpolation=kind) for h, w in sizes[1:])]
                return [((torch.from_numpy(level).permute(2, 0, 1) - mean) / std).contiguous() for level in levels]

            rivals["OpenCV, normalise"] = opencv
        if mode == "bilinear" and not antialias:
            outputs = [torch.empty(batch, 3, *size, device=device) for size in sizes]
            rivals["zero-fill of the levels"] = lambda outputs=outputs: [torch.zeros_like(level) for level in outputs]
        exact = reference.pyramid_resize(
            planar.double(), sizes, [(f, f) for f in factors], mode, antialias, MEAN, STD, torch.float64, None
        )
        error = max(((a - b).abs().max() / b.abs().max()).item() for a, b in zip(ours(), exact))
        label = {"op": "pyramid_resize", "case": "1568x1120 uint8 to 1, 5/7, 3/7", "batch": batch, "dtype": "float32"}
        what = mode + (" antialias" if antialias else "")
        rows += [label | {"what": what} | result | {"error": error} for result in clock.compare(ours, rivals)]
    return rows


def machine(device: torch.device, threads: int) -> dict[str, Any]:
    names = [line.split(":", 1)[1].strip() for line in _cpuinfo() if line.startswith("model name")]
    return {
        "cpu": names[0] if names else platform.processor(),
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu",
        "threads": threads,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "extension": describe(),
        "absent": [name for name in ("deformops", "cv2") if importlib.util.find_spec(name) is None],
    }


def _cpuinfo() -> list[str]:
    path = Path("/proc/cpuinfo")
    return path.read_text().splitlines() if path.exists() else []


COLUMNS = ("op", "case", "batch", "dtype", "what", "ours ms", "rival", "rival ms", "ratio", "error")


def table(rows: list[dict[str, Any]]) -> list[str]:
    """Markdown lines; times are minimum, median and maximum."""
    lines = [f"| {' | '.join(COLUMNS)} |", "|" + " --- |" * len(COLUMNS)]
    for row in rows:
        ours, rival = (" / ".join(f"{t:.3g}" for t in row[key]) for key in ("ours_ms", "rival_ms"))
        numbers = (f"{row['ratio']:.1f}x", f"{row['error']:.1e}")
        cells = (row["op"], row["case"], row["batch"], row["dtype"], row["what"], ours, row["rival"], rival, *numbers)
        lines.append(f"| {' | '.join(str(cell) for cell in cells)} |")
    return lines


def save(folder: Path, about: dict[str, Any], rows: list[dict[str, Any]]) -> None:
    name = about["device"] if about["device"] != "cpu" else f"{about['cpu']} {about['threads']} threads"
    stem = re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")
    folder.mkdir(parents=True, exist_ok=True)
    facts = [f"- {key}: {value}" for key, value in about.items()]
    text = [f"# Ops on {name}", "", *facts, "", "Times in ms: minimum / median / maximum.", "", *table(rows)]
    (folder / f"{stem}.md").write_text("\n".join(text) + "\n")
    (folder / f"{stem}.json").write_text(json.dumps({"machine": about, "rows": rows}, indent=1) + "\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--repeats", type=int, default=11)
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--only", choices=["deform_attn", "pyramid_resize"])
    parser.add_argument("--output", type=Path, default=Path(__file__).parent / "results")
    arguments = parser.parse_args()
    keep_freed_memory()
    torch.set_num_threads(arguments.threads)
    device = torch.device(arguments.device)
    clock = Clock(device, arguments.repeats)
    about = machine(device, arguments.threads)
    print(json.dumps(about, indent=1))
    rows: list[dict[str, Any]] = []
    with torch.cuda.stream(torch.cuda.Stream()) if device.type == "cuda" else contextlib.nullcontext():
        if arguments.only != "pyramid_resize":
            dtypes = [torch.float32, torch.bfloat16] if device.type == "cuda" else [torch.float32]
            rows += bench_attention(clock, arguments.batches, dtypes)
        if arguments.only != "deform_attn":
            # A few short calls, which vary the most.
            for batch in (1,) if device.type == "cpu" else (1, 8):
                rows += bench_resize(Clock(device, 4 * arguments.repeats), batch)
    print("\n".join(table(rows)))
    save(arguments.output, about, rows)


if __name__ == "__main__":
    main()
