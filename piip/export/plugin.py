"""TensorRT's plugin for deformable attention, computed by ONNX itself, so that a file with it can be tried anywhere."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from piip.ops import ms_deform_attn
from piip.ops.exported import PLUGIN, PLUGIN_DOMAIN

if TYPE_CHECKING:
    from onnx import FunctionProto, ModelProto


class _Plugin(nn.Module):
    """What the plugin computes, on maps of these shapes."""

    def __init__(self, shapes: Sequence[tuple[int, int]]) -> None:
        super().__init__()
        self.shapes = shapes

    def forward(self, value: Tensor, locations: Tensor, weights: Tensor) -> Tensor:
        """Inputs of `ms_deform_attn` -> (B, Q, M, D)."""
        found = ms_deform_attn(value, self.shapes, None, locations, weights)
        return found.unflatten(-1, (value.shape[2], -1))


def with_functions(model: ModelProto) -> ModelProto:
    """The model, changed in place: a function of ONNX in the place of each plugin, for each set of shapes one.

    Raises ValueError where spatial shapes or starts are not what the plugin reads.
    """
    from onnx import TensorProto, numpy_helper

    constants = {item.name: numpy_helper.to_array(item) for item in model.graph.initializer}
    constants |= {
        node.output[0]: numpy_helper.to_array(node.attribute[0].t)
        for node in model.graph.node
        if node.op_type == "Constant" and node.attribute[0].HasField("t")
    }
    known = {info.name: info for info in (*model.graph.value_info, *model.graph.input)}
    functions: dict[Any, FunctionProto] = {}
    opsets = {item.domain: item.version for item in model.opset_import}
    for node in model.graph.node:
        if node.op_type != PLUGIN:
            continue
        shapes = [tuple(shape) for shape in constants[node.input[1]].tolist()]
        starts = [sum(h * w for h, w in shapes[:level]) for level in range(len(shapes))]
        if constants[node.input[2]].tolist() != starts or constants[node.input[1]].dtype != "int32":
            raise ValueError(f"{node.name}: spatial shapes {shapes} begin at {constants[node.input[2]]}")
        sizes = tuple(
            tuple(dim.dim_value or 2 for dim in known[node.input[place]].type.tensor_type.shape.dim)
            for place in (0, 3, 4)
        )
        half = known[node.input[0]].type.tensor_type.elem_type == TensorProto.FLOAT16
        key = (tuple(shapes), sizes, half)
        if key not in functions:
            functions[key] = _function(f"{PLUGIN}_{len(functions)}", *key, opset=opsets[""])
        node.op_type = functions[key].name
        del node.attribute[:]
    model.functions.extend(functions.values())
    if PLUGIN_DOMAIN not in opsets:
        model.opset_import.add(domain=PLUGIN_DOMAIN, version=1)
    return model


def _function(
    name: str, shapes: Sequence[tuple[int, int]], sizes: Sequence[Sequence[int]], half: bool, *, opset: int
) -> FunctionProto:
    """The function that takes the plugin's five inputs; sizes: of value, locations and weights."""
    from onnx import helper

    batch = torch.export.Dim("batch")
    inputs = tuple(torch.rand(2, *size[1:]).to(torch.float16 if half else torch.float32) for size in sizes)
    program = torch.onnx.export(
        _Plugin(shapes), inputs, dynamo=True, verbose=False, opset_version=opset, dynamic_shapes=({0: batch},) * 3
    )
    assert program is not None
    graph = program.model_proto.graph
    constants = [helper.make_node("Constant", [], [item.name], value=item) for item in graph.initializer]
    value, locations, weights = (item.name for item in graph.input)
    return helper.make_function(
        PLUGIN_DOMAIN,
        name,
        [value, "spatial_shapes", "level_start_index", locations, weights],
        [item.name for item in graph.output],
        [*constants, *graph.node],
        [helper.make_opsetid("", opset)],
    )
