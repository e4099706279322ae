"""pyramid_resize against F.interpolate, in both coordinate rules."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from piip.ops import pyramid_resize, reference
from tests.ops.cases import relative_error

# These kernels are the same for all architectures and in both modes.
PLACES = ["cpu", "emulated-800-fast", "emulated-900-deterministic", "cuda-fast", "cuda-deterministic"]
MEAN, STD = [123.7, 116.3, 103.5], [58.4, 57.1, 57.4]
SMALL = {torch.float32: 2e-6, torch.float64: 1e-14, torch.bfloat16: 8e-3, torch.float16: 1e-3}


def interpolate(images, mode="bilinear", antialias=False, **target):
    compute = torch.float64 if images.dtype == torch.float64 else torch.float32
    resized = F.interpolate(images.to(compute), mode=mode, antialias=antialias, align_corners=False, **target)
    return resized.to(images.dtype)


@pytest.mark.parametrize("mode", ["bilinear", "bicubic"])
@pytest.mark.parametrize("antialias", [False, True])
@pytest.mark.parametrize("dtype", SMALL)
def test_levels_and_gradients_equal_interpolate_by_factor_and_by_size(device, mode, antialias, dtype):
    images = torch.randn(2, 3, 45, 51, dtype=torch.float64).to(dtype)
    factors = [448 / 1344, 0.77, 1.3, (0.5, 1.2)]
    sizes = [(20, 17), (45, 20), (90, 100), (1, 1)]
    ours = images.clone().to(device).requires_grad_()
    theirs = images.clone().requires_grad_()
    wide = theirs.to(reference.compute_dtype(dtype))
    levels = pyramid_resize(ours, scale_factors=factors, mode=mode, antialias=antialias)
    levels += pyramid_resize(ours, sizes, mode=mode, antialias=antialias)
    expected = [interpolate(wide, mode, antialias, scale_factor=f).to(dtype) for f in factors]
    expected += [interpolate(wide, mode, antialias, size=s).to(dtype) for s in sizes]
    for level, wanted in zip(levels, expected):
        assert level.dtype == dtype
        assert level.shape == wanted.shape
        assert relative_error(level, wanted.detach()) <= SMALL[dtype]
    grads = [torch.randn(level.shape, dtype=torch.float64).to(dtype) for level in levels]
    torch.autograd.backward(levels, [g.to(device) for g in grads])
    torch.autograd.backward(expected, grads)
    assert relative_error(ours.grad, theirs.grad) <= 2 * SMALL[dtype]


def test_official_factor_that_does_not_divide_keeps_its_own_step():
    images = torch.arange(896.0).expand(1, 1, 896, 896)
    level = pyramid_resize(images, scale_factors=[448 / 1344])[0]
    assert level.shape == (1, 1, 298, 298)
    assert torch.equal(level, interpolate(images, scale_factor=448 / 1344))
    assert (level - pyramid_resize(images, [(298, 298)])[0]).abs().max() > 1  # the size rule stretches instead


@settings(
    max_examples=150, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    height=st.integers(1, 40),
    width=st.integers(1, 40),
    out=st.tuples(st.integers(1, 60), st.integers(1, 60)),
    factor=st.floats(0.05, 3.0),
    mode=st.sampled_from(["bilinear", "bicubic"]),
    antialias=st.booleans(),
    seed=st.integers(0, 50),
)
def test_any_size_and_factor_equals_interpolate(device, height, width, out, factor, mode, antialias, seed):
    images = torch.randn(1, 2, height, width, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    calls = [({"sizes": [out]}, {"size": out})]
    if int(height * factor) and int(width * factor):
        calls.append(({"scale_factors": [factor]}, {"scale_factor": factor}))
    for ours, theirs in calls:
        level = pyramid_resize(images.to(device), mode=mode, antialias=antialias, **ours)[0].cpu()
        # Antialiased, F.interpolate of torch 2.11 repeats the first pixel of a single column; a row is right.
        turned = antialias and level.shape[3] == 1
        if turned and "size" in theirs:
            theirs = {"size": out[::-1]}
        source = images.mT if turned else images
        expected = F.interpolate(source, mode=mode, antialias=antialias, align_corners=False, **theirs)
        expected = expected.mT if turned else expected
        # A bilinear or antialiased axis that keeps its size is copied, as F.interpolate does on the CPU.
        torch.testing.assert_close(level, expected, atol=1e-12, rtol=0)


def test_a_single_antialiased_column_is_that_of_the_turned_image(device):
    images = torch.randn(1, 2, 5, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    row = F.interpolate(images.mT, size=(1, 3), mode="bilinear", antialias=True)
    level = pyramid_resize(images.to(device), [(3, 1)], antialias=True)[0]
    definition = reference.pyramid_resize(images, [(3, 1)], [None], "bilinear", True, None, None, torch.float64, None)
    for found in (level.cpu(), definition[0]):
        torch.testing.assert_close(found, row.mT, atol=1e-12, rtol=0)


@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_uint8_is_normalised_on_the_way(device, channels_last, dtype):
    images = torch.randint(0, 256, (2, 3, 33, 47), dtype=torch.uint8)
    mean, std = torch.tensor(MEAN).double()[:, None, None], torch.tensor(STD).double()[:, None, None]
    normalised = ((images.double() - mean) / std).float()  # the coordinates are in float32
    given = (images.permute(0, 2, 3, 1).contiguous() if channels_last else images).to(device)
    levels = pyramid_resize(given, scale_factors=[1.0, 0.5, 0.3], mean=MEAN, std=STD, dtype=dtype)
    expected = [normalised, *(F.interpolate(normalised, scale_factor=f, mode="bilinear") for f in (0.5, 0.3))]
    for level, wanted in zip(levels, expected):
        assert level.dtype == dtype
        assert level.is_contiguous()
        assert relative_error(level, wanted) <= max(SMALL[dtype], 5e-6)


def test_uint8_without_statistics_keeps_its_range():
    images = torch.randint(0, 256, (1, 3, 8, 8), dtype=torch.uint8)
    level = pyramid_resize(images, scale_factors=[1.0])[0]
    assert level.dtype == torch.float32
    assert torch.equal(level, images.float())


def test_valid_sizes_equal_padding_after_normalisation(device):
    sizes = [(30, 47), (33, 20), (33, 47)]
    padded, raw = torch.zeros(3, 3, 33, 47), torch.full((3, 3, 33, 47), 255, dtype=torch.uint8)
    for i, (h, w) in enumerate(sizes):
        image = torch.randint(0, 256, (3, h, w), dtype=torch.uint8)
        raw[i, :, :h, :w] = image
        padded[i, :, :h, :w] = (image - torch.tensor(MEAN)[:, None, None]) / torch.tensor(STD)[:, None, None]
    levels = pyramid_resize(raw.to(device), scale_factors=[1.0, 0.5, 0.3], mean=MEAN, std=STD, valid_sizes=sizes)
    for level, wanted in zip(
        levels, [padded, interpolate(padded, scale_factor=0.5), interpolate(padded, scale_factor=0.3)]
    ):
        assert relative_error(level, wanted) <= 2e-6
    assert (levels[0][0, :, 30:] == 0).all()


def test_padding_gets_no_gradient(device):
    images = torch.randn(1, 3, 16, 16, device=device, requires_grad=True)
    levels = pyramid_resize(images, scale_factors=[1.0, 0.5], valid_sizes=[(9, 16)])
    sum(level.sum() for level in levels).backward()
    assert (images.grad[:, :, 9:] == 0).all()
    assert (images.grad[:, :, :9] > 0).all()


def test_a_level_of_the_input_size_is_the_input_itself(device):
    images = torch.randn(1, 3, 9, 8, device=device, requires_grad=True)
    by_factor, by_size = pyramid_resize(images, scale_factors=[1.0])[0], pyramid_resize(images, [(9, 8)])[0]
    assert by_factor is images
    assert by_size is images
    assert pyramid_resize(images, scale_factors=[1.0], valid_sizes=[(9, 8)])[0] is images


def test_a_level_whose_gradient_is_not_needed_is_left_out(device):
    images = torch.randn(1, 3, 12, 12, device=device, requires_grad=True)
    level = pyramid_resize(images, scale_factors=[0.5, 0.25])[1]
    level.sum().backward()
    other = images.detach().clone().requires_grad_()
    interpolate(other, scale_factor=0.25).sum().backward()
    assert torch.allclose(images.grad, other.grad, atol=1e-6)


def test_an_empty_batch_gives_empty_levels(device):
    images = torch.randn(0, 3, 8, 8, device=device, requires_grad=True)
    levels = pyramid_resize(images, scale_factors=[1.0, 0.5], valid_sizes=[])
    assert [level.shape for level in levels] == [(0, 3, 8, 8), (0, 3, 4, 4)]
    levels[1].sum().backward()
    assert images.grad.shape == images.shape


def test_memory_layout_of_the_images_does_not_matter(device):
    images = torch.randn(2, 3, 12, 14, device=device)
    expected = pyramid_resize(images, scale_factors=[0.5])[0]
    assert torch.equal(pyramid_resize(images.to(memory_format=torch.channels_last), scale_factors=[0.5])[0], expected)
    shifted = torch.empty(images.numel() + 1, device=device)[1:].view(images.shape).copy_(images)
    assert torch.equal(pyramid_resize(shifted, scale_factors=[0.5])[0], expected)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(
    ("size", "levels"),
    [((1003, 1237), [(1003, 1237), (719, 885)]), ((1008, 1248), [(1008, 1248), (720, 896), (432, 544)])],
    ids=["odd rows", "whole vectors"],
)
@pytest.mark.parametrize("descending", [True, False])
@pytest.mark.parametrize("valid", [None, [(1001, 1230)]])
def test_levels_too_large_for_the_caches_equal_the_definition(device, dtype, size, levels, descending, valid):
    # Such levels are written past the caches, while they are computed where rows are whole vectors.
    images = torch.randint(0, 256, (1, *size, 3), dtype=torch.uint8, device=device)
    levels, planar = levels if descending else levels[::-1], images.permute(0, 3, 1, 2).cpu()
    found = pyramid_resize(images, levels, mean=MEAN, std=STD, dtype=dtype, valid_sizes=valid)
    # In float32, as the coordinates of 885 columns are.
    factors = [None] * len(levels)
    settings = ("bilinear", False, MEAN, STD, torch.float32, valid)
    for level, wanted in zip(found, reference.pyramid_resize(planar, levels, factors, *settings)):
        assert relative_error(level, wanted) <= max(SMALL[dtype], 5e-6)


@pytest.mark.parametrize("mode", ["bilinear", "bicubic"])
@pytest.mark.parametrize("antialias", [False, True])
@pytest.mark.parametrize("factor", [0.9, 5 / 7, 3 / 7, 0.21])
def test_a_pixel_that_is_no_number_stays_within_its_reach(device, mode, antialias, factor):
    images = torch.rand(1, 1, 60, 200)
    expected = interpolate(images, mode, antialias, scale_factor=factor)
    images[0, 0, 30, 100] = float("nan")
    level = pyramid_resize(images.to(device), scale_factors=[factor], mode=mode, antialias=antialias)[0].cpu()
    # Vectors reach further than the widest filter, which is two pixels or two outputs to each side.
    row, column, reach = int(30 * factor), int(100 * factor), 4
    for result in (level, expected):
        result[0, 0, row - reach : row + reach + 1, column - reach : column + reach + 1] = 0
    # PyTorch 2.9 and older round the coordinates of 200 columns differently.
    assert relative_error(level, expected) <= 1e-5


def test_results_are_bitwise_the_same_for_any_number_of_threads():
    images = torch.randn(1, 3, 300, 70)
    before, results = torch.get_num_threads(), []
    try:
        for threads in (1, 2, 5):
            torch.set_num_threads(threads)
            leaf = images.clone().requires_grad_()
            levels = pyramid_resize(leaf, scale_factors=[0.7, 0.3], mode="bicubic")
            torch.autograd.backward([level.square().sum() for level in levels])
            results.append([*levels, leaf.grad])
    finally:
        torch.set_num_threads(before)
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other))


def test_the_definition_agrees(device):
    images = torch.randint(0, 256, (2, 3, 20, 22), dtype=torch.uint8)
    factors = [(1.0, 1.0), (0.5, 0.5)]
    expected = reference.pyramid_resize(
        images, [(20, 22), (10, 11)], factors, "bilinear", False, MEAN, STD, torch.float32, [(20, 20), (9, 22)]
    )
    levels = pyramid_resize(
        images.to(device), scale_factors=[1.0, 0.5], mean=MEAN, std=STD, valid_sizes=[(20, 20), (9, 22)]
    )
    for level, wanted in zip(levels, expected):
        assert relative_error(level, wanted) <= 2e-6
