"""The kernels of deformable attention against their definition in float64, and the definition against plain loops."""

from __future__ import annotations

import math
import os
import subprocess
import sys

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from piip.ops import _extension, deform_attn, ms_deform_attn, reference
from tests.ops.cases import (
    TOLERANCE,
    Case,
    assert_matches_definition,
    make_case,
    relative_error,
    rounded_inputs,
    strided,
)
from tests.ops.emulated import Emulated

WIDTHS = (1, 3, 6, 8, 12, 24, 32, 40, 100, 128, 129)


def test_definition_equals_plain_loops():
    case = make_case(shapes=[(3, 4), (2, 2)], batch=1, queries=3, heads=2, width=2, points=2, dtype=torch.float64)
    out = torch.zeros(1, 3, 2, 2, dtype=torch.float64)
    for q in range(3):
        for m in range(2):
            weights = case.logits[0, q, m].softmax(0).tolist()
            for level, (h, w) in enumerate(case.shapes):
                start = 12 * level
                for p in range(2):
                    x = case.reference[0, q, level, 0].item() * w + case.offsets[0, q, m, level, p, 0].item() - 0.5
                    y = case.reference[0, q, level, 1].item() * h + case.offsets[0, q, m, level, p, 1].item() - 0.5
                    for cy in range(h):
                        for cx in range(w):
                            share = max(0.0, 1 - abs(x - cx)) * max(0.0, 1 - abs(y - cy))
                            out[0, q, m] += weights[level * 2 + p] * share * case.value[0, start + cy * w + cx, m]
    assert relative_error(case.run(reference.deform_attn), out.flatten(2)) < 1e-14


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("dtype", TOLERANCE)
def test_values_and_gradients_equal_the_definition(device, width, dtype):
    case = make_case(width=width, queries=37, dtype=dtype, shared_batch=width % 2 == 0, shared_level=width % 3 == 0)
    assert_matches_definition(case, device, TOLERANCE[dtype])


# One cell, one row or column, and anything else; the queries are any number, unlike a grid that the values lie on.
SIDES = st.one_of(st.just(1), st.integers(1, 9))
NOWHERE = (math.nan, math.inf, -math.inf, 1e30, -1e30)
PROBLEMS = st.fixed_dictionaries(
    {
        "shapes": st.lists(st.tuples(SIDES, SIDES), min_size=1, max_size=5),
        "batch": st.integers(0, 3),
        "queries": st.integers(0, 40),
        "heads": st.integers(1, 4),
        "width": st.sampled_from(WIDTHS),
        "points": st.integers(1, 8),
        "spread": st.sampled_from([0.5, 3.0, 50.0]),
        "seed": st.integers(0, 100),
    }
)


def generated(examples: int) -> settings:
    """Fewer examples where the kernels are emulated, which takes longer, for two architectures and in two modes."""
    count = examples // 3 if isinstance(_extension.CPU, Emulated) else examples
    return settings(max_examples=count, deadline=None, derandomize=True)


def lose_samples(offsets: Tensor, share: float, seed: int) -> None:
    """Moves a share of the samples to where no cell is."""
    generator = torch.Generator().manual_seed(seed)
    lost = torch.rand(offsets.shape, generator=generator) < share
    which = torch.randint(len(NOWHERE), offsets.shape, generator=generator)
    places = torch.tensor(NOWHERE, dtype=torch.float64)[which].clamp(-6e4, 6e4)
    offsets[lost] = places.to(offsets.dtype)[lost]


def test_any_problem_equals_the_definition(device):
    @generated(150)
    @given(
        problem=PROBLEMS,
        dtype=st.sampled_from(list(TOLERANCE)),
        mixed=st.booleans(),
        shared_batch=st.booleans(),
        shared_level=st.booleans(),
        boxes=st.booleans(),
        lost=st.sampled_from([0.0, 0.0, 0.2, 1.0]),
        strides=st.booleans(),
    )
    def check(problem, dtype, mixed, shared_batch, shared_level, boxes, lost, strides):
        case = make_case(**problem, shared_batch=shared_batch, shared_level=shared_level, boxes=boxes)
        lose_samples(case.offsets, lost, problem["seed"])
        # Boxes scale the offsets: of 16-bit ones many samples would lie exactly on a line between cells.
        point_dtype = reference.compute_dtype(dtype) if mixed or boxes else dtype
        case = Case(case.shapes, case.value.to(dtype), *(t.to(point_dtype) for t in case.tensors[1:]))

        def op(value, shapes, *others):
            return (
                deform_attn(strided(value), shapes, *map(strided, others))
                if strides
                else deform_attn(value, shapes, *others)
            )

        # Coordinates of so many cells are rounded; sums in fixed point are rounded as the largest gradient is, which
        # matters where few samples lie on the map.
        rounding = problem["spread"] * torch.finfo(reference.compute_dtype(dtype)).eps + 1e-12
        assert_matches_definition(case, device, 1.5 * TOLERANCE[dtype] + rounding, op)

    check()


