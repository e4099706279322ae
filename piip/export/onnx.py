"""Programs as ONNX files."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from piip.errors import ConfigError, PiipError, first_line
from piip.export import plugin
from piip.export.graph import INPUT, Graph
from piip.ops import exported, reference

Deform = Literal["gridsample", "gather", "trt-plugin"]

SAMPLING: dict[Deform, Callable[..., Tensor]] = {
    "gridsample": reference.ms_deform_attn,
    "gather": exported.gather,
    "trt-plugin": exported.plugin,
}
# The exporter writes opset 18, and converts it to others.
OPSETS = range(18, 24)
# Files of protobuf end at 2 GiB; weights of larger networks go into a file beside them.
LARGEST = 1_900_000_000
# onnx.TensorProto's number of the type.
_INT64 = 7


def require() -> None:
    """Raises ConfigError where the packages of the extra are missing."""
    missing = [name for name in ("onnx", "onnxscript", "onnxruntime") if find_spec(name) is None]
    if missing:
        raise ConfigError(f"export to ONNX needs {', '.join(missing)}: pip install 'piip[export]'")


def to_onnx(graph: Graph, images: Tensor, *, opset: int, deform: Deform, about: dict[str, str]) -> Any:
    """The program of a network as a `torch.onnx.ONNXProgram`, with nothing in it but what computes.

    images: an example. about: texts by key that the file keeps. Raises ConfigError for an opset that is not written,
    and PiipError with the exporter's reason where there is something that ONNX does not have.
    """
    require()
    if opset not in OPSETS:
        raise ConfigError(f"--opset {opset}: ONNX files are written with opsets {OPSETS[0]} to {OPSETS[-1]}")
    try:
        with torch.no_grad(), exported.exporting(SAMPLING[deform]), _quiet():
            program = torch.onnx.export(
                graph,
                (images,),
                dynamo=True,
                input_names=[INPUT],
                output_names=list(graph.run(images).tensors),
                opset_version=opset,
                dynamic_shapes=dynamic_shapes(graph),
                custom_translation_table=_translations(),
                verbose=False,
            )
    except (torch.onnx.OnnxExporterError, RuntimeError) as error:
        cause = error.__cause__ or error
        raise PiipError(f"cannot be written as ONNX with opset {opset}: {first_line(cause)}") from error
    assert program is not None
    shape = program.model.graph.inputs[0].shape
    if graph.form.batch is None and (shape is None or isinstance(shape[0], int)):
        raise PiipError(
            "this network computes with the number of images, and has no program for any number; see --batch"
        )
    _strip(program.model)
    program.model.metadata_props.update(about)
    return program


def dynamic_shapes(graph: Graph) -> tuple[dict[int, Any]] | None:
    """The dimension of a batch of any number of images, as torch.export takes it."""
    return None if graph.form.batch is not None else ({0: torch.export.Dim("batch")},)


def save(program: Any, path: Path) -> list[Path]:
    """Writes a program, its weights beside it where they are too large for one file. Returns the files."""
    weights = sum(value.const_value.nbytes for value in program.model.graph.initializers.values())
    external = weights > LARGEST
    program.save(str(path), external_data=external)
    return [path, *([path.with_name(f"{path.name}.data")] if external else [])]


def session(path: Path, *, threads: int = 0) -> Any:
    """An onnxruntime session on the CPU; TensorRT's plugin, which it does not have, computes what it should."""
    import onnx
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 3
    source: Any = str(path)
    model = onnx.load(path, load_external_data=False)
    if any(node.op_type == exported.PLUGIN for node in model.graph.node):
        with _quiet():
            source = plugin.with_functions(onnx.load(path)).SerializeToString()
    return onnxruntime.InferenceSession(source, options, providers=["CPUExecutionProvider"])


def _strip(model: Any) -> None:
    """Takes out what the exporter notes of the Python code behind each operator: a fifth of a small network's file."""
    for node in model.graph.all_nodes():
        node.metadata_props.clear()
        node.doc_string = None
        for value in node.outputs:
            value.metadata_props.clear()
    for value in (*model.graph.inputs, *model.graph.initializers.values()):
        value.metadata_props.clear()


def _translations() -> dict[Any, Any]:
    """How the ops of this package are written that a program keeps whole."""
    from onnxscript import opset18

    op: Any = opset18

    def nms(boxes: Any, scores: Any, threshold: float, limit: int) -> tuple[Any, Any]:
        zero, one, most = (op.Constant(value_ints=[number]) for number in (0, 1, limit))
        least, overlap = (op.Constant(value_floats=[number]) for number in (-0.5, threshold))
        found = op.NonMaxSuppression(
            boxes, op.Unsqueeze(scores, one), most, overlap, least
        )  # image, class, box: (n, 3)
        image, index = (op.Gather(found, op.Constant(value_int=column), axis=1) for column in (0, 2))
        batch = op.Shape(scores, start=0, end=1)
        images = op.Range(op.Squeeze(zero), op.Squeeze(batch), op.Squeeze(one))
        own = op.Cast(op.Equal(op.Unsqueeze(images, one), op.Unsqueeze(image, zero)), to=_INT64)  # (B, n)
        rank = op.Sub(op.ReduceSum(op.Mul(op.CumSum(own, one), own), zero, keepdims=0), one)
        # OpenVINO fills up with -1: what belongs to no image goes to a column more, which is cut off.
        rank = op.Where(op.Less(image, zero), most, rank)
        place = op.Concat(op.Unsqueeze(op.Max(image, zero), one), op.Unsqueeze(rank, one), axis=1)
        filled = op.Expand(zero, op.Concat(batch, op.Add(most, one), axis=0))
        filled = op.ScatterND(filled, place, op.Max(index, zero))
        return op.Slice(filled, zero, most, one), op.ReduceSum(own, one, keepdims=0)

    return {torch.ops.piip.nms.default: nms}


@contextmanager
def _quiet() -> Iterator[None]:
    """Without the exporter's warnings of its own insides."""
    loggers = [logging.getLogger(name) for name in ("torch.onnx", "onnxscript", "onnx_ir", "torch.export")]
    levels = [logger.level for logger in loggers]
    try:
        for logger in loggers:
            logger.setLevel(logging.ERROR)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, levels):
            logger.setLevel(level)
