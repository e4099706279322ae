"""The ConvNeXt branch, against timm's network."""

from __future__ import annotations

import pytest
import timm
import torch

from piip.backbone.config import BackboneConfig
from piip.backbone.piip import PIIP
from piip.branches.hierarchical.config import ConvNeXtConfig
from piip.errors import ConfigError


def test_a_convnext_branch_has_a_block_for_every_layer_between_two_maps() -> None:
    branch = ConvNeXtConfig(model="convnext_atto").build().eval()
    assert branch.depth == 2 + 3 + 7 + 3
    assert [tuple(spec) for spec in branch.specs] == [(40, 4)] * 2 + [(80, 8)] * 3 + [(160, 16)] * 7 + [(320, 32)] * 3
    x = branch.embed(torch.randn(1, 3, 70, 96))
    for index, spec in enumerate(branch.specs):
        x = branch.run_blocks(x, index, index + 1)
        assert x.map.shape == (1, 70 // 4 // (spec.stride // 4), 96 // spec.stride, spec.channels)
    with pytest.raises(
        ConfigError, match=r"'resnet50' can be a branch of no type.*\n  convnext: it is no ConvNeXt of timm"
    ):
        ConvNeXtConfig(model="resnet50").build()


def test_a_single_convnext_gives_its_own_stages() -> None:
    config = {
        "branches": [{"type": "convnext", "model": "convnext_atto"}],
        "resolutions": [64],
        "interactions": [[1, 4, 11, 14]],
        "outputs": [0, 1, 2],
    }
    backbone = PIIP(BackboneConfig.model_validate(config)).eval()
    assert [tuple(spec) for spec in backbone.specs] == [(40, 4), (80, 8), (160, 16), (320, 32)]
    network = timm.create_model("convnext_atto", features_only=True).eval()
    ours = backbone.branches[0].state_dict()
    names = {key: key.replace("stem_", "stem.").replace("stages_", "stages.") for key in network.state_dict()}
    network.load_state_dict({key: ours[name] for key, name in names.items()})
    images = torch.randn(1, 3, 64, 96)
    for x, expected in zip(backbone(images), network(images), strict=True):
        torch.testing.assert_close(x, expected, atol=1e-5, rtol=1e-4)
