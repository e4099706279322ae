"""Counting a network as it runs, held against sums done by hand."""

from __future__ import annotations

import pytest

from piip.config.experiment import ModelConfig
from piip.config.letters import backbone_from_letters
from piip.config.load import load_config
from piip.errors import PiipError
from piip.flops.actual import actual_count
from piip.flops.costs import Cost
from piip.flops.recorded import recorded_count
from piip.heads.upernet.head import UperNet


def count(branches: list[dict], resolutions: list[int], **backbone) -> dict[str, Cost]:
    settings = {"branches": branches, "resolutions": resolutions, **backbone}
    model = ModelConfig.model_validate({"backbone": settings})
    counted = actual_count(model, (resolutions[0], resolutions[0]))
    assert counted.uncounted == ()
    return {part.name: part.cost for part in counted.parts}


def test_actual_count_of_a_branch_is_the_sum_of_its_matrix_products():
    """64 x 64 pixels are 4 x 4 tokens; windows of 3 x 3 pad them to 6 x 6, of which four windows are made."""
    width, hidden = 32, 64
    branch = {"embed_dim": width, "depth": 2, "num_heads": 2, "mlp_ratio": 2, "window_size": 3, "global_blocks": [1]}
    cost = count([branch], [64], interactions=1)["32 64"]
    windowed = 36 * 3 * width**2 + 2 * 36 * 9 * width
    everywhere = 16 * 3 * width**2 + 2 * 16 * 16 * width
    rest = 16 * width**2 + 2 * 16 * width * hidden
    assert cost.macs == 16 * 768 * width + windowed + everywhere + 2 * rest
    block = 3 * width**2 + 3 * width + width**2 + width + 2 * width * hidden + hidden + width + 4 * width + 2 * width
    assert cost.params == 769 * width + 14 * 14 * width + 2 * block


def test_actual_count_of_an_interaction_is_the_sum_of_both_directions():
    """4 x 4 tokens of width 32 and 2 x 2 of width 64 exchange features once, values half as wide as their queries."""
    branches = [{"embed_dim": width, "depth": 1, "num_heads": 1} for width in (32, 64)]
    cost = count(branches, [64, 32], interactions=1, interaction={"num_heads": 4, "points": 2})["interactions"]
    macs = 0
    for width, queries, other_width, keys in ((32, 16, 64, 4), (64, 4, 32, 16)):
        value, hidden = width // 2, width // 4
        macs += keys * other_width * width + keys * width * value  # projection, values
        macs += queries * width * (3 * 4 * 2) + queries * value * width  # offsets and weights, output
        macs += 5 * queries * 2 * value  # four cells and the weight of every sample
        macs += 2 * queries * width * hidden + 9 * queries * hidden  # feed-forward with its depthwise convolution
    assert cost.macs == macs


def test_resizing_counts_as_many_products_as_it_reads_cells_for_one():
    """Images of 64 x 64 shrink to 32 x 32, a position embedding to 2 x 2; the coarse 2 x 2 cells grow to 4 x 4."""
    branches = [{"embed_dim": 32, "depth": 1, "num_heads": 1, "pretrain_size": 64}] * 2
    counted = count(branches, [64, 32], interactions=1)
    assert counted["other"].macs == 4 * 3 * 32 * 32 + 16 * 32 * 2 * 2
    convolutions = 2 * 9 * 32 * 32 * (16 + 4)
    assert counted["merge"].macs == convolutions + 4 * 32 * 16


def test_without_interactions_there_is_nothing_to_interact_or_merge():
    assert {"interactions", "merge"}.isdisjoint(
        count([{"embed_dim": 32, "depth": 1, "num_heads": 1}], [64], interactions=1)
    )


# Parameters of the official detection backbones, from their state dicts.
@pytest.mark.parametrize(("letters", "params"), [("b", 92_895_744), ("tsb", 175_043_715), ("l", 315_934_720)])
def test_actual_parameters_of_the_backbone_are_the_official_ones(letters, params):
    backbone = backbone_from_letters(letters)
    counted = actual_count(ModelConfig(backbone=backbone), (224, 224))
    parts = {part.name: part.cost.params for part in counted.parts}
    named = [*backbone.branch_names, "interactions", "merge", "pyramid"]
    assert sum(parts.get(name, 0) for name in named) == params


