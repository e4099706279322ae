"""Counting, held against the integers of the official script and against sums done by hand."""

from __future__ import annotations

import pytest

from piip.backbone.config import BackboneConfig
from piip.config.experiment import ModelConfig
from piip.config.letters import backbone_from_letters
from piip.config.load import load_config, shipped_configs
from piip.errors import ConfigError
from piip.flops.actual import actual_count
from piip.flops.costs import Cost
from piip.flops.recorded import recorded_count
from piip.official.flops.parts import Map, pyramid
from piip.official.flops.scripts import classification_count, detection_count, paper_cost, paper_count, paper_script

# Multiply-accumulates and parameters as the official scripts (commit 7a8eceb) print them; to the nearest digit or the
# next, they are the papers' #FLOPs and #Param columns. First the script of the row's table, then the second one on all.
PAPER = {
    "mask_rcnn_deit_vit_b_fpn_1x_coco_bs16": (463_413_688_320, 89_579_752),
    "mask_rcnn_deit_tsb_1120_896_448_fpn_1x_coco_bs16": (243_132_125_952, 146_441_707),
    "mask_rcnn_deit_tsb_1568_896_448_fpn_1x_coco_bs16": (286_615_149_312, 147_344_875),
    "mask_rcnn_deit_tsb_1568_1120_672_fpn_1x_coco_bs16": (453_253_935_360, 148_774_891),
    "mask_rcnn_deit_vit_l_fpn_1x_coco_bs16": (1_541_772_648_448, 308_367_336),
    "mask_rcnn_deit_sbl_1120_672_448_fpn_1x_coco_bs16": (726_638_942_720, 492_674_027),
    "mask_rcnn_deit_sbl_1344_896_448_fpn_1x_coco_bs16": (1_001_760_749_568, 494_555_627),
    "mask_rcnn_deit_sbl_1568_896_672_fpn_1x_coco_bs16": (1_463_525_234_176, 496_537_579),
    "mask_rcnn_deit_tsbl_1344_896_672_448_fpn_1x_coco_bs16": (754_645_856_256, 505_559_532),
    "mask_rcnn_deit_tsbl_1568_1120_672_448_fpn_1x_coco_bs16": (860_956_268_800, 506_726_124),
    "mask_rcnn_deit_tsbl_1792_1568_1120_448_fpn_1x_coco_bs16": (1_534_624_826_880, 511_505_388),
    "mask_rcnn_internvit_6b_fpn_1x_coco_bs16_ms": (29_323_234_432_000, 5_918_858_600),
    "mask_rcnn_internvit_h6b_1024_512_fpn_1x_coco_bs16_ms": (11_079_790_023_680, 6_872_342_250),
    "mask_rcnn_internvit_h6b_1024_512_fpn_1x_coco_bs16_ms_speedup": (10_691_481_359_360, 6_751_543_530),
    "mask_rcnn_augreg_sbl_1568_1120_672_fpn_1x_coco_bs16": (1_873_993_865_728, 497_894_507),
    "mask_rcnn_augreg_sbl_1568_1120_672_fpn_1x_coco_bs16_speedup": (1_740_490_582_528, 470_417_003),
    "mask_rcnn_convnext-base_1024_regular-fpn": (320_974_356_480, 87_566_464),
    "mask_rcnn_convnext-tsb_1024_672_448_regular-fpn": (326_696_296_960, 210_924_196),
    "mask_rcnn_convnext-t_vit-s_vit-b_1024_672_448_regular-fpn": (373_331_602_176, 190_050_324),
    "mask_rcnn_convnext-t_convnext-s_vit-b_1024_672_448_regular-fpn": (431_204_154_624, 218_022_468),
    "mask_rcnn_convnext-t_vit-s_convnext-b_1024_672_448_regular-fpn": (297_104_606_464, 178_761_844),
    "mask_rcnn_vit-t_convnext-s_vit-b_1024_672_448_regular-fpn": (291_515_633_280, 193_237_692),
    "mask_rcnn_vit-t_convnext-s_convnext-b_1024_672_448_regular-fpn": (231_539_487_616, 178_013_980),
    "mask_rcnn_vit-t_vit-s_convnext-b_1024_672_448_regular-fpn": (193_132_871_680, 146_349_292),
}
DETECTION_SCRIPT = {
    "mask_rcnn_deit_vit_b_fpn_1x_coco_bs16": (532_848_574_464, 92_895_744),
    "mask_rcnn_deit_tsb_1120_896_448_fpn_1x_coco_bs16": (307_307_691_264, 175_043_715),
    "mask_rcnn_deit_tsb_1568_896_448_fpn_1x_coco_bs16": (381_315_986_688, 175_043_715),
    "mask_rcnn_deit_tsb_1568_1120_672_fpn_1x_coco_bs16": (571_892_186_880, 175_043_715),
    "mask_rcnn_deit_vit_l_fpn_1x_coco_bs16": (1_685_413_953_536, 315_934_720),
    "mask_rcnn_deit_sbl_1120_672_448_fpn_1x_coco_bs16": (871_428_544_000, 547_810_051),
    "mask_rcnn_deit_sbl_1344_896_448_fpn_1x_coco_bs16": (1_154_687_543_296, 547_810_051),
    "mask_rcnn_deit_sbl_1568_896_672_fpn_1x_coco_bs16": (1_786_206_718_464, 547_810_051),
    "mask_rcnn_internvit_6b_fpn_1x_coco_bs16_ms": (30_330_191_872_000, 6_026_070_400),
    "mask_rcnn_internvit_h6b_1024_512_fpn_1x_coco_bs16_ms": (11_778_430_443_520, 7_293_644_290),
    "mask_rcnn_internvit_h6b_1024_512_fpn_1x_coco_bs16_ms_speedup": (11_390_121_779_200, 7_172_845_570),
    "mask_rcnn_augreg_sbl_1568_1120_672_fpn_1x_coco_bs16": (2_105_235_912_192, 548_639_107),
    "mask_rcnn_augreg_sbl_1568_1120_672_fpn_1x_coco_bs16_speedup": (1_971_732_628_992, 521_161_603),
    "mask_rcnn_deit_sbl_1568_1120_672_fpn_1x_coco_bs16": (2_105_235_912_192, 547_810_051),
    "mask_rcnn_uniperceiver_sbl_1568_1120_672_fpn_1x_coco_bs16": (2_105_247_051_264, 547_827_971),
    "mask_rcnn_mae_sbl_1568_1120_672_fpn_1x_coco_bs16": (2_105_235_912_192, 547_811_843),
    "mask_rcnn_dinov2_sbl_1568_1120_672_fpn_1x_coco_bs16": (2_105_235_912_192, 549_613_955),
    "mask_rcnn_beit_sbl_1568_1120_672_fpn_1x_coco_bs16": (1_768_438_543_872, 549_022_227),
    "dino_4scale_deit_384_sbl_1792_1120_672_fpn_3x_coco_bs32_ms": (2_694_653_795_328, 548_636_931),
}
# The same, of the TSBL rows as released; the script's attention formula takes the width of the T that was not built.
DETECTION_SCRIPT_TSBL = {
    "1344_896_672_448": (1_091_589_968_896, 593_216_388),
    "1568_1120_672_448": (1_329_795_712_000, 593_216_388),
    "1792_1568_1120_448": (2_215_056_976_384, 593_216_388),
}
# The segmentation rows, by the first script, then by the second.
SEGMENTATION = {
    "upernet_internvit_6b_512": (6_364_443_366_400, 5_909_028_200, 6_616_180_326_400, 6_028_720_000),
    "upernet_piip_h6b_512_192": (1_662_697_364_480, 6_744_795_370, 2_068_720_240_640, 7_173_739_010),
    "upernet_piip_h6b_512_256": (2_354_776_724_480, 6_745_153_770, 2_781_358_858_240, 7_174_097_410),
    "upernet_piip_h6b_512_384": (4_374_613_652_480, 6_746_177_770, 4_859_936_522_240, 7_175_121_410),
    "upernet_piip_h6b_512_512": (7_308_081_812_480, 6_747_611_370, 7_875_641_712_640, 7_176_555_010),
}
# Of the classification rows the products by branch and of the interactions, in all, and the parameters.
CLASSIFICATION = {
    "tsb_368_192_128": ((2_896_845_888 + 1_289_507_328, 3_124_571_136 + 191_102_976, 5_561_812_992 + 75_497_472,
                         4_225_468_032 + 62_714_880), 17_427_520_704, 144_031_416),
    "sbl_320_160_96": ((8_640_900_096 + 1_474_560_000, 8_642_104_320 + 184_320_000, 11_206_709_248 + 63_700_992,
                        8_720_855_040 + 82_575_360), 39_015_725_056, 488_795_832),
    "sbl_384_192_128": ((12_433_376_256 + 3_057_647_616, 12_406_904_832 + 382_205_952, 19_687_284_736 + 201_326_592,
                         12_898_713_600 + 121_896_960), 61_189_356_544, 488_925_880),
}  # fmt: skip

