"""Checks of op arguments: what is refused is a Python exception that names the argument and what was expected."""

from __future__ import annotations

import math
import operator
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

FLOATS = (torch.float32, torch.float16, torch.bfloat16, torch.float64)
MAX_LEVELS = 16  # kMaxLevels and kMaxPyramidLevels in csrc
MAX_SAMPLES = 512  # kMaxSamples in csrc
MAX_CHANNELS = 16  # kMaxChannels in csrc/pyramid_resize.h
MAX_SIDE = 2**31 - 1
MODES = {"bilinear": 0, "bicubic": 1}  # enum Filter in csrc/pyramid_resize.h


def host_list(name: str, values: Any, meaning: str) -> list[Any]:
    """The items of a sequence, an array or a tensor on the host; a tensor is read, on a GPU by waiting for it."""
    if isinstance(values, (list, tuple)):
        return list(values)
    if isinstance(values, Tensor) and values.layout != torch.strided:
        raise TypeError(f"{name} must be {meaning} or a dense tensor, got layout {values.layout}; pass host integers")
    if isinstance(values, Tensor) and values.is_meta:
        raise ValueError(f"{name} must hold numbers, got a tensor on the meta device; pass host integers")
    items = values.tolist() if hasattr(values, "tolist") else values
    if not _is_sequence(items):
        raise TypeError(f"{name} must be {meaning}, got {values!r}")
    return list(items)


def host_shapes(name: str, shapes: Sequence[Sequence[int]] | Tensor) -> list[tuple[int, int]]:
    """(H, W) pairs as host integers."""
    meaning = "a non-empty sequence of (H, W) pairs"
    pairs = host_list(name, shapes, meaning)
    sizes = []
    for pair in pairs:
        if not _is_sequence(pair) or len(pair) != 2:
            raise ValueError(f"{name} must be {meaning}, got {shapes!r}")
        h, w = pair
        if type(h) is not int or type(w) is not int:
            h, w = _integer(name, h), _integer(name, w)
        if h < 1 or w < 1 or h > MAX_SIDE or w > MAX_SIDE:
            raise ValueError(f"{name} must hold positive sizes below 2**31, got {pairs}")
        sizes.append((h, w))
    if not sizes:
        raise ValueError(f"{name} must be {meaning}, got {shapes!r}")
    return sizes


def _is_sequence(value: Any) -> bool:
    # The usual types first: the test for any sequence takes ten times as long.
    return isinstance(value, (list, tuple)) or (isinstance(value, Sequence) and not isinstance(value, str))


def _integer(name: str, number: Any) -> int:
    # The symbolic integers of torch.compile must stay what they are.
    if isinstance(number, (int, torch.SymInt)):
        return number  # type: ignore[return-value]
    try:
        return operator.index(number)
    except TypeError:
        raise TypeError(f"{name} must hold integers, got {number!r}") from None


def check_tensor(name: str, tensor: Tensor) -> None:
    """That it is a dense float tensor."""
    if not isinstance(tensor, Tensor):
        raise TypeError(f"{name} must be a tensor, got {type(tensor).__name__}")
    if tensor.layout != torch.strided:
        raise TypeError(f"{name} must be a dense tensor, got layout {tensor.layout}; call to_dense() first")
    if tensor.dtype not in FLOATS:
        raise TypeError(f"{name} must be float32, float16, bfloat16 or float64, got {tensor.dtype}")


def check_shape(
    name: str, tensor: Tensor, expected: Sequence[int | None], meaning: str, device: torch.device | None = None
) -> None:
    """That a dense float tensor has a shape. expected: the size of each dimension, None where anything goes."""
    check_tensor(name, tensor)
    shape = tensor.shape
    fits = len(shape) == len(expected)
    for size, wanted in zip(shape, expected):
        fits = fits and (wanted is None or size == wanted)
    if not fits:
        sizes = ", ".join("*" if e is None else str(e) for e in expected)
        raise ValueError(f"{name} must have shape {meaning} = ({sizes}), got {tuple(shape)}")
    if device is not None and tensor.device != device:
        raise ValueError(f"{name} must be on {device} like value, got {tensor.device}")


