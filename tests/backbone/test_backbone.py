"""The N-branch network on its own: every number of branches, and the properties that the paper states."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from piip.backbone.build import group_ends
from piip.backbone.config import BackboneConfig, InteractionConfig
from piip.backbone.merge import Merge
from piip.backbone.piip import PIIP
from piip.errors import ConfigError

TINY = {"T": (32, 2, 2), "S": (64, 2, 4), "B": (96, 4, 6), "L": (128, 6, 8), "H": (160, 6, 10)}  # width, depth, heads
RESOLUTIONS = (160, 128, 96, 64, 32)


def backbone_config(letters: str, **interaction: object) -> BackboneConfig:
    branches = [
        {"embed_dim": dim, "depth": depth, "num_heads": heads, "window_size": 3, "pretrain_size": 64}
        for dim, depth, heads in (TINY[letter] for letter in letters)
    ]
    return BackboneConfig.model_validate(
        {
            "branches": branches,
            "resolutions": RESOLUTIONS[: len(letters)],
            "interactions": 2,
            "interaction": {"num_heads": 4} | interaction,
        }
    )


@pytest.mark.parametrize("letters", ["B", "TB", "TSB", "TSBL", "TSBLH", "TTT", "LT"])
def test_any_number_and_mixture_of_branches_gives_a_pyramid_of_the_last_branchs_width(letters: str) -> None:
    backbone = PIIP(backbone_config(letters))
    maps = backbone(torch.randn(2, 3, 96, 160))
    width = TINY[letters[-1]][0]
    assert [tuple(x.shape) for x in maps] == [
        (2, width, 24, 40), (2, width, 12, 20), (2, width, 6, 10), (2, width, 3, 5)
    ]  # fmt: skip
    assert [tuple(spec) for spec in backbone.specs] == [(width, 4), (width, 8), (width, 16), (width, 32)]


@pytest.mark.parametrize("letters", ["TSB", "BST"])
def test_branches_are_merged_by_linear_layers_at_any_width(letters: str) -> None:
    """Against the sum written out, on maps of three grids."""
    config = backbone_config(letters).model_copy(update={"merge": "linear", "merge_width": 64})
    backbone = PIIP(config)
    assert isinstance(backbone.merge, Merge)
    maps = [torch.randn(2, side, side, TINY[letter][0]) for letter, side in zip(letters, (8, 6, 4), strict=True)]
    with torch.no_grad():
        backbone.merge.weights[1].fill_(0.5)
        expected = torch.zeros(2, 64, 8, 8)
        for index, x in enumerate(maps):
            linear, norm = backbone.merge.projections[index]
            x = nn.functional.linear(x, linear.weight[:, :, 0, 0], linear.bias).permute(0, 3, 1, 2)
            x = nn.functional.group_norm(x, 32, norm.weight, norm.bias)
            expected += (0.5 if index == 1 else 1.0) * nn.functional.interpolate(x, size=(8, 8), mode="bilinear")
        torch.testing.assert_close(backbone.merge(maps), expected)
    assert [spec.channels for spec in backbone.specs] == [64] * 4


@pytest.mark.parametrize("attention", ["deformable", "dense"])
def test_every_parameter_gets_a_finite_gradient(attention: str) -> None:
    backbone = PIIP(backbone_config("TSB", attention=attention))
    for name, parameter in backbone.named_parameters():
        if name.endswith("gamma"):  # zero at the start, which hides what is behind it
            nn.init.normal_(parameter)
    sum(x.square().mean() for x in backbone(torch.randn(1, 3, 96, 160))).backward()
    for name, parameter in backbone.named_parameters():
        assert parameter.grad is not None, name
        assert torch.isfinite(parameter.grad).all(), name


def test_fresh_interactions_leave_the_branches_as_they_are() -> None:
    """Their gains start at zero, so that training begins from the pretrained branches."""
    backbone = PIIP(backbone_config("TSB")).eval()
    images = torch.randn(1, 3, 64, 160)
    with_interactions = backbone(images)
    backbone.interactions = nn.ModuleList()
    for a, b in zip(with_interactions, backbone(images), strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=0)


def test_both_directions_of_a_unit_see_the_other_branch_as_it_was() -> None:
    unit = PIIP(backbone_config("TS")).interactions[0].units[0].eval()
    for name, parameter in unit.named_parameters():
        if name.endswith("gamma"):
            nn.init.normal_(parameter)
    fine, coarse = torch.randn(1, 8, 10, 32), torch.randn(1, 6, 8, 64)
    new_fine, new_coarse = unit(fine, coarse)
    torch.testing.assert_close(new_fine, unit.to_fine(fine, coarse))
    torch.testing.assert_close(new_coarse, unit.to_coarse(coarse, fine))
    assert not torch.allclose(new_coarse, unit.to_coarse(coarse, new_fine))


def test_interactions_are_spread_evenly_over_every_depth() -> None:
    config = backbone_config("TBL")
    assert group_ends(config, [2, 4, 6]) == [(1, 2), (2, 4), (3, 6)]
    listed = config.model_copy(update={"interactions": ((0, 1), (0, 3), (4, 5))})
    assert group_ends(listed, [2, 4, 6]) == [(1, 2), (1, 4), (5, 6)]


@pytest.mark.parametrize(
    ("interactions", "message"),
    [
        (3, "3 interactions need 1 to 2 blocks"),
        (0, "0 interactions need 1 to 2 blocks"),
        (((0, 1), (0, 3)), "one increasing list per branch"),
        (((0, 1), (0, 3), (0, 4)), "last block"),
        (((0, 1), (3, 3), (0, 5)), "increasing"),
        (((1,), (0, 3), (0, 5)), "equally long"),
    ],
)
def test_impossible_interactions_are_refused(interactions: object, message: str) -> None:
    config = backbone_config("TBL").model_copy(update={"interactions": interactions})
    with pytest.raises(ConfigError, match=message):
        group_ends(config, [2, 4, 6])


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"num_heads": 5}, "5 heads need .* got 32 and 16"),
        ({"num_heads": 5, "attention": "dense"}, "5 heads need .* got 32 and 32"),
        ({"num_heads": 2, "value_ratio": 0.3}, "2 heads need .* got 32 and 9"),
        ({"num_heads": 2, "value_ratio": 0.01}, "2 heads need .* got 32 and 0"),
        ({"num_heads": 2, "ffn_ratio": 0.01}, "0.01 of a branch's 32 channels is none"),
    ],
)
def test_widths_that_an_interaction_cannot_have_are_refused(settings: dict, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        PIIP(backbone_config("TS", **settings))


def test_a_last_branch_that_cannot_be_normed_by_groups_is_refused() -> None:
    config = backbone_config("TS")
    odd = config.branches[-1].model_copy(update={"embed_dim": 40})
    with pytest.raises(ConfigError, match="multiple of 32, got 40"):
        PIIP(config.model_copy(update={"branches": (config.branches[0], odd)}))


def test_layers_for_learning_rate_decay_follow_the_deepest_branch() -> None:
    backbone: PIIP = PIIP(backbone_config("SBL"))
    layers = backbone.layer_ids()
    assert backbone.depth == 6
    assert layers["branches.2.pos_embed"] == layers["branches.0.patch_embed.proj.weight"] == 0
    assert [layers[f"branches.2.blocks.{i}.norm1.weight"] for i in range(6)] == [1, 2, 3, 4, 5, 6]
    assert [layers[f"branches.1.blocks.{i}.norm1.weight"] for i in range(4)] == [1, 3, 4, 6]  # floor((i + 1) * 1.5)
    assert [layers[f"branches.0.blocks.{i}.norm1.weight"] for i in range(2)] == [3, 6]
    assert not [name for name in layers if name.startswith(("interactions", "merge", "pyramid"))]


def test_interaction_without_projection_norm_or_ffn_has_no_such_parameters() -> None:
    unit = PIIP(backbone_config("TS", projection=False, norm="none", ffn_ratio=0)).interactions[0].units[0]
    assert {name.split(".")[1] for name, _ in unit.named_parameters()} == {"gamma", "attn"}
    fine, coarse = unit(torch.randn(1, 4, 4, 32), torch.randn(1, 3, 3, 64))
    assert fine.shape == (1, 4, 4, 32)
    assert coarse.shape == (1, 3, 3, 64)


def test_interaction_defaults_are_the_released_ones() -> None:
    assert InteractionConfig().model_dump() == {
        "attention": "deformable", "num_heads": 16, "points": 4, "value_ratio": 0.5, "ffn_ratio": 0.25,
        "projection": True, "norm": "layer", "drop_path": 0.4, "mixed_precision": True,
    }  # fmt: skip


def hybrid_config(finest: dict, coarsest: dict, **settings: object) -> BackboneConfig:
    """Four groups of blocks; convnext_atto has 2 + 3 + 7 + 3 of them, at strides 4 to 32 and 40 to 320 channels."""
    ends = {"convnext": [1, 4, 11, 14], "vit": [0, 1, 2, 3]}
    return BackboneConfig.model_validate(
        {
            "branches": [finest, coarsest],
            "resolutions": [128, 64],
            "interactions": [ends[branch.get("type", "vit")] for branch in (finest, coarsest)],
            "interaction": {"num_heads": 2},
            "outputs": [0, 1, 2],
        }
        | settings
    )


VIT = {"embed_dim": 64, "depth": 4, "num_heads": 2, "pretrain_size": 64}
CONVNEXT = {"type": "convnext", "model": "convnext_atto"}


@pytest.mark.parametrize(
    ("finest", "coarsest", "channels", "strides"),
    [
        (CONVNEXT, VIT, [64, 64, 64, 64], [4, 8, 16, 32]),  # a regular pyramid as it comes
        (VIT, {**VIT, "embed_dim": 32}, [32, 32, 32, 32], [4, 8, 16, 32]),  # scaled from maps of stride 16
    ],
)
def test_a_pyramid_of_intermediate_merges(finest: dict, coarsest: dict, channels: list, strides: list) -> None:
    backbone = PIIP(hybrid_config(finest, coarsest))
    assert [tuple(spec) for spec in backbone.specs] == list(zip(channels, strides, strict=True))
    maps = backbone(torch.randn(1, 3, 128, 64))
    assert [tuple(x.shape) for x in maps] == [(1, c, 128 // s, 64 // s) for c, s in backbone.specs]
    sum(x.square().mean() for x in maps).backward()
    assert not [name for name, parameter in backbone.named_parameters() if parameter.grad is None]


def test_only_plain_vits_take_part_in_layer_decay() -> None:
    backbone = PIIP(hybrid_config(CONVNEXT, VIT))
    assert backbone.depth == 4
    layers = backbone.layer_ids()
    assert {name.split(".")[1] for name in layers} == {"1"}
    assert layers["branches.1.blocks.3.norm1.weight"] == 4


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"outputs": [0, 1, 3]}, "name interactions before the last, 0 to 2"),
        ({"interactions": [[0, 1, 11, 14], [0, 1, 2, 3]]}, r"has strides \[4, 4, 16, 32\] there; they must double"),
    ],
)
def test_outputs_that_are_no_pyramid_are_refused(settings: dict, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        PIIP(hybrid_config(CONVNEXT, VIT, **settings))


def test_settings_of_every_branch_are_filled_in_and_may_be_overridden() -> None:
    config = BackboneConfig.model_validate(
        {
            "every_branch": {"window_size": 7, "drop_path": 0.1},
            "branches": [{"size": "T"}, {"size": "S", "drop_path": 0.2}],
            "resolutions": [64, 32],
        }
    )
    assert [(branch.window_size, branch.drop_path) for branch in config.branches] == [(7, 0.1), (7, 0.2)]
    assert BackboneConfig.model_validate(config.model_dump()) == config
