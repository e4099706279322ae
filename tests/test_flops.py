"""Counting, held against the integers of the official script and against sums done by hand."""

from __future__ import annotations

import pytest

from piip.config import BackboneConfig, ModelConfig, load_config, shipped_configs
from piip.errors import ConfigError
from piip.flops import Cost, actual_count, backbone_from_letters, branch_names, paper_count
from piip.paper_flops import paper_cost

# branches, resolutions, multiply-accumulates, parameters: printed by the official counting script (commit 7a8eceb) for
# every released row whose branches are all of the DeiT type. Rounded, they are the paper's #FLOPs and #Param columns.
OFFICIAL = [
    ("b", (1024,), 463_413_688_320, 89_579_752),
    ("l", (1024,), 1_541_772_648_448, 308_367_336),
    ("tsb", (1120, 896, 448), 243_132_125_952, 146_441_707),
    ("tsb", (1568, 896, 448), 286_615_149_312, 147_344_875),
    ("tsb", (1568, 1120, 672), 453_253_935_360, 148_774_891),
    ("sbl", (1120, 672, 448), 726_638_942_720, 492_674_027),
    ("sbl", (1344, 896, 448), 1_001_760_749_568, 494_555_627),
    ("sbl", (1568, 896, 672), 1_463_525_234_176, 496_537_579),
    ("tsbl", (1344, 896, 672, 448), 754_645_856_256, 505_559_532),
    ("tsbl", (1568, 1120, 672, 448), 860_956_268_800, 506_726_124),
    ("tsbl", (1792, 1568, 1120, 448), 1_534_624_826_880, 511_505_388),
]

# The parts of one row, by the official script's own per-module counter and its attention formulas.
OFFICIAL_PARTS = {
    "T 1568": (7_334_592, 52_488_549_120 + 8_674_025_472),
    "S 1120": (23_479_680, 105_582_220_800 + 8_851_046_400),
    "B 672": (87_018_240, 150_931_565_568 + 6_372_753_408),
    "interactions": (29_722_176, 115_773_719_040 + 1_670_860_800),
    "merge": (449_664 + 3, 2_709_504 + 1_456_358_400 + 1_434_607_104),
    "classifier": (2 * 768 + 1001 * 768 + 1000 - 768, 14_751_744 + 768_000),
}


@pytest.mark.parametrize(("letters", "resolutions", "macs", "params"), OFFICIAL)
def test_paper_count_is_the_official_integer(letters, resolutions, macs, params):
    total = paper_count(backbone_from_letters(letters, resolutions)).total
    assert (total.macs, total.params) == (macs, params)


def test_paper_count_agrees_with_the_official_script_part_by_part():
    count = paper_count(backbone_from_letters("tsb"))
    assert {part.name: (part.cost.params, part.cost.macs) for part in count.parts} == OFFICIAL_PARTS


def _published() -> list[str]:
    return [name for name in shipped_configs() if (figures := load_config(name).published) and figures.flops]


@pytest.mark.parametrize("name", _published())
def test_shipped_configs_count_to_their_published_columns(name):
    config = load_config(name)
    total = paper_count(config.model.backbone).total
    assert f"{total.macs / 1e9:.0f}G" == config.published.flops
    assert f"{total.params / 1e6:.0f}M" == config.published.params


def test_letters_may_be_of_either_case_and_default_to_the_released_resolutions():
    assert backbone_from_letters("TSB") == backbone_from_letters("tsb", (1568, 1120, 672))
    assert backbone_from_letters("b").resolutions == (1024,)
    assert branch_names(backbone_from_letters("tsbl")) == ["T 1568", "S 1120", "B 672", "L 448"]


@pytest.mark.parametrize(
    ("letters", "resolutions", "words"),
    [
        ("txb", None, "branches 'txb': use the letters t, s, b and l"),
        ("", None, "use the letters"),
        ("tb", None, "no row of branches 'tb' was released; give 2 with --resolutions"),
        ("tsb", (1568, 1120), "3 branches need as many resolutions, got 1568/1120"),
        ("tsb", (672, 1120, 1568), "finest resolution first, got 672/1120/1568"),
        ("ts", (64, -64), "greater than 0"),
    ],
)
def test_branches_that_cannot_be_are_refused_in_plain_words(letters, resolutions, words):
    with pytest.raises(ConfigError) as caught:
        backbone_from_letters(letters, resolutions)
    assert words in str(caught.value)


# --- as it runs ------------------------------------------------------------------------------------------------------


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
    named = [*branch_names(backbone), "interactions", "merge", "pyramid"]
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

    from piip.necks import FPN

    forward = FPN.forward

    def resampled(self, features):
        maps = forward(self, features)
        grid = torch.empty(1, 4, 4, 2, device=maps[0].device)
        return [*maps, torch.nn.functional.grid_sample(maps[0], grid, align_corners=False)][: len(maps)]

    monkeypatch.setattr(FPN, "forward", resampled)
    model = ModelConfig.model_validate({"backbone": {"branches": [{"size": "T"}], "resolutions": [64]}})
    assert actual_count(model, (64, 64)).uncounted == ("aten.grid_sampler_2d",)


def test_the_papers_count_is_left_out_where_its_convention_does_not_reach():
    branches = [{"size": "T"}, {"type": "convnext", "model": "convnext_tiny"}]
    backbone = BackboneConfig.model_validate({"branches": branches, "resolutions": [64, 32], "interactions": 3})
    assert paper_cost(backbone) is None
    with pytest.raises(ConfigError, match="plain ViT branches only"):
        paper_count(backbone)
