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

from piip.ops import deform_attn, ms_deform_attn, reference
from tests.ops.cases import Case, make_case, relative_error, rounded_inputs

TOLERANCE = {torch.float32: 2e-6, torch.float64: 1e-13, torch.bfloat16: 8e-3, torch.float16: 1e-3}
WIDTHS = (1, 3, 6, 8, 12, 24, 32, 40, 100, 128, 129)


def assert_matches_definition(case: Case, device: torch.device, tolerance: float, op=deform_attn) -> None:
    """Values and all four gradients."""
    expected_case = rounded_inputs(case).leaves()
    expected = expected_case.run(reference.deform_attn)
    actual_case = case.to(device=device).leaves()
    actual = actual_case.run(op)
    assert actual.dtype == case.value.dtype
    assert relative_error(actual, expected) <= tolerance
    grad = torch.randn(expected.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64).to(actual.dtype)
    expected.backward(grad.double())
    actual.backward(grad.to(device))
    for name in ("value", "reference", "offsets", "logits"):
        wanted, got = getattr(expected_case, name).grad, getattr(actual_case, name).grad
        assert got.dtype == getattr(case, name).dtype
        # References far from any cell of a coarse map can have gradients that cancel almost completely.
        assert relative_error(got, wanted) <= 4 * tolerance, f"gradient of {name}"


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


@settings(max_examples=60, deadline=None, derandomize=True)
@given(
    shapes=st.lists(st.tuples(st.integers(1, 9), st.integers(1, 9)), min_size=1, max_size=5),
    batch=st.integers(1, 3),
    queries=st.integers(1, 40),
    heads=st.integers(1, 4),
    width=st.sampled_from(WIDTHS),
    points=st.integers(1, 8),
    shared_batch=st.booleans(),
    shared_level=st.booleans(),
    boxes=st.booleans(),
    spread=st.sampled_from([0.5, 3.0, 50.0]),
    seed=st.integers(0, 100),
)
def test_any_problem_equals_the_definition(**problem):
    assert_matches_definition(make_case(**problem), torch.device("cpu"), 3e-6)


def test_64_images_and_more_equal_the_definition(device):
    assert_matches_definition(make_case(batch=67, queries=3, shapes=[(3, 5)]), device, 2e-6)


@pytest.mark.parametrize("value_dtype", [torch.bfloat16, torch.float16])
def test_16_bit_values_with_float32_points_keep_the_points_exact(device, value_dtype):
    case = make_case(queries=37, width=24)
    case.value = case.value.to(value_dtype)
    expected = rounded_inputs(case).run(reference.deform_attn)
    assert relative_error(case.to(device=device).run(deform_attn), expected) <= 4e-3
    assert case.run(deform_attn).dtype == value_dtype


def test_bfloat16_error_on_a_pyramid_grid_stays_within_2e_3(device):
    side, queries = 70, 42 * 42
    axis = (torch.arange(42) + 0.5) / 42
    ref = torch.stack(torch.meshgrid(axis, axis, indexing="xy"), -1).reshape(1, queries, 1, 2)
    generator = torch.Generator().manual_seed(0)
    value = torch.randn(1, side * side, 16, 12, generator=generator).bfloat16()
    offsets = (torch.randn(1, queries, 16, 1, 4, 2, generator=generator) * 3).bfloat16()
    case = Case([(side, side)], value, ref, offsets, torch.randn(1, queries, 16, 4, generator=generator).bfloat16())
    expected = rounded_inputs(case).run(reference.deform_attn)
    actual = case.to(device=device).run(deform_attn).cpu().double()
    assert (actual - expected).norm() / expected.norm() <= 2e-3


def test_boxes_of_no_size_have_finite_gradients(device):
    case = make_case(boxes=True).to(device=device)
    case.reference[..., 2:] = 0
    case = case.leaves()
    case.run(deform_attn).square().sum().backward()
    assert all(t.grad.isfinite().all() for t in case.tensors)
    assert (case.offsets.grad == 0).all()


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
    strided = Case(
        case.shapes,
        *(
            t.repeat_interleave(2, dim=-2).transpose(0, 1).contiguous().transpose(0, 1)[..., ::2, :]
            for t in case.tensors
        ),
    )
    assert not any(t.is_contiguous() for t in strided.tensors)
    assert torch.equal(strided.run(deform_attn), case.run(deform_attn))
    shifted = torch.empty(case.value.numel() + 1, device=device)[1:].view(case.value.shape).copy_(case.value)
    assert torch.equal(Case(case.shapes, shifted, *case.tensors[1:]).run(deform_attn), case.run(deform_attn))


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


def test_ms_deform_attn_gradients_equal_the_definition(device):
    case = make_case(dtype=torch.float64)
    locations = torch.rand(2, 9, 2, 2, 3, 2, dtype=torch.float64) * 1.4 - 0.2
    weights = torch.randn(2, 9, 2, 2, 3, dtype=torch.float64)
    grads = []
    for op, to in ((reference.ms_deform_attn, "cpu"), (lambda v, s, *r: ms_deform_attn(v, s, None, *r), device)):
        leaves = [t.to(to).requires_grad_() for t in (case.value, locations, weights)]
        op(leaves[0], case.shapes, *leaves[1:]).square().sum().backward()
        grads.append([leaf.grad for leaf in leaves])
    for expected, actual in zip(*grads):
        assert relative_error(actual, expected) <= 1e-12


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_results_are_bitwise_the_same_for_any_number_of_threads(dtype):
    case = make_case(shapes=[(13, 11), (6, 5)], batch=1, queries=150, heads=3, width=12, dtype=dtype)
    before, results = torch.get_num_threads(), []
    try:
        for threads in (1, 2, 3, 7):
            torch.set_num_threads(threads)
            leaves = case.leaves()
            out = leaves.run(deform_attn)
            out.float().square().sum().backward()
            results.append([out.detach(), *(t.grad for t in leaves.tensors)])
    finally:
        torch.set_num_threads(before)
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other))


@pytest.mark.cuda
def test_the_deterministic_cuda_backward_repeats_and_agrees_with_the_fast_one(device):
    if device.type == "cpu":
        pytest.skip("about CUDA")
    case = make_case(shapes=[(4, 4)], queries=500, width=32).to(device=device)
    grads = []
    for deterministic in (True, True, False):
        torch.use_deterministic_algorithms(deterministic)
        leaves = case.leaves()
        leaves.run(deform_attn).square().sum().backward()
        grads.append(leaves.value.grad)
    assert torch.equal(grads[0], grads[1])
    assert relative_error(grads[2], grads[0].cpu()) <= 1e-5


@pytest.mark.parametrize("instruction_set", ["portable", "avx2", "avx512"])
def test_every_instruction_set_of_the_machine_equals_the_definition(instruction_set):
    script = (
        "import sys, torch, tests.ops.test_deform_attn as t\n"
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