def test_actual_count_of_the_largest_released_tsb_row():
    """The parts, their sum, and the backbone against what the official detection script prints for the same network.

    That script leaves out the simple pyramid, and adds norms and biases: its number is within half a percent of ours.
    """
    config = load_config("detection/mask_rcnn_piip_tsb_1568_1120_672").model
    counted = actual_count(config, (1568, 1568))
    parts = {part.name: part.cost.macs for part in counted.parts}
    assert list(parts)[:7] == ["T 1568", "S 1120", "B 672", "interactions", "merge", "pyramid", "neck"]
    assert counted.total.macs == sum(parts.values())
    backbone = sum(parts[name] for name in ("T 1568", "S 1120", "B 672", "interactions", "merge"))
    assert backbone == pytest.approx(571_892_186_880, rel=5e-3)


def test_an_op_without_a_formula_is_listed(monkeypatch):
    """A resize through grid_sample, whose products torch has no formula for."""
    import torch

    from piip.necks.fpn import FPN

    forward = FPN.forward

    def resampled(self, features):
        maps = forward(self, features)
        grid = torch.empty(1, 4, 4, 2, device=maps[0].device)
        return [*maps, torch.nn.functional.grid_sample(maps[0], grid, align_corners=False)][: len(maps)]

    monkeypatch.setattr(FPN, "forward", resampled)
    model = ModelConfig.model_validate({"backbone": {"branches": [{"size": "T"}], "resolutions": [64]}})
    assert actual_count(model, (64, 64)).uncounted == ("aten.grid_sampler_2d",)


def test_a_classifier_is_counted_as_it_runs():
    """Two branches, a class token in the first: 17 and 4 tokens, one of which each classifier reads."""
    branches = [{"embed_dim": 32, "depth": 1, "num_heads": 1, "class_token": i == 0} for i in range(2)]
    settings = {"branches": branches, "resolutions": [64, 32], "interactions": 1, "merge": False}
    model = {"backbone": settings, "neck": {"type": "none"}, "head": {"type": "classifier", "num_classes": 7}}
    counted = actual_count(ModelConfig.model_validate(model), (64, 64))
    parts = {part.name: part.cost for part in counted.parts}
    assert counted.uncounted == ()
    assert parts["classifiers"] == Cost(2 * (2 * 32 + 33 * 7), 2 * 32 * 7)
    assert parts["32 64"].macs == 16 * 768 * 32 + 17 * 12 * 32**2 + 2 * 17**2 * 32


def test_two_branches_with_one_name_are_counted_as_two():
    branch = {"embed_dim": 32, "depth": 1, "num_heads": 1}
    settings = {"branches": [branch, branch], "resolutions": [64, 64], "interactions": 1}
    parts = actual_count(ModelConfig.model_validate({"backbone": settings}), (64, 64)).parts
    assert [part.name for part in parts[:3]] == ["32 64", "32 64", "interactions"]
    assert parts[0].cost == parts[1].cost


def test_a_head_that_needs_values_is_refused_with_what_it_lacks(monkeypatch):
    monkeypatch.setattr(UperNet, "detect", lambda self, features, sizes: features[0].sum().item())
    branch = {"embed_dim": 32, "depth": 1, "num_heads": 1}
    settings = {"backbone": {"branches": [branch], "resolutions": [64]}, "neck": {"type": "none"}}
    model = ModelConfig.model_validate(settings | {"head": {"type": "upernet", "channels": 8}})
    with pytest.raises(PiipError, match=r"UperNet cannot be counted, .* give it a run_for_count"):
        actual_count(model, (64, 64))


# --- recorded ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name", ["detection/mask_rcnn_piip_nano_shapes", "detection/dino_piip_nano_shapes", "detection/mask_rcnn_vit_b"]
)
def test_the_recorded_count_is_the_actual_one(name):
    model = load_config(name).model
    side = model.backbone.resolutions[0]
    assert recorded_count(name, model) == actual_count(model, (side, side)).total


def test_a_changed_network_has_no_recorded_count():
    name = "detection/mask_rcnn_vit_b"
    assert recorded_count(name, load_config(name, ["model.backbone.branches.0.window_size=7"]).model) is None
