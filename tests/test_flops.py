"""Counting, held against the integers of the official script and against sums done by hand."""

from __future__ import annotations

import pytest

from piip.config import BackboneConfig, load_config, shipped_configs
from piip.errors import ConfigError
from piip.flops import backbone_from_letters, branch_names, paper_count

# branches, resolutions, multiply-accumulates, parameters: printed by the official counting script (commit 7a8eceb) for every
# released row whose branches are all of the DeiT type. Rounded, they are the #FLOPs and #Param columns of the paper's tables.
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
        ("tb", None, "no released resolutions; give 2 with --resolutions"),
        ("tsb", (1568, 1120), "3 branches need as many resolutions, got 1568/1120"),
        ("tsb", (672, 1120, 1568), "finest resolution first, got 672/1120/1568"),
        ("ts", (64, -64), "greater than 0"),
    ],
)
def test_branches_that_cannot_be_are_refused_in_plain_words(letters, resolutions, words):
    with pytest.raises(ConfigError) as caught:
        backbone_from_letters(letters, resolutions)
    assert words in str(caught.value)
