"""The compiled module: its ops are those of csrc/ops.def, and calls are described by fields that have names."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from piip.ops import _extension

CSRC = Path(__file__).parents[2] / "csrc"
OPS = dict(re.findall(r"OP\((\w+), (\w+)\)", (CSRC / "ops.def").read_text()))
INPUTS = {
    **dict.fromkeys(("value", "reference", "points", "weights"), 64),
    **dict.fromkeys(("batch", "queries", "heads", "width", "points_per_level"), 1),
    **dict.fromkeys(("raw", "reference_per_batch", "reference_per_level"), False),
    **dict.fromkeys(("value_dtype", "point_dtype"), 0),
    "cells": 6,
    "shapes": [2, 3],
}
GRADIENTS = dict.fromkeys(("grad_out", "grad_value", "grad_points", "grad_weights", "fixed_point_unit"), 64)


def test_every_op_of_the_list_is_bound_for_the_cpu_and_for_cuda(emulations):
    assert len(OPS) >= 4
    for op, problem in OPS.items():
        assert callable(getattr(_extension.extension(), op))
        for module in (_extension.extension(), *(emulation.module for emulation in emulations.values())):
            assert isinstance(getattr(module, problem), type)
        assert all(callable(getattr(emulation.module, f"{op}_cuda")) for emulation in emulations.values())


def test_forward_and_backward_take_their_own_tensors_by_name():
    describe = _extension.extension().DeformAttn
    describe(out=64, **INPUTS)
    describe(**GRADIENTS, **INPUTS)
    wrong = [{}, {"out": 64, **GRADIENTS}, {"grad_out": 64}, {"out": 64, "outs": 64}]
    for own in wrong:
        with pytest.raises(TypeError, match=r"(?s)out: .* value: .* grad_out: .* grad_value: .*fixed_point_unit"):
            describe(**own, **INPUTS)
    with pytest.raises(TypeError, match="incompatible constructor arguments"):
        describe(*INPUTS.values(), out=64)


def test_what_does_not_fit_a_struct_is_refused():
    describe = _extension.extension().DeformAttn
    with pytest.raises(ValueError, match="the maps do not add up to the cells"):
        describe(out=64, **INPUTS | {"cells": 7})
    with pytest.raises(ValueError, match="1 to 16 levels"):
        describe(out=64, **INPUTS | {"shapes": [1, 1] * 17})
