"""The feature pyramid of the backbone, against what a transposed convolution is."""

from __future__ import annotations

import math
from typing import Literal

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from piip.backbone.pyramid import SimpleFeaturePyramid
from piip.errors import ConfigError
from piip.features import FeatureSpec


def pyramid_of(
    specs: list[FeatureSpec], *, norm: Literal["group", "layer"] = "group", finest: bool = True
) -> SimpleFeaturePyramid:
    return SimpleFeaturePyramid(specs=specs, norm=norm, finest=finest)


def up2(x: Tensor, layer: torch.nn.ConvTranspose2d) -> Tensor:
    """Kernel 2 at stride 2: every cell becomes a block of 2 x 2 cells, each its own linear map."""
    blocks = torch.einsum("bchw,cdij->bdhiwj", x, layer.weight) + layer.bias[:, None, None, None, None]
    return blocks.reshape(x.shape[0], -1, x.shape[2] * 2, x.shape[3] * 2)


def test_a_simple_feature_pyramid_gives_four_scales_of_one_map() -> None:
    torch.manual_seed(0)
    pyramid = pyramid_of([FeatureSpec(64, 16)])
    x = torch.randn(2, 64, 5, 7)
    quarter, half, same, double = pyramid([x])
    assert [tuple(spec) for spec in pyramid.specs] == [(64, 4), (64, 8), (64, 16), (64, 32)]
    grouped = up2(x, pyramid.up4[0]).view(2, 32, -1)
    grouped = (grouped - grouped.mean(2, keepdim=True)) / (grouped.var(2, unbiased=False, keepdim=True) + 1e-5).sqrt()
    torch.testing.assert_close(quarter, up2(F.gelu(grouped.view(2, 64, 10, 14)), pyramid.up4[3]), atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(half, up2(x, pyramid.up2))
    assert same is x
    torch.testing.assert_close(double, x[:, :, :4, :6].unflatten(3, (3, 2)).unflatten(2, (2, 2)).amax((3, 5)))


def test_a_simple_feature_pyramid_of_a_plain_vit_normalises_over_channels() -> None:
    torch.manual_seed(0)
    pyramid = pyramid_of([FeatureSpec(32, 16)], norm="layer")
    x = 3 * torch.randn(1, 32, 3, 4) + 1
    hidden = up2(x, pyramid.up4[0])
    mean, variance = hidden.mean(1, keepdim=True), hidden.var(1, unbiased=False, keepdim=True)
    expected = up2(F.gelu((hidden - mean) / (variance + 1e-6).sqrt()), pyramid.up4[3])
    torch.testing.assert_close(pyramid([x])[0], expected, atol=1e-5, rtol=1e-5)
    assert pyramid_of([FeatureSpec(32, 16)]).state_dict().keys() == pyramid.state_dict().keys()


def test_a_simple_feature_pyramid_of_four_maps_takes_one_for_each_scale() -> None:
    torch.manual_seed(0)
    widths = (32, 64, 96, 128)
    pyramid = pyramid_of([FeatureSpec(width, 16) for width in widths])
    assert [tuple(spec) for spec in pyramid.specs] == [(32, 4), (64, 8), (96, 16), (128, 32)]
    maps = [torch.randn(1, width, 4, 6) for width in widths]
    levels = pyramid(maps)
    torch.testing.assert_close(levels[0], pyramid.up4(maps[0]))
    torch.testing.assert_close(levels[1], up2(maps[1], pyramid.up2))
    assert levels[2] is maps[2]
    torch.testing.assert_close(levels[3], F.max_pool2d(maps[3], 2))


def test_a_simple_feature_pyramid_can_leave_out_its_finest_level() -> None:
    pyramid = pyramid_of([FeatureSpec(64, 16)], finest=False)
    assert [tuple(spec) for spec in pyramid.specs] == [(64, 8), (64, 16), (64, 32)]
    assert [tuple(x.shape[2:]) for x in pyramid([torch.randn(1, 64, 4, 6)])] == [(8, 12), (4, 6), (2, 3)]
    assert pyramid.state_dict().keys() == {"up2.weight", "up2.bias"}


def test_a_simple_feature_pyramid_starts_as_the_official_one() -> None:
    pyramid = pyramid_of([FeatureSpec(96, 16)])
    for conv in (pyramid.up4[0], pyramid.up4[3], pyramid.up2):
        assert conv.weight.std().item() == pytest.approx(math.sqrt(2 / (2 * 2 * 96)), rel=0.02)
        assert not conv.bias.any()
    assert (pyramid.up4[1].weight == 1).all()
    assert not pyramid.up4[1].bias.any()


@pytest.mark.parametrize(("stride", "finest"), [(14, True), (6, True), (7, False)])
def test_strides_that_would_not_be_whole_pixels_are_refused(stride: int, finest: bool) -> None:
    with pytest.raises(ConfigError, match=f"have a stride of {stride} pixels; set its patch_size to a multiple of"):
        pyramid_of([FeatureSpec(32, stride)], finest=finest)
