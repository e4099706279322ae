"""Deformable attention: the public functions and their registration with PyTorch.

Two ops share the kernels: `piip::deform_attn` takes raw offsets and logits, `piip::ms_deform_attn` locations and
weights.

`torch.onnx.export` (PyTorch 2.10 or newer) needs nothing special: while it runs, both functions trace their definition
in `piip.ops.reference`, plain operators of ONNX, with the sampling in one of the forms of `piip.ops.exported`, by
default GridSample (opset 16 and later). spatial_shapes are part of the graph, so pass host integers; batch and queries
may be dynamic. `torch.export` keeps the ops themselves.

Given host integers, nothing here waits for the device, forward or backward, so a CUDA graph can capture it. The capture
keeps all shapes, those of the maps among them.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from piip.ops import exported, reference
from piip.ops._checks import attention_sizes, check_tensor, host_list, host_shapes
from piip.ops._extension import (
    DTYPE_TAGS,
    accumulates_in_place,
    extension,
    has_kernels,
    launch,
    pointer,
    runs_definition,
)
from piip.ops._registration import (
    definition_gradients,
    refuse_forward_mode,
    register_autocast,
    register_gradient,
    register_op,
)

Shapes = Sequence[tuple[int, int]]


def deform_attn(
    value: Tensor,
    spatial_shapes: Shapes | Tensor,
    reference_points: Tensor,
    sampling_offsets: Tensor,
    attention_logits: Tensor,
) -> Tensor:
    """Deformable attention from raw offsets and logits (Zhu et al., 2021, equation 3).

    Softmax, locations and sums run in float32 (float64 for float64 values) whatever the storage dtypes, which may
    differ.

    value: (B, S, M, D), the L maps one after the other, row by row.
    spatial_shapes: L (H, W) pairs whose areas add up to S; on the CPU no side above 2^24, and less than 16 GiB of
    float32 per head. Host integers are best: reading a GPU tensor waits for the device.
    reference_points: (1 or B, Q, 1 or L, 2 or 4), points (x, y) or boxes (x, y, w, h) in [0, 1] of the map.
    sampling_offsets: (B, Q, M, L, P, 2), (x, y) in cells of their map; for boxes in units of half a side divided by P.
    attention_logits: (B, Q, M, L * P) or (B, Q, M, L, P).
    Returns (B, Q, M * D) in the dtype of value.

    Cells outside a map read zero. A sample that touches no cell, or whose location is not finite, contributes nothing
    and its gradients are zero; logits that are not finite act as in a softmax. Differentiable once, by backward.
    On CUDA a head of a query takes at most 512 samples (L * P). Raises ValueError or TypeError naming the argument.
    """
    shapes = host_shapes("spatial_shapes", spatial_shapes)
    flat = [side for shape in shapes for side in shape]
    check_tensor("value", value)
    check_tensor("reference_points", reference_points)
    check_tensor("sampling_offsets", sampling_offsets)
    check_tensor("attention_logits", attention_logits)
    boxes = reference_points.shape[-1:] == (4,)
    if boxes or runs_definition(value):  # the op itself looks at the shapes
        attention_sizes(value, flat, reference_points, sampling_offsets, attention_logits, boxes=boxes)
        if runs_definition(value):
            return reference.deform_attn(
                value, shapes, reference_points, sampling_offsets, attention_logits, sample=exported.sample
            )
    if boxes:
        # Boxes come with the few queries of a decoder: their offsets are brought into cells here, once.
        dtype = reference.compute_dtype(value.dtype)
        cells = reference_points[..., 2:].to(dtype) * reference.map_sizes(shapes, value)
        cells = cells * (0.5 / sampling_offsets.shape[4])
        sampling_offsets = reference.scaled_offsets(sampling_offsets.to(dtype), cells)
        reference_points = reference_points[..., :2]
    return _DEFORM_ATTN(value, flat, reference_points, sampling_offsets, attention_logits)


def ms_deform_attn(
    value: Tensor,
    spatial_shapes: Shapes | Tensor,
    level_start_index: Sequence[int] | Tensor | None,
    sampling_locations: Tensor,
    attention_weights: Tensor,
) -> Tensor:
    """Deformable-DETR's call, with locations and weights already formed.

    value, spatial_shapes: as in `deform_attn`.
    level_start_index: where each map starts in S. The maps follow each other, so this adds nothing; host values are
    compared with what follows from spatial_shapes, GPU tensors are not read. None is fine.
    sampling_locations: (B, Q, M, L, P, 2), (x, y) in [0, 1] of the map.
    attention_weights: (B, Q, M, L, P). One that is not finite, at a sample that touches its map, makes the results of
    its query and head NaN or infinite, on each device in its own way.
    Returns (B, Q, M * D) in the dtype of value. Raises ValueError or TypeError naming the argument.
    """
    shapes = host_shapes("spatial_shapes", spatial_shapes)
    flat = [side for shape in shapes for side in shape]
    _check_starts(level_start_index, shapes)
    check_tensor("value", value)
    check_tensor("sampling_locations", sampling_locations)
    check_tensor("attention_weights", attention_weights)
    if runs_definition(value):
        attention_sizes(value, flat, None, sampling_locations, attention_weights)
        return exported.sample(value, shapes, sampling_locations, attention_weights)
    return _MS_DEFORM_ATTN(value, flat, sampling_locations, attention_weights)


def _check_starts(starts: Sequence[int] | Tensor | None, shapes: Shapes) -> None:
    if starts is None or (isinstance(starts, Tensor) and starts.device.type != "cpu"):
        return
    expected = [sum(h * w for h, w in shapes[:level]) for level in range(len(shapes))]
    given = host_list("level_start_index", starts, f"{expected} for these spatial_shapes")
    if given != expected:
        raise ValueError(f"level_start_index must be {expected} for these spatial_shapes, got {given}")


# --- kernels --------------------------------------------------------------------------------------------------------


def _stored(tensor: Tensor, dtype: torch.dtype) -> Tensor:
    """Contiguous and of a dtype; most are, and asking costs less than an operator that changes nothing."""
    if tensor.dtype != dtype:
        tensor = tensor.to(dtype)
    return tensor if tensor.is_contiguous() else tensor.contiguous()


def _aligned(tensor: Tensor) -> Tensor:
    """The tensor, copied unless it begins where numbers can be read four at a time; a view may begin anywhere."""
    return tensor.clone() if tensor.data_ptr() % 16 else tensor


def _definition(value: Tensor, shapes: list[int], ref: Tensor | None, points: Tensor, weights: Tensor) -> Tensor:
    pairs = list(zip(shapes[::2], shapes[1::2]))
    if ref is None:
        return reference.ms_deform_attn(value, pairs, points, weights)
    return reference.deform_attn(value, pairs, ref, points, weights)


class _Problem:
    """Inputs as the kernels want them: contiguous, points and weights of one dtype, float32 or that of the value."""

    def __init__(
        self,
        value: Tensor,
        shapes: list[int],
        ref: Tensor | None,
        points: Tensor,
        weights: Tensor,
        grad: Tensor | None = None,
    ) -> None:
        self.arguments = value, shapes, ref, points, weights
        sizes = attention_sizes(*self.arguments, grad)
        compute = reference.compute_dtype(value.dtype)
        same = points.dtype == weights.dtype == value.dtype
        point_dtype = value.dtype if same else compute
        self.value = _stored(value, value.dtype)
        self.reference = None if ref is None else _aligned(_stored(ref, compute))
        self.points, self.weights = (_aligned(_stored(t, point_dtype)) for t in (points, weights))
        self.queries, self.empty = sizes["queries"], sizes["batch"] == 0
        # The fields that forward and backward have in common, by their names in csrc/deform_attn.h.
        self.fields: dict[str, Any] = {
            "value": pointer(self.value),
            "reference": pointer(self.reference),
            "points": pointer(self.points),
            "weights": pointer(self.weights),
            "shapes": shapes,
            "raw": ref is not None,
            "value_dtype": DTYPE_TAGS[value.dtype],
            "point_dtype": DTYPE_TAGS[point_dtype],
            **sizes,
        }

    def forward(self) -> Tensor:
        value = self.value
        if not has_kernels(value):
            return _definition(*self.arguments)
        out = value.new_empty(value.shape[0], self.queries, value.shape[2] * value.shape[3])
        if out.numel() and self.points.numel():
            launch("deform_attn_forward", value, extension().DeformAttn(out=pointer(out), **self.fields))
            return out
        return out.zero_()

    def backward(self, grad: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        value, grad = self.value, _stored(grad, self.value.dtype)
        if not has_kernels(value):
            given, shapes, ref, points, weights = self.arguments
            gradients = definition_gradients(
                lambda v, p, w: _definition(v, shapes, ref, p, w), (given, points, weights), grad
            )
            return gradients[0], gradients[1], gradients[2]
        grad_points, grad_weights = torch.empty_like(self.points), torch.empty_like(self.weights)
        if self.empty or self.points.numel() == 0:
            return torch.zeros_like(value), grad_points, grad_weights
        # The CPU adds up the value gradient in a plane of each thread, CUDA in memory: in the compute dtype, or, where
        # the order of additions must not matter, in integers.
        unit = None
        if not accumulates_in_place(value):
            grad_value = torch.empty_like(value)
        elif torch.are_deterministic_algorithms_enabled():
            # Weights after a softmax are at most 1; given ones can be anything.
            unit = _fixed_point_unit(
                grad, self.points.numel() // 2, None if self.reference is not None else self.weights
            )
            grad_value = torch.zeros_like(value, dtype=torch.int64)
        else:
            grad_value = torch.zeros_like(value, dtype=reference.compute_dtype(value.dtype))
        problem = extension().DeformAttn(
            grad_out=pointer(grad),
            grad_value=pointer(grad_value),
            grad_points=pointer(grad_points),
            grad_weights=pointer(grad_weights),
            fixed_point_unit=pointer(unit),
            **self.fields,
        )
        launch("deform_attn_backward", value, problem)
        if unit is not None:
            grad_value = grad_value.double() / unit
        return _stored(grad_value, value.dtype), grad_points, grad_weights


def _fixed_point_unit(grad: Tensor, samples: int, weights: Tensor | None) -> Tensor:
    """Steps per one of a 63-bit sum that no cell can overflow: each sample adds at most the largest gradient to it,
    times the largest weight where weights are given.

    A power of two, computed where the gradient lies. Gradients that are not finite make it NaN, and with it the result.
    """
    bits = 62 - max(samples, 1).bit_length()
    largest = grad.abs().amax().double()
    if weights is not None:
        largest = largest * weights.abs().amax().double()
    largest = largest.clamp_min(torch.finfo(torch.float64).tiny)
    exponent = (bits - largest.log2().ceil()).clamp_max(1000)
    return torch.exp2(exponent) + 0 * largest


# Both ops are implemented by the same functions: `deform_attn` has a reference among its inputs, `ms_deform_attn` none.


def _named(inputs: tuple[Any, ...]) -> tuple[Tensor, list[int], Tensor | None, Tensor, Tensor]:
    """Value, shapes, reference or None, points and weights, from the inputs of either op."""
    value, shapes, *ref, points, weights = inputs
    return value, shapes, ref[0] if ref else None, points, weights


def _forward(*inputs: Any) -> Tensor:
    value, shapes, ref, points, weights = _named(inputs)
    refuse_forward_mode(_name(ref), value, ref, points, weights)
    return _Problem(value, shapes, ref, points, weights).forward()


def _backward(grad: Tensor, *inputs: Any) -> tuple[Tensor, Tensor, Tensor]:
    value, shapes, ref, points, weights = _named(inputs)
    refuse_forward_mode(_name(ref), grad)
    grad_value, grad_points, grad_weights = _Problem(value, shapes, ref, points, weights, grad).backward(grad)
    return grad_value, _stored(grad_points, points.dtype), _stored(grad_weights, weights.dtype)


def _name(ref: Tensor | None) -> str:
    return "ms_deform_attn" if ref is None else "deform_attn"


# --- without data ---------------------------------------------------------------------------------------------------


def _fake(*inputs: Any) -> Tensor:
    value, _, _, points, _ = arguments = _named(inputs)
    attention_sizes(*arguments)
    return value.new_empty(value.shape[0], points.shape[1], value.shape[2] * value.shape[3])


def _backward_fake(grad: Tensor, *inputs: Any) -> tuple[Tensor, Tensor, Tensor]:
    value, _, _, points, weights = arguments = _named(inputs)
    attention_sizes(*arguments, grad)
    return value.new_empty(value.shape), points.new_empty(points.shape), weights.new_empty(weights.shape)


def _flops(value: Sequence[int], shapes: Any, *others: Any, **_: Any) -> int:
    """Five multiply-adds per channel of a sample, four cells and the weight: ten FLOPs, the published count.

    The official script writes 5 * Q * P * C with C twice the channels of the values, the same number.
    """
    batch, queries, heads, levels, points, _ = others[-2]
    return 10 * batch * queries * heads * levels * points * value[3]


def _backward_flops(grad: Any, *inputs: Any, **_: Any) -> int:
    return 2 * _flops(*inputs)


# --- registration ---------------------------------------------------------------------------------------------------


def _register(op: str, inputs: str) -> Any:
    """Registers an op and its backward, which it returns."""
    register_op(f"{op}({inputs}) -> Tensor", _forward, _fake, _flops)
    schema = f"{op}_backward(Tensor grad, {inputs}) -> (Tensor, Tensor, Tensor)"
    return register_op(schema, _backward, _backward_fake, _backward_flops)


_DEFORM_ATTN_BACKWARD = _register(
    "deform_attn", "Tensor value, SymInt[] shapes, Tensor reference, Tensor offsets, Tensor logits"
)
_MS_DEFORM_ATTN_BACKWARD = _register(
    "ms_deform_attn", "Tensor value, SymInt[] shapes, Tensor locations, Tensor weights"
)


def _save(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    value, ctx.shapes, *others = inputs
    ctx.save_for_backward(value, *others)


def _differentiate(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    value, ref, offsets, logits = ctx.saved_tensors
    wants_reference = ctx.needs_input_grad[2]
    dtype = reference.compute_dtype(value.dtype)
    # The gradient of a reference sums those of its offsets, which must not be rounded to 16 bits before.
    points = offsets.to(dtype) if wants_reference else offsets
    grad_value, grad_points, grad_logits = _DEFORM_ATTN_BACKWARD(grad, value, ctx.shapes, ref, points, logits)
    grad_reference = None
    if wants_reference:
        size = reference.map_sizes(list(zip(ctx.shapes[::2], ctx.shapes[1::2])), value)
        summed = grad_points.to(dtype).sum((2, 4)) * size
        grad_reference = summed.sum_to_size(ref.shape).to(ref.dtype)
    return grad_value, None, grad_reference, grad_points.to(offsets.dtype), grad_logits


def _ms_differentiate(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    value, locations, weights = ctx.saved_tensors
    grad_value, grad_locations, grad_weights = _MS_DEFORM_ATTN_BACKWARD(grad, value, ctx.shapes, locations, weights)
    return grad_value, None, grad_locations, grad_weights


_DEFORM_ATTN = register_gradient("deform_attn", _save, _differentiate)
_MS_DEFORM_ATTN = register_gradient("ms_deform_attn", _save, _ms_differentiate)
# The values are what a lower dtype is for; locations and logits keep theirs, all arithmetic is in float32 anyway.
register_autocast("deform_attn")
register_autocast("ms_deform_attn")
