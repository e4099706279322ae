"""Counting as the papers do, held against the integers of the official scripts."""

from __future__ import annotations

from typing import Literal

import pytest

from piip.backbone.config import BackboneConfig
from piip.branches.config import BranchConfig
from piip.config.letters import backbone_from_letters
from piip.config.load import load_config, shipped_configs
from piip.errors import ConfigError
from piip.flops.costs import Cost
from piip.official.flops.parts import Map, pyramid
from piip.official.flops.scripts import classification_count, detection_count, paper_cost, paper_count, paper_script
from piip.official.keys import key_table

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

# Rows that the papers print and no official config has (the ablations on equal cost, and table 13).
ABLATIONS = ["tsb_896_896_896", "bbb_896_448_224"]
FROM_SCRATCH = ["piip_b_512_256_128_scratch"]

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
    assert tasks.count("detection") == len(PAPER) + len(ABLATIONS) == 26
    assert tasks.count("segmentation") == len(SEGMENTATION) == 5
    assert tasks.count("classification") == len(CLASSIFICATION) + len(FROM_SCRATCH) == 4


def test_the_papers_count_is_left_out_where_its_conventions_do_not_reach():
    branches = [{"size": "T"}, {"type": "convnext", "model": "convnextv2_nano"}]
    backbone = BackboneConfig.model_validate({"branches": branches, "resolutions": [64, 32], "interactions": 3})
    assert paper_script(backbone) is None
    assert paper_cost(backbone) is None
    with pytest.raises(ConfigError, match="ViTs and for convnext_tiny"):
        paper_count(backbone)
    with pytest.raises(ConfigError, match="plain ViT branches only"):
        classification_count(backbone)


def test_a_classifier_without_class_tokens_in_all_branches_is_in_no_table():
    branches = [{"embed_dim": 32, "depth": 1, "num_heads": 1, "class_token": i == 0} for i in range(2)]
    settings = {"branches": branches, "resolutions": [64, 32], "interactions": 1, "merge": False}
    assert paper_cost(BackboneConfig.model_validate(settings)) is None


@pytest.mark.parametrize("official", PAPER)
def test_what_the_pretrained_files_are_called_does_not_change_a_count(official):
    backbone = load_config(official).model.backbone
    for init in (None, "deit.pth", "mine.pth"):
        renamed = tuple(branch.model_copy(update={"init": init}) for branch in backbone.branches)
        total = paper_count(backbone.model_copy(update={"branches": renamed})).total
        assert (total.macs, total.params) == PAPER[official]


@pytest.fixture
def stranger():
    """The name of a type of branch that somebody else has defined."""

    class Stranger(BranchConfig):
        type: Literal["stranger"] = "stranger"

        def build(self):
            raise NotImplementedError

    yield "stranger"
    del BranchConfig.members["stranger"]


def test_a_branch_that_the_official_code_does_not_know_is_not_counted_as_it_does(stranger):
    branches = [{"type": stranger}, {"size": "T"}]
    backbone = BackboneConfig.model_validate({"branches": branches, "resolutions": [64, 32], "interactions": 3})
    assert paper_script(backbone) is None
    assert paper_cost(backbone) is None
    for count in (detection_count, classification_count, key_table):
        with pytest.raises(ConfigError):
            count(backbone)
