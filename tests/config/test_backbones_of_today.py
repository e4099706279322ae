"""The shipped configs on foundation backbones: whole, without memory, and trained in miniature."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import ValidationError

from piip.backbone.config import BackboneConfig
from piip.backbone.piip import PIIP
from piip.config.load import load_config, shipped_configs
from piip.engine.train import train
from piip.load import build_model
from tests.engine.tiny import tiny_config

NAMES = [name for name in shipped_configs() if "dinov3" in name or "siglip" in name]


@pytest.mark.parametrize("name", NAMES)
def test_it_is_built_and_run_whole(name: str) -> None:
    """On the meta device, on a large image and on a wide one, with the maps that its neck was built for."""
    config = load_config(name)
    with torch.device("meta"):
        model = build_model(config.model).eval()
        for size in ((1024, 1024), (512, 1024)):
            maps = model.neck(model.backbone(torch.empty(2, 3, *size)))
            if config.model.backbone.merge:
                specs = model.neck.specs
                assert [tuple(x.shape) for x in maps] == [
                    (2, s.channels, size[0] // s.stride, size[1] // s.stride) for s in specs
                ]
    assert len(NAMES) == 6


@pytest.mark.parametrize(
    "backbone",
    [
        {  # as mask_rcnn_piip_dinov3_sbl: windows, registers, rotary positions
            "branches": [{"type": "timm_vit", "model": "vit_small_patch16_dinov3", "window_size": 3}, {"size": "T"}],
            "interactions": 2,
        },
        {  # as mask_rcnn_piip_dinov3_ct_vb: a pyramid from the stages of a ConvNeXt beside a ViT that is frozen
            "branches": [
                {"type": "convnext", "model": "convnext_atto"},
                {"type": "timm_vit", "model": "vit_small_patch16_dinov3", "freeze": True},
            ],
            "interactions": [[1, 4, 11, 14], [2, 5, 8, 11]],
            "outputs": [0, 1, 2],
            "merge_width": 64,
        },
    ],
    ids=["rotary", "stages"],
)
def test_a_detector_of_the_same_kind_trains_in_miniature(backbone: dict[str, Any], tmp_path: Path) -> None:
    backbone = backbone | {"resolutions": [96, 64], "interaction": {"num_heads": 4}}
    config = tiny_config(
        tmp_path / "data",
        model__backbone=backbone,
        data__train_transforms={"resize": [[96, 96]], "pad_divisor": 32},
        data__val_transforms={"resize": [[96, 96]], "pad_divisor": 32},
        schedule__epochs=1,
    )
    metrics = train(config, output=tmp_path / "run")
    assert metrics
    assert (tmp_path / "run" / "checkpoints" / "last").exists()


def test_windows_larger_than_the_map_and_blocks_that_do_not_exist_are_told(caplog: pytest.LogCaptureFixture) -> None:
    branch = {"model": "vit_small_patch16_dinov3", "window_size": 28, "global_blocks": [2, 50]}
    with torch.device("meta"):
        PIIP(BackboneConfig.model_validate({"branches": [branch], "resolutions": [224]}))
    assert "branches.0: windows of 28 tokens are larger than the map, 14 tokens for 224 pixels" in caplog.text
    assert "branches.0: global_blocks [50]: there are blocks 0 to 11" in caplog.text


def test_a_branch_that_names_no_network_is_told_how_to() -> None:
    for branch, words in (
        ({"init": "vit_small_patch16_dinov3.lvd1689m"}, "give model, .* vit_small_patch16_dinov3.lvd"),
        ({}, "or size, such as S"),
        ({"sise": "T"}, "unknown key 'sise'"),
        ({"model": "resnet50"}, "can be a branch of no type"),
    ):
        with pytest.raises(ValidationError, match=words):
            BackboneConfig.model_validate({"branches": [branch], "resolutions": [224]})
