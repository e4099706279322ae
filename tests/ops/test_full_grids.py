"""16-bit storage on the grids of the published pyramids: the error that is left is the rounding of the result."""

from __future__ import annotations

import pytest
import torch

from benchmarks.ops import ATTENTION, attention_inputs
from piip.ops import deform_attn, reference

PYRAMIDS = [name for name in ATTENTION if "<-" in name]

# A forward is the same in both modes.
PLACES = ["cpu", "emulated-800-fast", "emulated-900-deterministic", "cuda-fast"]


@pytest.mark.parametrize("name", PYRAMIDS)
def test_16_bit_error_on_a_full_grid_stays_within_2e_3(device, name):
    shapes, (value, points, offsets, logits) = attention_inputs(name, 1, torch.device("cpu"))
    for dtype in (torch.bfloat16, torch.float16):
        stored = [tensor.to(dtype) for tensor in (value, offsets, logits)]
        # The definition gets the same rounded numbers.
        exact = reference.deform_attn(stored[0].double(), shapes, points.double(), *(t.double() for t in stored[1:]))
        lowered = [tensor.to(device) for tensor in (stored[0], points, *stored[1:])]
        out = deform_attn(lowered[0], shapes, *lowered[1:]).cpu()
        assert out.dtype == dtype
        assert (out.double() - exact).norm() / exact.norm() <= 2e-3
