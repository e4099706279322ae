"""Measures whole networks on this machine: inference, its backbone alone, and a training step.

    python -m benchmarks.network [CONFIG ...] [--device cpu|cuda] [--batches N ...] [--repeats N] [--output FOLDER]

Images are square, as large as the finest branch sees them, of random pixels; weights are fresh. Inference is that of
`piip eval` and `piip predict`: bfloat16 where the device has it, in inference mode. A training step is one of the
engine, with ten objects an image. Medians, wall clock, the device waited for. On a GPU the backbone is also captured in
a graph: what its kernels take when nothing waits for launches.
"""

from __future__ import annotations

import argparse
import json
import platform
import re
import statistics
import time
from collections.abc import Callable
from itertools import repeat
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from piip.config.experiment import Config
from piip.config.load import load_config
from piip.data.batch import Batch
from piip.engine.device import choose_device
from piip.engine.optim import build_optimizer, parameter_groups
from piip.engine.step import Step, optimizer_step
from piip.flops.actual import actual_count
from piip.load import build_model
from piip.model import Model
from piip.ops._extension import describe
from piip.precision import compute_dtype, prepared_copy

CONFIGS = [
    "detection/mask_rcnn_vit_b",
    "detection/mask_rcnn_piip_tsb_1568_896_448",
    "detection/mask_rcnn_piip_sbl_1120_672_448",
]
OBJECTS = 10


def milliseconds(call: Callable[[], Any], device: torch.device, repeats: int) -> float:
    """Median over the repeats, after three that do not count."""
    times = []
    for _ in range(repeats + 3):
        _synchronize(device)
        start = time.perf_counter()
        call()
        _synchronize(device)
        times.append((time.perf_counter() - start) * 1e3)
    return statistics.median(times[3:])


def _synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def captured(call: Callable[[], Any]) -> Callable[[], None]:
    """The replay of a graph of a call."""
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        call()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        call()
    return graph.replay


def random_batch(count: int, side: int, classes: int, device: torch.device) -> Batch:
    """Images with boxes and rectangular masks."""
    generator = torch.Generator().manual_seed(0)
    targets = []
    for _ in range(count):
        corners = torch.rand(OBJECTS, 2, 2, generator=generator).sort(1).values * (side - 33)
        boxes = torch.cat([corners[:, 0], corners[:, 1] + 32], 1)
        masks = torch.zeros(OBJECTS, side, side, dtype=torch.uint8)
        for mask, (x0, y0, x1, y1) in zip(masks, boxes.int().tolist()):
            mask[y0:y1, x0:x1] = 1
        labels = torch.randint(classes, (OBJECTS,), generator=generator)
        targets.append({"boxes": boxes, "labels": labels, "masks": masks, "crowd_boxes": torch.zeros(0, 4)})
    images = torch.randint(0, 256, (count, 3, side, side), dtype=torch.uint8, generator=generator)
    sizes = [(side, side)] * count
    batch = Batch(images, sizes, sizes, list(range(count)), targets)
    return batch.to(device)


def training_step(model: Model, config: Config, batch: Batch, device: torch.device) -> Callable[[], None]:
    """A step of the engine, which reads what the step before said."""
    groups = parameter_groups(model.named_parameters(), model.layer_ids(), model.num_layers, config.optim)
    optimizer = build_optimizer(groups, config.optim)
    unread: list[Step] = []

    def read() -> None:
        while unread:
            unread.pop().result()

    def step() -> None:
        taken = optimizer_step(
            model,
            optimizer,
            repeat(batch),
            config=config.optim,
            device=device,
            precision=config.train.precision,
            signal=0,
            before_update=read,
        )
        unread.append(taken)

    return step


def measure(name: str, device: torch.device, counts: list[int], repeats: int) -> list[dict[str, Any]]:
    config = load_config(name, ["train.seed=0"])
    side = config.model.backbone.resolutions[0]
    model = build_model(config.model).to(device)
    ready = prepared_copy(model, compute_dtype(device, config.train.precision))
    macs = actual_count(config.model, (side, side)).total.macs
    rows = []
    for count in counts:
        batch = random_batch(count, side, config.model.head.num_classes, device)
        row = {"config": config.name, "side": side, "gmacs": macs / 1e9, "batch": count}
        row |= inference(ready, batch, device, repeats) | training(model, config, batch, device, repeats)
        rows.append(row)
        print(row, flush=True)
    return rows


@torch.inference_mode()
def inference(model: Model, batch: Batch, device: torch.device, repeats: int) -> dict[str, float]:
    def features() -> list[Tensor]:
        return model.features(batch.images)

    found = {
        "infer_ms": milliseconds(lambda: model.infer(batch.images, batch.image_sizes), device, repeats),
        "features_ms": milliseconds(features, device, repeats),
    }
    if device.type == "cuda":
        found["features_graph_ms"] = milliseconds(captured(features), device, repeats)
    return found


def training(model: Model, config: Config, batch: Batch, device: torch.device, repeats: int) -> dict[str, float]:
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
    found = {"step_ms": milliseconds(training_step(model.train(), config, batch, device), device, repeats)}
    if device.type == "cuda":
        found["step_gib"] = torch.cuda.max_memory_allocated() / 2**30
    return found


def table(rows: list[dict[str, Any]]) -> list[str]:
    names = list(rows[0])
    lines = [f"| {' | '.join(names)} |", "|" + " --- |" * len(names)]
    for row in rows:
        cells = [f"{row[n]:.1f}" if isinstance(row[n], float) else str(row[n]) for n in names]
        lines.append(f"| {' | '.join(cells)} |")
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("configs", nargs="*", default=CONFIGS, metavar="CONFIG")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--repeats", type=int, default=10)
    parser.add_argument("--output", type=Path, default=Path(__file__).parent / "results")
    arguments = parser.parse_args()
    device = choose_device(arguments.device)
    where = torch.cuda.get_device_name(device) if device.type == "cuda" else platform.processor() or "cpu"
    about = {"device": where, "torch": torch.__version__, "extension": describe()}
    rows: list[dict[str, Any]] = []
    for name in arguments.configs:
        rows += measure(name, device, arguments.batches, arguments.repeats)
    stem = "network-" + re.sub(r"[^a-z0-9]+", "-", where.lower()).strip("-")
    text = [f"# Networks on {where}", "", *(f"- {key}: {value}" for key, value in about.items()), "", *table(rows)]
    arguments.output.mkdir(parents=True, exist_ok=True)
    (arguments.output / f"{stem}.md").write_text("\n".join(text) + "\n")
    (arguments.output / f"{stem}.json").write_text(json.dumps({"machine": about, "rows": rows}, indent=1) + "\n")
    print("\n".join(table(rows)))


if __name__ == "__main__":
    main()