# The parts of one row, by the official script's own per-module counter and its attention formulas.
OFFICIAL_PARTS = {
    "T 1568": (7_334_592, 52_488_549_120 + 8_674_025_472),
    "S 1120": (23_479_680, 105_582_220_800 + 8_851_046_400),
    "B 672": (87_018_240, 150_931_565_568 + 6_372_753_408),
    "interactions": (29_722_176, 115_773_719_040 + 1_670_860_800),
    "merge": (449_664 + 3, 2_709_504 + 1_456_358_400 + 1_434_607_104),
    "classifier": (2 * 768 + 1001 * 768 + 1000 - 768, 14_751_744 + 768_000),
}


@pytest.mark.parametrize("official", PAPER)
def test_paper_count_is_the_official_integer(official):
    total = paper_count(load_config(official).model.backbone).total
    assert (total.macs, total.params) == PAPER[official]


@pytest.mark.parametrize("official", DETECTION_SCRIPT)
def test_detection_count_is_the_official_integer(official):
    total = detection_count(load_config(official).model.backbone).total
    assert (total.macs, total.params) == DETECTION_SCRIPT[official]


@pytest.mark.parametrize("resolutions", DETECTION_SCRIPT_TSBL)
def test_detection_count_of_tsbl_as_released_differs_by_the_scripts_attention_of_a_t(resolutions):
    backbone = load_config(f"detection/mask_rcnn_piip_tsbl_{resolutions}_released").model.backbone
    total = detection_count(backbone).total
    s_minus_t = 12 * 2 * (backbone.resolutions[0] // 16) ** 2 * 28**2 * (384 - 192)
    assert (total.macs - s_minus_t, total.params) == DETECTION_SCRIPT_TSBL[resolutions]


def test_detection_count_of_the_h6b_dino_backbone_is_the_official_integer():
    backbone = load_config("detection/dino_piip_h6b_1024_768").model.backbone
    assert detection_count(backbone).total == Cost(7_211_711_490, 21_118_484_357_120)


@pytest.mark.parametrize("name", SEGMENTATION)
def test_the_segmentation_rows_count_to_the_official_integers(name):
    """The second script there runs the pyramid, and takes 224 pixels for the size that positions were learned at."""
    macs, params, detection_macs, detection_params = SEGMENTATION[name]
    backbone = load_config(f"segmentation/{name}").model.backbone
    assert classification_count(backbone).total == Cost(params, macs)
    learned = tuple(branch.model_copy(update={"pretrain_size": 224}) for branch in backbone.branches)
    counted = detection_count(backbone.model_copy(update={"branches": learned})).total
    if len(learned) > 1:
        maps = [Map(3200, 32)]
        counted += Cost(macs=pyramid(maps, maps, finest=True, single=False).macs)
    positions = sum(((b.pretrain_size // 16) ** 2 - 14**2) * b.embed_dim for b in backbone.branches)
    assert counted + Cost(params=positions) == Cost(detection_params, detection_macs)


@pytest.mark.parametrize("name", CLASSIFICATION)
def test_the_classification_rows_count_to_the_official_integers(name):
    parts, macs, params = CLASSIFICATION[name]
    count = paper_count(load_config(f"classification/piip_{name}").model.backbone)
    assert tuple(part.cost.macs for part in count.parts) == parts
    assert count.total == Cost(params, macs)


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
    assert paper_cost(ModelConfig.model_validate(model).backbone) is None


def test_paper_count_agrees_with_the_official_script_part_by_part():
    count = paper_count(backbone_from_letters("tsb"))
    assert {part.name: (part.cost.params, part.cost.macs) for part in count.parts} == OFFICIAL_PARTS


def _published() -> list[str]:
    return [name for name in shipped_configs() if (figures := load_config(name).published) and figures.flops]


@pytest.mark.parametrize("name", _published())
def test_shipped_configs_count_to_their_published_columns(name):
    """The tables round most figures; a few are cut off or one too high."""
    config = load_config(name)
    total = paper_count(config.model.backbone).total
    flops = config.published.flops.removesuffix("G")
    assert abs(total.macs / 1e9 - float(flops)) < 10 ** -len(flops.partition(".")[2])
    if config.published.params is not None:
        assert abs(total.params / 1e6 - int(config.published.params.removesuffix("M"))) < 1


def test_every_published_row_is_a_shipped_config():
    tasks = [name.split("/")[0] for name in _published()]
    assert tasks.count("detection") == len(PAPER) == 24
    assert tasks.count("segmentation") == len(SEGMENTATION) == 5
    assert tasks.count("classification") == len(CLASSIFICATION) == 3


def test_letters_may_be_of_either_case_and_default_to_the_released_resolutions():
    assert backbone_from_letters("TSB") == backbone_from_letters("tsb", (1568, 1120, 672))
    assert backbone_from_letters("b").resolutions == (1024,)
    assert backbone_from_letters("tsbl").branch_names == ["T 1568", "S 1120", "B 672", "L 448"]


@pytest.mark.parametrize(
    ("letters", "resolutions", "words"),
    [
        ("txb", None, "branches 'txb': use the letters t, s, b and l"),
        ("", None, "use the letters"),
        ("tb", None, "no row of branches 'tb' was released; give 2 with --resolutions"),
        ("tsb", (1568, 1120), "3 branches need as many resolutions, got 1568/1120"),
        ("tsb", (672, 1120, 1568), "finest resolution first, got 672/1120/1568"),
        ("ts", (64, -64), "branches 'ts': resolutions.1: give a number greater than 0 (got -64)"),
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


def test_the_papers_count_is_left_out_where_its_conventions_do_not_reach():
    branches = [{"size": "T"}, {"type": "convnext", "model": "convnextv2_nano"}]
    backbone = BackboneConfig.model_validate({"branches": branches, "resolutions": [64, 32], "interactions": 3})
    assert paper_script(backbone) is None
    assert paper_cost(backbone) is None
    with pytest.raises(ConfigError, match="ViTs and for convnext_tiny"):
        paper_count(backbone)
    with pytest.raises(ConfigError, match="plain ViT branches only"):
        classification_count(backbone)


# --- recorded --------------------------------------------------------------------------------------------------------


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
