"""Weights of the segmentation networks: official checkpoints to ours and back, pretrained branches at a crop's size."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from piip.config.experiment import Config
from piip.config.load import load_config
from piip.errors import CheckError
from piip.load import build_model
from piip.official.checkpoints import convert_back, convert_checkpoint
from piip.official.keys import key_table
from piip.weights.files import read_weights

# The released network, narrower and shallower.
NARROW = [
    "model.backbone.branches.0.embed_dim=32",
    "model.backbone.branches.1.embed_dim=64",
    *(f"model.backbone.branches.{branch}.{key}=2" for branch in (0, 1) for key in ("depth", "num_heads")),
    "model.backbone.interactions=2",
    "model.backbone.interaction.num_heads=2",
    "model.head.channels=8",
]
PUBLISHED = ("cat", "dog")


@pytest.fixture
def config() -> Config:
    return load_config("segmentation/upernet_piip_h6b_512_192", NARROW)


@pytest.fixture
def official(config: Config) -> dict[str, Tensor]:
    """Random weights by their official names; positions with the slot of a class token."""
    torch.manual_seed(0)
    table, state = key_table(config.model.backbone), {}
    for key, value in build_model(config.model).state_dict().items():
        tensor = torch.randn(value.shape) if value.is_floating_point() else torch.tensor(7)
        if key.endswith("pos_embed"):
            tensor = torch.cat([torch.zeros(1, 1, tensor.shape[2]), tensor], dim=1)
        state[str(table.to_official(key))] = tensor
    return state


def test_there_and_back_gives_the_same_file(config: Config, official: dict[str, Tensor], tmp_path: Path) -> None:
    assert official["backbone.branch1.pos_embed"].shape == (1, 1 + 12**2, 64)
    assert official["backbone.branch2.pos_embed"].shape == (1, 1 + 32**2, 32)
    assert sum(key.endswith("num_batches_tracked") for key in official) == 4 + 1 + 3 + 3 + 1 + 1
    torch.save({"state_dict": official, "meta": {"CLASSES": PUBLISHED}}, tmp_path / "official.pth")
    report = convert_checkpoint(tmp_path / "official.pth", tmp_path / "ours.safetensors", config=config)
    assert len(report.loaded) == len(official)
    assert report.resized + report.unused + report.unknown + report.missing == []
    convert_back(tmp_path / "ours.safetensors", tmp_path / "back.pth", config=config)
    back = torch.load(tmp_path / "back.pth", weights_only=True)
    assert back["meta"] == {"CLASSES": PUBLISHED}
    assert back["state_dict"].keys() == official.keys()
    assert all(torch.equal(back["state_dict"][key], value) for key, value in official.items())


def test_a_file_without_the_auxiliary_head_is_refused_and_converted_without_strictness(
    config: Config, official: dict[str, Tensor], tmp_path: Path
) -> None:
    """Inference needs no second head, and some leave it out of what they publish."""
    state = {key: value for key, value in official.items() if not key.startswith("auxiliary_head.")}
    torch.save({"state_dict": state}, tmp_path / "official.pth")
    with pytest.raises(CheckError, match=r"missing: head\.auxiliary"):
        convert_checkpoint(tmp_path / "official.pth", tmp_path / "ours.safetensors", config=config)
    report = convert_checkpoint(tmp_path / "official.pth", tmp_path / "ours.safetensors", config=config, strict=False)
    assert all(key.startswith("head.auxiliary.") for key in report.missing)
    assert len(read_weights(tmp_path / "ours.safetensors")[0]) == len(state)


@pytest.mark.parametrize(("branch", "side"), [(0, 32), (1, 12)])
def test_pretrained_patches_and_positions_take_the_sizes_of_the_crop(
    config: Config, branch: int, side: int, tmp_path: Path
) -> None:
    """MAE's ViT-H and InternViT-6B were pretrained on 16 x 16 patches of 14 pixels, a class token in front."""
    ours = config.model.backbone.branches[branch].build()
    torch.manual_seed(0)
    state = {key: torch.randn_like(value) for key, value in ours.state_dict().items() if ".ls" not in key or branch}
    width = ours.specs[0].channels
    state["pos_embed"] = torch.randn(1, 1 + 16**2, width)
    state["patch_embed.proj.weight"] = torch.randn(width, 3, 14, 14)
    torch.save({"model": state | {"cls_token": torch.zeros(1, 1, width)}}, tmp_path / "pretrained.pth")
    ours.load_pretrained(str(tmp_path / "pretrained.pth"))
    found = ours.state_dict()
    grid = state["pos_embed"][:, 1:].view(1, 16, 16, width).permute(0, 3, 1, 2)
    resized = F.interpolate(grid, size=(side, side), mode="bicubic", align_corners=False)
    torch.testing.assert_close(found["pos_embed"], resized.flatten(2).transpose(1, 2))
    patches = F.interpolate(state["patch_embed.proj.weight"], size=(16, 16), mode="bicubic", align_corners=False)
    torch.testing.assert_close(found["patch_embed.proj.weight"], patches)
    same = state.keys() - {"pos_embed", "patch_embed.proj.weight"}
    assert all(torch.equal(found[key], state[key]) for key in same)
