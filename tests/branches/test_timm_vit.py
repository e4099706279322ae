"""Branches named after timm's vision transformers."""

from __future__ import annotations

from pathlib import Path

import pytest
import timm
import torch

from piip.branches.vit.config import ViTConfig


def test_a_branch_named_after_a_timm_model_computes_what_it_computes(tmp_path: Path) -> None:
    source = timm.create_model("deit3_small_patch16_224", num_classes=0, img_size=64).eval()
    torch.manual_seed(0)
    for parameter in source.parameters():
        torch.nn.init.normal_(parameter, std=0.05)
    source.cls_token = None  # a branch has none
    source.num_prefix_tokens = 0
    torch.save(source.state_dict(), tmp_path / "deit3.pth")
    branch = ViTConfig(model="deit3_small_patch16_224", pretrain_size=64).build().eval()
    branch.load_pretrained(str(tmp_path / "deit3.pth"))
    images = torch.randn(1, 3, 64, 64)
    x = source.patch_embed(images) + source.pos_embed
    expected = source.blocks(x).view(1, 4, 4, 384)
    torch.testing.assert_close(branch.run_blocks(branch.embed(images), 0, 12).map, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("vit_base_patch16_224.augreg_in21k", {"embed_dim": 768, "depth": 12, "num_heads": 12, "layer_scale": None}),
        ("vit_small_patch14_dinov2", {"embed_dim": 384, "patch_size": 14, "pretrain_size": 518, "layer_scale": 1.0}),
        ("vit_large_patch16_384", {"embed_dim": 1024, "depth": 24, "num_heads": 16, "pretrain_size": 384}),
    ],
)
def test_the_architecture_fills_the_settings(name: str, expected: dict[str, object]) -> None:
    config = ViTConfig(model=name)
    assert {key: getattr(config, key) for key in expected} == expected


def test_own_settings_win_and_a_resolved_config_is_read_as_it_stands() -> None:
    config = ViTConfig(model="vit_tiny_patch16_224", depth=6, window_size=14)
    assert (config.depth, config.window_size, config.embed_dim) == (6, 14, 192)
    assert ViTConfig.model_validate(config.model_dump()) == config


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("vit_smal_patch16_224", "timm has no model 'vit_smal_patch16_224'"),
        ("swin_tiny_patch4_window7_224", "it is no plain vision transformer.* or set it to hierarchical"),
        ("vit_base_patch32_clip_224", "it is no plain vision transformer.* or set it to timm_vit"),
    ],
)
def test_what_a_vit_branch_cannot_express_is_refused(name: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ViTConfig(model=name)


def test_how_a_network_pools_for_its_classifier_does_not_matter_to_a_branch() -> None:
    name = "vit_medium_patch16_gap_256"
    assert ViTConfig(model=name).depth == len(timm.create_model(name).blocks)
