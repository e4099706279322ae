"""The sums of deformable attention's backward: many terms per cell, any magnitude, and always in the same order."""

from __future__ import annotations

import math

import pytest
import torch

from piip.ops import _extension, deform_attn, ms_deform_attn, reference
from tests.ops.cases import TOLERANCE, assert_matches_definition, make_case, relative_error
from tests.ops.emulated import Emulated


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


@pytest.mark.parametrize("width", [1, 6, 24, 40, 100])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_many_queries_per_cell_equal_the_definition(device, width, dtype):
    # 600 samples per head and image fall on 16 cells; each image has other values.
    case = make_case(shapes=[(4, 4)], batch=3, queries=300, heads=1, width=width, points=2, dtype=dtype)
    # Sums of many terms in float32.
    assert_matches_definition(case, device, max(TOLERANCE[dtype], 5e-6))


@pytest.mark.parametrize("level", [1e-30, 1e30])
def test_gradients_of_all_magnitudes_equal_the_definition(device, level):
    # From query to query a gradient can be anything, and one that dwarfs the others can lie anywhere.
    case = make_case(shapes=[(9, 9)], queries=81, width=24, spread=0.5)
    case.value *= 1e-3  # products of gradients and values are still numbers
    generator = torch.Generator().manual_seed(2)
    factors = level * 10 ** torch.linspace(0, 6, 81, dtype=torch.float64)[torch.randperm(81, generator=generator)]
    grad = torch.randn(2, 81, 48, dtype=torch.float64, generator=generator) * factors[:, None]
    assert_matches_definition(case, device, 2e-6, grad=grad)
    # A query without a neighbour keeps its own precision, whatever the others have.
    far = make_case(shapes=[(1, 64)], queries=2, heads=1, width=6, points=1, batch=1)
    far.offsets.zero_()
    far.reference[...] = torch.tensor([[0.1, 0.5], [0.9, 0.5]])[None, :, None]
    grad = torch.ones(1, 2, 6, dtype=torch.float64) * torch.tensor([1e-6, 1.0])[:, None] * level
    leaves = far.to(device=device).leaves()
    leaves.run(deform_attn).backward(grad.float().to(device))
    found = leaves.value.grad.cpu().double()[0, :, 0].sum(1)
    assert relative_error(found[:32].sum(), 6e-6 * torch.tensor(level, dtype=torch.float64)) <= 1e-4


@pytest.mark.parametrize("queries", [1, 255, 2000])
@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_sums_of_equal_gradients_on_one_cell_are_exact_to_rounding(device, queries, sign):
    # The largest sum that fixed-point numbers must hold: every sample adds the largest gradient to the same cell.
    case = make_case(shapes=[(1, 1)], batch=1, queries=queries, heads=1, width=8, points=1)
    case.offsets.zero_()
    case.reference[...] = 0.5
    leaves = case.to(device=device).leaves()
    out = leaves.run(deform_attn)
    out.backward(torch.full_like(out, sign * 3.0))
    assert relative_error(leaves.value.grad, torch.full((1, 1, 1, 8), sign * 3.0 * queries)) <= 1e-5


def test_weights_of_any_size_equal_the_definition(device):
    # Given weights scale what a sample adds; they need not add up to 1.
    case = make_case(shapes=[(4, 4)], queries=100, width=12, dtype=torch.float64)
    size = torch.tensor([(w, h) for h, w in case.shapes], dtype=torch.float64)
    locations = (case.reference[:, :, None, :, None] + case.offsets / size[:, None]).float()
    weights = case.logits.unflatten(-1, (1, 3)).float() * 10 ** torch.linspace(-3, 5, 100)[:, None, None, None]
    stored = [case.value.float(), locations, weights]
    expected = [t.double().requires_grad_() for t in stored]
    actual = [t.to(device).requires_grad_() for t in stored]
    wanted = reference.ms_deform_attn(expected[0], case.shapes, *expected[1:])
    out = ms_deform_attn(actual[0], case.shapes, None, *actual[1:])
    grad = torch.randn(out.shape, generator=torch.Generator().manual_seed(1))
    wanted.backward(grad.double())
    out.backward(grad.to(device))
    for name, a, b in zip(("value", "locations", "weights"), actual, expected):
        assert relative_error(a.grad, b.grad) <= 1e-5, f"gradient of {name}"


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_gradients_that_are_no_numbers_do_not_vanish(device, bad):
    case = make_case(width=12)
    leaves = case.to(device=device).leaves()
    out = leaves.run(deform_attn)
    grad = torch.ones_like(out)
    grad[1, 4, 3] = bad
    out.backward(grad)
    expected = case.leaves()
    expected.run(reference.deform_attn).backward(grad.cpu())
    lost = expected.value.grad.isfinite().logical_not()
    assert lost.any()
    assert not leaves.value.grad.cpu()[lost].isfinite().any()


@pytest.mark.parametrize("width", [3, 6, 32, 100])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_the_deterministic_cuda_backward_repeats(accelerator, width, dtype):
    case = make_case(shapes=[(4, 4)], queries=150, width=width, dtype=dtype).to(device=accelerator)
    emulation, grads = _extension.CPU, []
    for reversed in (False, True, False):
        if isinstance(emulation, Emulated):
            emulation.reverse(reversed)  # a GPU chooses its order itself
        leaves = case.leaves()
        leaves.run(deform_attn).float().square().sum().backward()
        grads.append(leaves.value.grad)
    assert torch.equal(grads[0], grads[1])
    assert torch.equal(grads[0], grads[2])
