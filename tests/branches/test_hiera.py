"""Hiera computes what timm computes, on grids that timm would have to be built for, and in groups of blocks."""

from __future__ import annotations

from typing import Any

import pytest
import timm
import torch
from safetensors.torch import save_file
from timm.layers import resample_abs_pos_embed
from torch import nn

from piip.branches.hierarchical.config import HierarchicalConfig
from piip.branches.hierarchical.hiera import Hiera

NAMES = ["hiera_tiny_224", "hiera_small_abswin_256"]  # learned positions of the grid; and those of a window beside them


def pair(name: str, size: tuple[int, int]) -> tuple[Hiera, Any]:
    """A branch, and timm's network for images of this size, with the same random weights."""
    branch = HierarchicalConfig(model=name).build().eval()
    assert isinstance(branch, Hiera)
    torch.manual_seed(0)
    for parameter in branch.parameters():
        nn.init.normal_(parameter, std=0.05 if parameter.dim() > 1 else 0.3)
    weights = branch.state_dict()
    if branch.pos_embed_win is None:
        grid = [side // 4 for side in size]
        weights["pos_embed"] = resample_abs_pos_embed(weights["pos_embed"], grid, num_prefix_tokens=0)
    network = timm.create_model(name, num_classes=0, img_size=size).eval()
    assert all(key.startswith("head.") for key in network.load_state_dict(weights, strict=False).missing_keys)
    return branch, network


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("size", [(224, 224), (160, 288)])
def test_maps_are_timms_after_every_block(name: str, size: tuple[int, int]) -> None:
    branch, network = pair(name, size)
    images = torch.randn(2, 3, *size)
    with torch.no_grad():
        expected = network.forward_intermediates(images, coarse=False, output_fmt="NHWC", intermediates_only=True)
        x = branch.embed(images)
        at_once = branch.run_blocks(x, 0, branch.depth).map
        for index, spec in enumerate(branch.specs):
            x = branch.run_blocks(x, index, index + 1)
            assert x.map.shape == (2, *(side // spec.stride for side in size), spec.channels)
            assert (x.map - expected[index]).norm() / expected[index].norm() <= 1e-5
        torch.testing.assert_close(at_once, x.map, rtol=0, atol=0)
    assert list(dict.fromkeys(map(tuple, branch.specs))) == [(96, 4), (192, 8), (384, 16), (768, 32)]


def test_gradients_are_timms() -> None:
    branch, network = pair("hiera_tiny_224", (224, 224))
    images = torch.randn(1, 3, 224, 224)
    branch.run_blocks(branch.embed(images), 0, branch.depth).map.square().mean().backward()
    network.forward_features(images).square().mean().backward()
    expected = {name: p.grad for name, p in network.named_parameters()}
    for key, parameter in branch.named_parameters():
        assert parameter.grad is not None, key
        torch.testing.assert_close(parameter.grad, expected[key], rtol=1e-3, atol=1e-4 * expected[key].abs().max())


def test_images_of_any_size_files_of_timm_and_checkpointing(tmp_path: Any) -> None:
    branch, network = pair("hiera_tiny_224", (224, 224))
    save_file(network.state_dict(), tmp_path / "hiera.safetensors")
    settings = {"drop_path": 0.2, "checkpoint_activations": True}
    fresh = HierarchicalConfig(model="hiera_tiny_224", **settings).build()
    fresh.load_pretrained(str(tmp_path / "hiera.safetensors"))
    images = torch.randn(1, 3, 103, 130)
    found = fresh.eval().run_blocks(fresh.embed(images), 0, fresh.depth).map
    assert found.shape == (1, 4, 5, 768)
    torch.testing.assert_close(found, branch.run_blocks(branch.embed(images), 0, branch.depth).map)
    assert fresh.layer_of("patch_embed.proj.weight") == 0
    assert fresh.layer_of("blocks.11.norm1.weight") == 12
