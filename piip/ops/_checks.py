"""Checks of op arguments: what is refused is a Python exception that names the argument and what was expected."""

from __future__ import annotations

import operator
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

FLOATS = (torch.float32, torch.float16, torch.bfloat16, torch.float64)
MAX_LEVELS = 16  # kMaxLevels and kMaxPyramidLevels in csrc
MAX_SIDE = 2**31 - 1


def host_list(name: str, values: Any, meaning: str) -> list[Any]:
    """The items of a sequence, an array or a tensor on the host; a tensor is read, on a GPU by waiting for it."""
    if isinstance(values, (list, tuple)):
        return list(values)
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


def check_shape(
    name: str, tensor: Tensor, expected: Sequence[int | None], meaning: str, device: torch.device | None = None
) -> torch.Size:
    """The shape of a dense float tensor. expected: the size of each dimension, None where anything goes."""
    if not isinstance(tensor, Tensor):
        raise TypeError(f"{name} must be a tensor, got {type(tensor).__name__}")
    if tensor.layout != torch.strided:
        raise TypeError(f"{name} must be a dense tensor, got layout {tensor.layout}; call to_dense() first")
    if tensor.dtype not in FLOATS:
        raise TypeError(f"{name} must be float32, float16, bfloat16 or float64, got {tensor.dtype}")
    shape = tensor.shape
    fits = len(shape) == len(expected)
    for size, wanted in zip(shape, expected):
        fits = fits and (wanted is None or size == wanted)
    if not fits:
        sizes = ", ".join("*" if e is None else str(e) for e in expected)
        raise ValueError(f"{name} must have shape {meaning} = ({sizes}), got {tuple(shape)}")
    if device is not None and tensor.device != device:
        raise ValueError(f"{name} must be on {device} like value, got {tensor.device}")
    return shape
