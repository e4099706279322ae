"""Inputs for the tests of deformable attention, and the comparison with its definition."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from piip.ops import deform_attn, reference

TOLERANCE = {torch.float32: 2e-6, torch.float64: 1e-13, torch.bfloat16: 8e-3, torch.float16: 1e-3}


@dataclass
class Case:
    """Arguments of deform_attn in order, and the shapes."""

    shapes: list[tuple[int, int]]
    value: Tensor
    reference: Tensor
    offsets: Tensor
    logits: Tensor

    @property
    def tensors(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        return self.value, self.reference, self.offsets, self.logits

    def to(self, dtype: torch.dtype | None = None, device: torch.device | None = None) -> Case:
        return Case(self.shapes, *(t.detach().to(dtype=dtype, device=device) for t in self.tensors))

    def leaves(self) -> Case:
        return Case(self.shapes, *(t.detach().clone().requires_grad_() for t in self.tensors))

    def run(self, op) -> Tensor:
        return op(self.value, self.shapes, self.reference, self.offsets, self.logits)


def make_case(
    *,
    shapes: Sequence[tuple[int, int]] = ((5, 7), (3, 4)),
    batch: int = 2,
    queries: int = 9,
    heads: int = 2,
    width: int = 6,
    points: int = 3,
    shared_batch: bool = False,
    shared_level: bool = False,
    boxes: bool = False,
    spread: float = 2.0,
    dtype: torch.dtype = torch.float32,
    seed: int = 0,
) -> Case:
    """Random inputs. Locations keep away from cell lines, where gradients jump and rounding would decide."""
    generator = torch.Generator().manual_seed(seed)
    levels, shapes = len(shapes), list(shapes)
    cells = sum(h * w for h, w in shapes)
    value = torch.randn(batch, cells, heads, width, generator=generator, dtype=torch.float64)
    ref_shape = (1 if shared_batch else batch, queries, 1 if shared_level else levels)
    reference = torch.rand(*ref_shape, 2, generator=generator, dtype=torch.float64)
    logits = torch.randn(batch, queries, heads, levels * points, generator=generator, dtype=torch.float64)
    offsets = torch.randn(batch, queries, heads, levels, points, 2, generator=generator, dtype=torch.float64) * spread
    size = torch.tensor([(w, h) for h, w in shapes], dtype=torch.float64)
    # A cell coordinate is reference * size + offset - 0.5, so its fraction is set through the offset.
    cell = (reference[:, :, None] * size)[:, :, :, :, None] + offsets - 0.5
    fraction = 0.05 + 0.9 * torch.rand(cell.shape, generator=generator, dtype=torch.float64)
    offsets = offsets + (cell.floor() + fraction - cell)
    if boxes:
        sides = 0.2 + torch.rand(*ref_shape, 2, generator=generator, dtype=torch.float64)
        offsets = offsets / (sides * size * 0.5 / points)[:, :, None, :, None]
        reference = torch.cat([reference, sides], -1)
    return Case(shapes, *(t.to(dtype) for t in (value, reference, offsets, logits)))


def strided(tensor: Tensor) -> Tensor:
    """The same numbers with gaps between the rows and the first two dimensions swapped in memory."""
    return tensor.repeat_interleave(2, dim=-2).transpose(0, 1).contiguous().transpose(0, 1)[..., ::2, :]


def rounded_inputs(case: Case) -> Case:
    """The same stored numbers in float64: what the definition is given to compare with."""
    return case.to(torch.float64, torch.device("cpu"))


def relative_error(actual: Tensor, expected: Tensor) -> float:
    """Largest difference as a share of the largest expected magnitude."""
    if expected.numel() == 0:
        assert actual.shape == expected.shape
        return 0.0
    return (
        (actual.detach().cpu().double() - expected.double()).abs().max() / expected.abs().max().clamp_min(1e-30)
    ).item()


def assert_matches_definition(
    case: Case, device: torch.device, tolerance: float, op=deform_attn, grad: Tensor | None = None
) -> None:
    """Values and all four gradients, of random numbers where no grad is given."""
    expected_case = rounded_inputs(case).leaves()
    expected = expected_case.run(reference.deform_attn)
    actual_case = case.to(device=device).leaves()
    actual = actual_case.run(op)
    assert actual.dtype == case.value.dtype
    assert relative_error(actual, expected) <= tolerance
    if grad is None:
        grad = torch.randn(expected.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    grad = grad.to(actual.dtype)
    expected.backward(grad.double())
    actual.backward(grad.to(device))
    for name in ("value", "reference", "offsets", "logits"):
        wanted, got = getattr(expected_case, name).grad, getattr(actual_case, name).grad
        assert got.dtype == getattr(case, name).dtype
        # References far from any cell of a coarse map can have gradients that cancel almost completely.
        assert relative_error(got, wanted) <= 4 * tolerance, f"gradient of {name}"