def test_any_problem_of_ms_deform_attn_equals_the_definition(device):
    @generated(100)
    @given(
        problem=PROBLEMS,
        dtype=st.sampled_from(list(TOLERANCE)),
        lost=st.sampled_from([0.0, 0.2]),
        strides=st.booleans(),
    )
    def check(problem, dtype, lost, strides):
        compute = reference.compute_dtype(dtype)
        case = make_case(**problem, dtype=torch.float64)
        lose_samples(case.offsets, lost, problem["seed"])
        size = torch.tensor([(w, h) for h, w in case.shapes], dtype=torch.float64)
        locations = case.reference[:, :, None, :, None] + case.offsets / size[:, None]
        weights = case.logits.unflatten(-1, locations.shape[3:5])  # of either sign, and adding up to anything
        stored = [case.value.to(dtype), locations.to(compute), weights.to(compute)]
        expected = [t.double().detach().clone().requires_grad_() for t in stored]
        actual = [t.to(device).clone().requires_grad_() for t in stored]
        wanted = reference.ms_deform_attn(expected[0], case.shapes, *expected[1:])
        value, *others = map(strided, actual) if strides else actual
        out = ms_deform_attn(value, case.shapes, None, *others)
        assert relative_error(out, wanted.detach()) <= 1.5 * TOLERANCE[dtype]
        grad = torch.randn(out.shape, generator=torch.Generator().manual_seed(1)).to(dtype)
        wanted.backward(grad.double())
        out.backward(grad.to(device))
        for name, a, b in zip(("value", "locations", "weights"), actual, expected):
            assert relative_error(a.grad, b.grad) <= 6 * TOLERANCE[dtype], f"gradient of {name}"

    check()


def test_64_images_and_more_equal_the_definition(device):
    assert_matches_definition(make_case(batch=67, queries=3, shapes=[(3, 5)]), device, 2e-6)


@pytest.mark.parametrize(("levels", "points"), [(1, 1), (3, 5), (2, 16), (1, 33), (16, 32)])
def test_any_number_of_samples_up_to_512_equals_the_definition(device, levels, points):
    case = make_case(shapes=[(3, 4)] * levels, points=points, queries=5)
    assert_matches_definition(case, device, 4e-6)


@pytest.mark.parametrize("value_dtype", [torch.bfloat16, torch.float16])
def test_16_bit_values_with_float32_points_keep_the_points_exact(device, value_dtype):
    case = make_case(queries=37, width=24)
    case.value = case.value.to(value_dtype)
    expected = rounded_inputs(case).run(reference.deform_attn)
    assert relative_error(case.to(device=device).run(deform_attn), expected) <= 4e-3
    assert case.run(deform_attn).dtype == value_dtype


def test_boxes_of_no_size_have_finite_gradients(device):
    case = make_case(boxes=True).to(device=device)
    case.reference[..., 2:] = 0
    case = case.leaves()
    case.run(deform_attn).square().sum().backward()
    assert all(t.grad.isfinite().all() for t in case.tensors)
    assert (case.offsets.grad == 0).all()


def test_offsets_that_are_no_numbers_give_no_gradient_to_boxes(device):
    case = make_case(boxes=True)
    case.offsets[0, :, :, :, 0] = math.nan
    case.offsets[1, :, :, :, 1] = -math.inf
    assert_matches_definition(case, device, 2e-6)
    case = case.to(device=device).leaves()
    case.run(deform_attn).sum().backward()
    assert all(t.grad.isfinite().all() for t in case.tensors)


def test_samples_outside_contribute_nothing_and_get_zero_gradients(device):
    case = make_case(width=12).to(device=device)
    outside = torch.tensor([1e3, -1e3, 1e9, -1e9, 1e30, -1e30, math.inf, -math.inf, math.nan], device=device)
    case.offsets[:, :, :, :, 0] = outside[: case.offsets.shape[1]][None, :, None, None, None]
    case = case.leaves()
    case.run(deform_attn).sum().backward()
    assert (case.offsets.grad[:, :, :, :, 0] == 0).all()
    assert all(t.grad.isfinite().all() for t in case.tensors)
    expected = rounded_inputs(case).run(reference.deform_attn)
    assert relative_error(case.run(deform_attn), expected) <= 2e-6


def test_a_map_that_no_sample_touches_gets_exactly_zero_gradient(device):
    case = make_case().to(device=device)
    case.offsets += 1e4
    case = case.leaves()
    out = case.run(deform_attn)
    out.sum().backward()
    assert (out == 0).all()
    assert all((t.grad == 0).all() for t in case.tensors)


