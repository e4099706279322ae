"""Writing a network as a program, and the proof that the program computes the same."""

from __future__ import annotations

import logging
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from piip.config.experiment import Config
from piip.data.images import read_image
from piip.data.transforms.resize import resize_image
from piip.errors import ConfigError, PiipError, first_line
from piip.export import onnx
from piip.export.graph import INPUT, Form, Graph, describe
from piip.export.verify import Difference, compare
from piip.files import check_outputs, replacing_files, to_json, writing
from piip.heads.base import Exported
from piip.load import load_model
from piip.ops.exported import exporting
from piip.precision import prepared_copy

# Images that are made where none are given.
GENERATED = 3
# The largest error that passes, see `Difference`: of float32, and of float16 against float32.
TOLERANCE, HALF_TOLERANCE = 1e-3, 5e-2
# Repeats of a race, behind a first one that does not count, and the seconds after which it ends.
_REPEATS, _RACE = 5, 120

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Report:
    """What was written, and how it compares with the network.

    bytes: of all files. weight_bytes: of the network's parameters and buffers in the dtypes of the file. tried: how
    many images were compared. speed: milliseconds of the network and of the program for a batch, with one thread each.
    """

    files: list[Path]
    bytes: int
    weight_bytes: int
    inputs: str
    differences: list[Difference]
    tolerance: float
    tried: int
    runtime: str
    speed: tuple[float, float] | None


def export(
    config: Config,
    *,
    weights: Path,
    output: Path,
    form: Form,
    file_format: Literal["onnx", "torch"] = "onnx",
    opset: int = 18,
    deform: onnx.Deform = "gridsample",
    half: bool = False,
    images: Sequence[Path] = (),
    tolerance: float | None = None,
    bench: bool = False,
) -> Report:
    """Writes the network of a config with its weights as a program, runs the file, and compares it with the network.

    file_format: onnx, which onnxruntime runs; or torch, a program of `torch.export` that needs `import piip.ops` for
    its ops. opset, deform: of ONNX; see `piip.export.onnx`. half: weights of linear layers and convolutions in float16.
    images: files to compare on, resized to the size of the form; by default some of coloured noise. tolerance: see
    `verify.exceeding`, which the caller asks. bench: times both.
    The file is in place only when it could be run. Raises ConfigError, CheckpointError, DataError; and PiipError where
    the network cannot be written, or the disk is full.
    """
    form.check(config)
    if file_format == "onnx":
        onnx.require()
    check_outputs([output], [weights, *images])
    model = load_model(config, weights, device=torch.device("cpu"), precision="fp32")
    written = prepared_copy(model, torch.float16) if half else model
    graph, network = Graph(written, form).eval(), Graph(model, form).eval()
    batches = _batches(graph, images)
    expected = _outputs(network, batches)
    about = describe(model, config, form)
    with writing(output), replacing_files(_folder(output)) as folder:
        path = folder / output.name
        example = form.example(form.batch or 2, torch.Generator().manual_seed(0))
        if file_format == "onnx":
            _log.info("writing the graph, opset %d, deformable attention by %s", opset, deform)
            onnx.save(onnx.to_onnx(graph, graph.prepare(example), opset=opset, deform=deform, about=about), path)
        else:
            _log.info("writing the program")
            _save_torch(graph, graph.prepare(example), path, about)
        names = [file.name for file in sorted(folder.iterdir())]
        size = sum(file.stat().st_size for file in folder.iterdir())
        run, runtime = _runner(path, file_format)
        _log.info("comparing it with the network in %s", runtime)
        differences: dict[str, Difference] = {}
        for batch, ours in zip(batches, expected):
            with torch.inference_mode():
                theirs = dict(zip(ours.tensors, run(batch)))
            differences = compare(ours, theirs, batched=not form.final, found=differences)
        speed = _race(network, path, file_format, batches[0]) if bench else None
    count = "batch" if form.batch is None else form.batch
    return Report(
        files=[output.with_name(name) for name in names],
        bytes=size,
        weight_bytes=sum(x.nbytes for x in (*written.parameters(), *written.buffers())),
        inputs=f"{INPUT} ({count}, 3, {form.size[0]}, {form.size[1]}) {'uint8 RGB' if form.pixels else 'float32'}",
        differences=list(differences.values()),
        tolerance=tolerance if tolerance is not None else HALF_TOLERANCE if half else TOLERANCE,
        tried=sum(len(batch) for batch in batches),
        runtime=runtime,
        speed=speed,
    )


