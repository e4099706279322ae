"""Numbers that are not finite: what they may spread to, in the kernels and in the definitions."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F

from piip.ops import ms_deform_attn, pyramid_resize, reference
from tests.ops.cases import relative_error


def attention_by_kernel(*arguments):
    value, shapes, locations, weights = arguments
    return ms_deform_attn(value, shapes, None, locations, weights)


@pytest.mark.parametrize("number", [math.inf, -math.inf, math.nan])
@pytest.mark.parametrize("run", [attention_by_kernel, reference.ms_deform_attn])
def test_a_weight_that_is_not_finite_spoils_its_query_and_head_only(device, run, number):
    value, locations = torch.randn(2, 26, 2, 6), torch.rand(2, 3, 2, 2, 4, 2) * 0.5 + 0.25
    weights = torch.rand(2, 3, 2, 2, 4)
    shapes, clean = [(4, 5), (2, 3)], weights.clone()
    weights[1, 2, 0, 1, 3] = number
    found, expected = (
        run(value.to(device), shapes, locations.to(device), w.to(device)).cpu().unflatten(-1, (2, 6))
        for w in (weights, clean)
    )
    spoilt = torch.zeros(2, 3, 2, dtype=torch.bool)
    spoilt[1, 2, 0] = True
    assert not found[spoilt].isfinite().any()
    assert relative_error(found[~spoilt], expected[~spoilt]) < 1e-6


@pytest.mark.parametrize("number", [math.inf, math.nan])
@pytest.mark.parametrize("run", ["kernel", "definition"])
def test_a_pixel_beyond_the_valid_size_spoils_nothing(device, run, number):
    images = torch.rand(1, 3, 20, 24)
    images[:, :, 12:], images[:, :, :, 15:] = number, number
    sizes, settings = [(9, 11), (20, 24)], ("bilinear", False, [0.5] * 3, [2.0] * 3, torch.float32, [(12, 15)])
    if run == "kernel":
        keys = ("mode", "antialias", "mean", "std", "dtype", "valid_sizes")
        levels = pyramid_resize(images.to(device), sizes, **dict(zip(keys, settings)))
    else:
        levels = reference.pyramid_resize(images, sizes, [None, None], *settings)
    assert all(level.isfinite().all() for level in levels)


@pytest.mark.parametrize("number", [math.inf, math.nan])
def test_a_level_of_the_images_own_size_keeps_a_pixel_that_is_not_finite_to_itself(device, number):
    images = torch.rand(1, 3, 20, 24)
    images[0, 1, 7, 9] = number
    level = pyramid_resize(images.to(device), [(20, 24)], mean=[0.5] * 3, std=[2.0] * 3)[0].cpu()
    spoilt = ~images.isfinite()
    assert torch.equal(~level.isfinite(), spoilt)


@pytest.mark.parametrize("shape", [(1, 1, 25, 3), (1, 2, 3, 25)])
@pytest.mark.parametrize("mode", ["bilinear", "bicubic"])
def test_the_definition_differentiates_an_antialiased_axis_that_keeps_its_size(device, shape, mode):
    """The forward copies such an axis; the backward of F.interpolate alone does not know it."""
    images = torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(0)).requires_grad_()
    size = tuple(math.floor(side * 1.3) for side in shape[2:])
    settings = (mode, True, None, None, torch.float64, None)

    def definition(x):
        return reference.pyramid_resize(x, [size], [(1.3, 1.3)], *settings)[0]

    assert torch.autograd.gradcheck(definition, images)
    assert torch.equal(
        definition(images), F.interpolate(images, scale_factor=1.3, mode=mode, antialias=True, align_corners=False)
    )
    leaf = images.detach().to(device).requires_grad_()
    grad = torch.randn(*shape[:2], *size, dtype=torch.float64)
    pyramid_resize(leaf, scale_factors=[1.3], mode=mode, antialias=True)[0].backward(grad.to(device))
    definition(images).backward(grad)
    assert relative_error(leaf.grad, images.grad) < 1e-12