def test_values_that_no_sample_reads_do_not_matter(device):
    case = make_case(shapes=[(9, 9)], width=12).to(device=device)
    # All samples between cells (0, 0) and (1, 1); the far corner is not a number.
    case.reference.zero_()
    case.offsets.uniform_(0.55, 1.45)
    clean = case.run(deform_attn)
    case.value[:, 30:] = math.nan
    assert torch.equal(case.run(deform_attn), clean)


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_logits_that_are_not_finite_act_as_in_a_softmax(device, bad):
    case = make_case().to(device=device)
    case.logits[0, 0, 0, 0] = bad
    case.logits[0, 1, 0, 1] = -math.inf
    actual, expected = case.run(deform_attn).cpu(), case.to(device=torch.device("cpu")).run(reference.deform_attn)
    assert torch.equal(actual.isnan(), expected.isnan())
    assert torch.allclose(actual, expected, atol=1e-5, equal_nan=True)


@pytest.mark.parametrize("empty", [{"batch": 0}, {"queries": 0}])
def test_empty_problems_return_empty_results(device, empty):
    case = make_case(**empty).to(device=device).leaves()
    out = case.run(deform_attn)
    out.sum().backward()
    assert out.shape == (case.value.shape[0], case.offsets.shape[1], 12)
    assert all(t.grad.shape == t.shape and (t.grad == 0).all() for t in case.tensors)


def test_memory_layout_of_the_inputs_does_not_matter(device):
    case = make_case(queries=10).to(device=device)
    spread = Case(case.shapes, *map(strided, case.tensors))
    assert not any(t.is_contiguous() for t in spread.tensors)
    assert torch.equal(spread.run(deform_attn), case.run(deform_attn))
    shifted = [torch.empty(t.numel() + 1, device=device)[1:].view(t.shape).copy_(t) for t in case.tensors]
    assert torch.equal(Case(case.shapes, *shifted).run(deform_attn), case.run(deform_attn))


@pytest.mark.parametrize("dtype", TOLERANCE)
def test_ms_deform_attn_on_materialised_inputs_equals_deform_attn(device, dtype):
    compute = reference.compute_dtype(dtype)
    case = make_case(dtype=compute, width=24, queries=20)
    case.value = case.value.to(dtype)
    size = torch.tensor([(w, h) for h, w in case.shapes], dtype=compute)
    locations = case.reference[:, :, None, :, None] + case.offsets / size[:, None]
    weights = case.logits.softmax(-1).unflatten(-1, (2, 3))
    leaves = [t.to(device).requires_grad_() for t in (case.value, locations, weights)]
    out = ms_deform_attn(leaves[0], case.shapes, torch.tensor([0, 35]), *leaves[1:])
    raw = case.to(device=device).leaves()
    raw_out = raw.run(deform_attn)
    assert relative_error(out, raw_out.cpu()) <= TOLERANCE[dtype]
    out.sum().backward()
    raw_out.sum().backward()
    assert relative_error(leaves[0].grad, raw.value.grad.cpu()) <= 4 * TOLERANCE[dtype]
    assert relative_error(leaves[1].grad / size[:, None].to(device), raw.offsets.grad.cpu()) <= max(
        4 * TOLERANCE[dtype], 1e-5
    )
    # The gradient of logits is that of the weights through the softmax.
    through = (weights * (leaves[2].grad.cpu() - (weights * leaves[2].grad.cpu()).sum((3, 4), keepdim=True))).flatten(3)
    assert relative_error(raw.logits.grad, through) <= max(4 * TOLERANCE[dtype], 1e-5)


@pytest.mark.parametrize("instruction_set", ["portable", "avx2", "avx512"])
def test_every_instruction_set_of_the_machine_equals_the_definition(instruction_set):
    script = (
        "import sys, torch, tests.ops.cases as t\n"
        "from piip.ops import _extension\n"
        "try:\n    assert _extension._C.cpu_instruction_set() == sys.argv[1]\n"
        "except ValueError:\n    sys.exit(77)\n"
        "for dtype, tolerance in t.TOLERANCE.items():\n"
        "    for width in (1, 6, 12, 24, 129):\n"
        "        case = t.make_case(width=width, queries=37, dtype=dtype)\n"
        "        t.assert_matches_definition(case, torch.device('cpu'), tolerance)\n"
    )
    environment = os.environ | {"PIIP_CPU": instruction_set}
    run = subprocess.run(
        [sys.executable, "-c", script, instruction_set], env=environment, capture_output=True, text=True
    )
    if run.returncode == 77:
        pytest.skip(f"this machine has no {instruction_set}")
    assert run.returncode == 0, run.stderr
