"""The necks, against torchvision's feature pyramid network."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor
from torchvision.ops import FeaturePyramidNetwork
from torchvision.ops.feature_pyramid_network import LastLevelMaxPool

from piip.errors import ConfigError
from piip.features import FeatureSpec
from piip.necks.config import FPNConfig, NoNeckConfig

SPECS = [FeatureSpec(12, 4), FeatureSpec(20, 8), FeatureSpec(16, 16), FeatureSpec(8, 32)]


def features(*sizes: tuple[int, int]) -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(2, spec.channels, *size, generator=generator) for spec, size in zip(SPECS, sizes, strict=True)]


# The second set is what floor and ceil leave of an image whose sides are no multiples of 64.
@pytest.mark.parametrize("sizes", [((24, 32), (12, 16), (6, 8), (3, 4)), ((21, 35), (11, 17), (5, 9), (3, 4))])
def test_fpn_equals_torchvisions(sizes: tuple[tuple[int, int], ...]) -> None:
    ours = FPNConfig(out_channels=24, levels=5).build(SPECS)
    theirs = FeaturePyramidNetwork([spec.channels for spec in SPECS], 24, LastLevelMaxPool())
    for level in range(4):
        theirs.inner_blocks[level][0].load_state_dict(ours.lateral[level].state_dict())
        theirs.layer_blocks[level][0].load_state_dict(ours.output[level].state_dict())
    maps = features(*sizes)
    expected = theirs({str(level): x for level, x in enumerate(maps)})
    for x, y in zip(ours(maps), expected.values(), strict=True):
        torch.testing.assert_close(x, y)


def test_fpn_specs_say_what_comes_out() -> None:
    fpn = FPNConfig(out_channels=24, levels=6).build(SPECS)
    assert [tuple(spec) for spec in fpn.specs] == [(24, 4), (24, 8), (24, 16), (24, 32), (24, 64), (24, 128)]
    maps = fpn(features((48, 64), (24, 32), (12, 16), (6, 8)))
    assert [(x.shape[1], 192 // x.shape[2]) for x in maps] == [tuple(spec) for spec in fpn.specs[:5]] + [(24, 96)]


def test_fpn_starts_from_xavier_and_zero_biases() -> None:
    fpn = FPNConfig(out_channels=96, levels=2).build([FeatureSpec(64, 4), FeatureSpec(128, 8)])
    for conv, fans in ((fpn.lateral[1], 128 + 96), (fpn.output[0], (96 + 96) * 9)):
        bound = math.sqrt(6 / fans)
        assert conv.weight.abs().max() <= bound
        assert conv.weight.std().item() == pytest.approx(bound / math.sqrt(3), rel=0.03)
        assert not conv.bias.any()


def test_fpn_refuses_fewer_levels_than_maps() -> None:
    with pytest.raises(ConfigError, match=r"neck\.levels of at least 4, got 3"):
        FPNConfig(levels=3).build(SPECS)


def test_no_neck_passes_its_maps_on() -> None:
    neck = NoNeckConfig().build(SPECS)
    maps = features((24, 32), (12, 16), (6, 8), (3, 4))
    assert neck.specs == SPECS
    assert neck(maps) == maps
