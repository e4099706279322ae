"""Pretrained vision transformers in a branch, against timm's own network."""

from __future__ import annotations

from pathlib import Path

import pytest
import timm
import torch
import torch.nn.functional as F

from piip.branches import ViT
from piip.convert import load_pretrained
from piip.errors import CheckpointError

SMALL = {"embed_dim": 64, "depth": 2, "num_heads": 4}


def timm_vit(**settings):
    torch.manual_seed(0)
    model = timm.create_model("vit_tiny_patch16_224", img_size=64, num_classes=0, **SMALL, **settings)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    return model.eval()


def test_a_timm_network_gives_the_same_tokens_in_a_branch(tmp_path: Path) -> None:
    source = timm_vit(class_token=False, global_pool="avg", init_values=1e-5)
    torch.save({"model": source.state_dict()}, tmp_path / "vit.pth")
    branch = ViT(**SMALL, pretrain_size=64).eval()
    load_pretrained(branch, str(tmp_path / "vit.pth"))
    images = torch.randn(1, 3, 64, 64)
    x = source._pos_embed(source.patch_embed(images))
    expected = source.blocks(x).view(1, 4, 4, 64)
    torch.testing.assert_close(branch.run_blocks(branch.embed(images), 0, 2), expected, rtol=1e-4, atol=1e-5)


def test_deit_iii_names_of_layer_scale_and_the_parts_of_a_classifier_are_understood(tmp_path: Path) -> None:
    branch = ViT(**SMALL, pretrain_size=64)
    state = {key.replace(".ls1.gamma", ".gamma_1").replace(".ls2.gamma", ".gamma_2"): torch.randn_like(value)
             for key, value in branch.state_dict().items()}  # fmt: skip
    extra = {"cls_token": torch.zeros(1, 1, 64), "head.weight": torch.zeros(10, 64), "norm.weight": torch.zeros(64)}
    torch.save({"model": state | extra}, tmp_path / "deit3.pth")
    load_pretrained(branch, str(tmp_path / "deit3.pth"))
    assert branch.blocks[1].ls2.gamma.equal(state["blocks.1.gamma_2"])
    assert branch.pos_embed.equal(state["pos_embed"])


def test_position_embedding_and_patches_of_other_sizes_are_resampled(tmp_path: Path) -> None:
    source = timm_vit(class_token=True)
    state = source.state_dict()
    state["patch_embed.proj.weight"] = torch.randn(64, 3, 14, 14)
    torch.save(state, tmp_path / "vit.pth")
    branch = ViT(**SMALL, pretrain_size=96)
    load_pretrained(branch, str(tmp_path / "vit.pth"))
    grid = state["pos_embed"][:, 1:].view(1, 4, 4, 64).permute(0, 3, 1, 2)
    expected = F.interpolate(grid, size=(6, 6), mode="bicubic", align_corners=False).flatten(2).transpose(1, 2)
    torch.testing.assert_close(branch.pos_embed.data, expected)
    expected = F.interpolate(state["patch_embed.proj.weight"], size=(16, 16), mode="bicubic", align_corners=False)
    torch.testing.assert_close(branch.patch_embed.proj.weight.data, expected)


def test_weights_of_another_network_are_refused_with_what_does_not_fit(tmp_path: Path) -> None:
    branch = ViT(**SMALL, pretrain_size=64)
    before = branch.pos_embed.clone()
    torch.save(ViT(embed_dim=32, depth=3, num_heads=2, pretrain_size=64).state_dict(), tmp_path / "other.pth")
    with pytest.raises(CheckpointError, match=r"unknown .*; .* of another shape"):
        load_pretrained(branch, str(tmp_path / "other.pth"))
    assert branch.pos_embed.equal(before)


def test_a_name_that_is_neither_file_nor_model_is_an_error() -> None:
    with pytest.raises(CheckpointError, match="'deit_tinny' is neither a file nor a timm model"):
        load_pretrained(ViT(**SMALL), "deit_tinny")
    with pytest.raises(CheckpointError, match=r"checkpoint not found: gone.pth"):
        load_pretrained(ViT(**SMALL), "gone.pth")