def _folder(output: Path) -> Path:
    output.parent.mkdir(parents=True, exist_ok=True)
    return output.parent


def _batches(graph: Graph, images: Sequence[Path]) -> list[Tensor]:
    """What the program is tried on, as it takes it: batches of its size, or of one and of two images."""
    form, generator = graph.form, torch.Generator().manual_seed(1)
    pixels = [resize_image(read_image(path), form.size) for path in images]
    if not pixels:
        pixels = list(form.example(max(GENERATED, form.batch or 0), generator))
    together = [1, 2] if form.batch is None else [form.batch]
    batches: list[Tensor] = []
    taken = 0
    while taken < len(pixels) or len(batches) < len(together):
        count = together[len(batches) % len(together)]
        chosen = [pixels[index % len(pixels)] for index in range(taken, taken + count)]
        batches.append(graph.prepare(torch.stack(chosen)))
        taken += count
    return batches


def _outputs(network: Graph, batches: Sequence[Tensor]) -> list[Exported]:
    """What the network itself gives. Raises ConfigError where its images are too small for it."""
    try:
        with torch.inference_mode():
            return [network.run(batch) for batch in batches]
    except RuntimeError as error:
        size = "x".join(map(str, network.form.size))
        raise ConfigError(f"the network cannot see images of --size {size}: {first_line(error)}") from error


def _save_torch(graph: Graph, images: Tensor, path: Path, about: dict[str, str]) -> None:
    try:
        with torch.no_grad(), exporting():
            program = torch.export.export(graph, (images,), dynamic_shapes=onnx.dynamic_shapes(graph), strict=False)
    except RuntimeError as error:
        raise PiipError(f"cannot be written as a program: {str(error).splitlines()[0]}") from error
    torch.export.save(program, path, extra_files={"piip.json": to_json(about)})


def _runner(path: Path, file_format: str, *, threads: int = 0) -> tuple[Callable[[Tensor], list[Tensor]], str]:
    """What runs a file, and its name."""
    if file_format == "torch":
        program = torch.export.load(path).module()
        return lambda images: list(program(images)), f"torch {torch.__version__}"
    import onnxruntime

    name = f"onnxruntime {onnxruntime.__version__}"

    @contextmanager
    def told() -> Iterator[None]:
        try:
            yield
        except Exception as error:  # of many classes, which have no base of their own
            reason = first_line(error).rpartition(" : ")[2]
            raise PiipError(
                f"{name} cannot run this file: {reason}; nothing is written; try a lower --opset"
            ) from error

    def run(images: Tensor) -> list[Tensor]:
        with told():
            return [torch.from_numpy(x) for x in session.run(None, {INPUT: images.numpy()})]

    with told():
        session = onnx.session(path, threads=threads)
    return run, name


def _race(network: Graph, path: Path, file_format: str, images: Tensor) -> tuple[float, float]:
    """Median milliseconds of the network and of the program for a batch, in turns, with one thread each."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        program: Any = _runner(path, file_format, threads=1)[0]
        times: tuple[list[float], list[float]] = ([], [])
        with torch.inference_mode():
            began = time.perf_counter()
            for repeat in range(_REPEATS + 1):
                if repeat > 1 and time.perf_counter() - began > _RACE:
                    break
                for run, taken in zip((network, program), times):
                    start = time.perf_counter()
                    run(images)
                    if repeat:
                        taken.append(1000 * (time.perf_counter() - start))
    finally:
        torch.set_num_threads(threads)
    return statistics.median(times[0]), statistics.median(times[1])