def attention_sizes(
    value: Tensor,
    sides: Sequence[int],
    reference: Tensor | None,
    points: Tensor,
    weights: Tensor,
    grad: Tensor | None = None,
    *,
    boxes: bool = False,
) -> dict[str, int]:
    """Sizes of an attention's arguments, by the names that csrc/deform_attn.h gives them.

    sides: H and W of every map. reference: (1 or B, Q, 1 or L, 2), with boxes also 4, beside offsets and logits; None
    beside locations and weights. Raises ValueError or TypeError, naming the argument of the public functions, where
    shapes or devices do not fit each other: all that a kernel must know before it is given addresses.
    """
    # Every call of an op comes by: few comparisons, of whole shapes. What does not fit is looked at again, by name.
    shape, samples, device = value.shape, points.shape, value.device
    cells, whole, levels = 0, True, len(sides) // 2
    for level in range(levels):
        h, w = sides[2 * level], sides[2 * level + 1]
        whole = whole and 0 < h <= MAX_SIDE and 0 < w <= MAX_SIDE
        cells += h * w
    if whole and len(shape) == 4 and len(samples) == 6 and len(sides) == 2 * levels and 0 < levels <= MAX_LEVELS:
        batch, given, heads, width = shape
        queries, count = samples[1], samples[4]
        if (
            given == cells
            and heads > 0
            and width > 0
            and count > 0
            and samples == (batch, queries, heads, levels, count, 2)
            and (
                (reference is not None and weights.shape == (batch, queries, heads, levels * count))
                or weights.shape == (batch, queries, heads, levels, count)
            )
            and points.device == device
            and weights.device == device
            and value.dtype in FLOATS
            and (grad is None or (grad.shape == (batch, queries, heads * width) and grad.device == device))
            and not (levels * count > MAX_SAMPLES and value.is_cuda)
        ):
            per_image = per_level = False
            fits = reference is None
            if reference is not None and reference.dim() == 4 and reference.device == device:
                images, points_of, maps, numbers = reference.shape
                known = (2, 4) if boxes else (2,)
                fits = images in (1, batch) and points_of == queries and maps in (1, levels) and numbers in known
                per_image, per_level = images != 1, maps != 1
            if fits:
                return {
                    "batch": batch,
                    "cells": cells,
                    "queries": queries,
                    "heads": heads,
                    "width": width,
                    "points_per_level": count,
                    "reference_per_batch": per_image,
                    "reference_per_level": per_level,
                }
    raise _misfit(value, sides, reference, points, weights, grad, boxes)


def _misfit(
    value: Tensor,
    sides: Sequence[int],
    reference: Tensor | None,
    points: Tensor,
    weights: Tensor,
    grad: Tensor | None,
    boxes: bool,
) -> ValueError:
    """The first thing that does not fit; raised here or returned."""
    raw, device, levels = reference is not None, value.device, len(sides) // 2
    if levels > MAX_LEVELS:
        return ValueError(f"spatial_shapes must hold at most {MAX_LEVELS} maps, got {levels}")
    if not sides or len(sides) % 2 or not all(0 < side <= MAX_SIDE for side in sides):
        return ValueError(f"spatial_shapes must hold (H, W) pairs, positive and below 2**31, got {list(sides)}")
    cells = sum(h * w for h, w in zip(sides[::2], sides[1::2]))
    check_shape("value", value, (None, cells, None, None), "(B, sum of H * W, M, D)")
    batch, _, heads, width = value.shape
    if heads < 1 or width < 1:
        return ValueError(f"value must have at least one head and one channel per head, got shape {tuple(value.shape)}")
    name = "sampling_offsets" if raw else "sampling_locations"
    check_shape(name, points, (batch, None, heads, levels, None, 2), "(B, Q, M, L, P, 2)", device)
    queries, count = points.shape[1], points.shape[4]
    if count < 1:
        return ValueError(f"{name} must have at least one point, got shape {tuple(points.shape)}")
    if reference is not None:
        meaning = "(1 or B, Q, 1 or L, 2 or 4)"
        check_shape("reference_points", reference, (None, queries, None, None), meaning, device)
        shape = reference.shape
        if shape[0] not in (1, batch) or shape[2] not in (1, levels) or shape[3] not in (2, 4):
            fitting = f"{meaning} with B = {batch}, L = {levels}"
            return ValueError(f"reference_points must have shape {fitting}, got {tuple(shape)}")
        if shape[3] == 4 and not boxes:
            return ValueError("the op takes reference points (x, y) only; call piip.ops.deform_attn with boxes")
    if raw and weights.dim() != 5:
        sizes: tuple[int, ...] = (batch, queries, heads, levels * count)
        check_shape("attention_logits", weights, sizes, "(B, Q, M, L * P)", device)
    else:
        name, sizes = "attention_logits" if raw else "attention_weights", (batch, queries, heads, levels, count)
        check_shape(name, weights, sizes, "(B, Q, M, L, P)", device)
    if grad is not None:
        check_shape("the gradient", grad, (batch, queries, heads * width), "(B, Q, M * D)", device)
    return ValueError(
        f"on CUDA a head of a query takes at most {MAX_SAMPLES} samples (levels times points), got {levels * count}"
    )


def _check_pyramid_settings(shape: Sequence[int], settings: Sequence[Any]) -> None:
    """All that a kernel must know before it is given addresses. shape: (B, C, H, W) of the images."""
    sizes, factors, mode, _, mean, std, dtype, valid = settings
    batch, channels, height, width = shape if len(shape) == 4 else (-1, 0, 0, 0)
    if not (batch >= 0 and 0 < channels <= MAX_CHANNELS and 0 < height <= MAX_SIDE and 0 < width <= MAX_SIDE):
        raise ValueError(f"images must have shape (B, C, H, W), pixels and 1 to {MAX_CHANNELS} channels, got {shape}")
    if len(sizes) != len(factors) or len(sizes) % 2 or not 0 < len(sizes) <= 2 * MAX_LEVELS:
        raise ValueError(f"sizes and factors must hold two numbers for each of 1 to {MAX_LEVELS} levels")
    for i, (size, factor) in enumerate(zip(sizes, factors)):
        if not 0 < size <= MAX_SIDE:
            raise ValueError(f"sizes must hold positive numbers below 2**31, got {list(sizes)}")
        if factor != 0 and not (0 < factor < math.inf and size == math.floor(shape[2 + i % 2] * factor)):
            raise ValueError(f"sizes must be floor(in * factor) where a factor is given, got {size} by {factor}")
    if mode not in MODES:
        raise ValueError(f"mode must be one of {', '.join(MODES)}, got {mode!r}")
    if dtype not in FLOATS:
        raise TypeError(f"dtype must be float32, float16, bfloat16 or float64, got {dtype}")
    if mean is not None or std is not None:
        if mean is None or std is None or not len(mean) == len(std) == channels:
            raise ValueError(f"give both of mean and std or none, each {channels} numbers")
        if min(map(abs, std)) < 1e-300:
            raise ValueError(f"std must not be zero, got {std}")
    if valid is not None:
        pairs = list(zip(valid[::2], valid[1::2]))
        if len(valid) != 2 * batch or not all(0 < h <= height and 0 < w <= width for h, w in pairs):
            raise ValueError(f"valid_sizes must hold {batch} (h, w) within ({height}, {width}), got {pairs}")


def check_pyramid(images: Tensor, channels_last: bool, *settings: Any) -> list[int]:
    """(B, C, H, W) of a pyramid's images, and that the op's other arguments suit them, in the order of its schema.

    Raises ValueError or TypeError naming the argument.
    """
    shape = list(images.shape)
    if channels_last and len(shape) == 4:
        shape.insert(1, shape.pop())
    if images.dtype not in FLOATS and images.dtype != torch.uint8:
        raise TypeError(f"images must be uint8 or a float dtype, got {images.dtype}")
    if channels_last and (images.dtype != torch.uint8 or shape[1:2] != [3]):
        raise ValueError(
            f"channels_last is for uint8 images of 3 channels, got {images.dtype} of {tuple(images.shape)}"
        )
    _check_pyramid_settings(shape, settings)
    return shape


def check_pyramid_gradients(grads: list[Tensor], shape: list[int], *settings: Any) -> None:
    """That gradients (B, C, H_i, W_i) are those of the levels that the settings describe, from images of a shape.

    Raises ValueError or TypeError naming the argument.
    """
    _check_pyramid_settings(shape, settings)
    sizes, first = settings[0], grads[0] if grads else None
    fits = len(grads) == len(sizes) // 2
    for grad, h, w in zip(grads, sizes[::2], sizes[1::2]):
        fits = fits and grad.shape == (shape[0], shape[1], h, w)
        fits = fits and first is not None and grad.dtype == first.dtype and grad.device == first.device
    if not fits or first is None or first.dtype not in FLOATS:
        got = [(tuple(grad.shape), grad.dtype, str(grad.device)) for grad in grads]
        raise ValueError(f"gradients must have the shapes of the levels, one float dtype and one device, got {got}")
