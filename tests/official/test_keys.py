"""The key tables, against the recorded key lists of all official networks."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from piip.config.experiment import Config
from piip.config.load import load_config
from piip.load import build_model
from piip.official.checkpoints import ConversionReport, convert_state_dict
from piip.official.keys import UNUSED, KeyTable, key_table
from tests.official.recorded import official_keys

# How many keys of each list have no counterpart in ours; all others have exactly one.
UNUSED_KEYS = {
    "dino_4scale_deit_384_sbl_1792_1120_672_fpn_3x_coco_bs32_ms": 6,  # the pyramid's finest level
    "dino_4scale_internvit_lh6b_1536_1024_512_fpn_2x_coco_bs32_ms": 6,
    "mask_rcnn_beit_sbl_1568_1120_672_fpn_1x_coco_bs16": 36,  # index tables
    "mask_rcnn_convnext-base_1024_regular-fpn": 2,  # last norms
    "mask_rcnn_convnext-t_convnext-s_vit-b_1024_672_448_regular-fpn": 4,
    "mask_rcnn_convnext-t_vit-s_convnext-b_1024_672_448_regular-fpn": 4,
    "mask_rcnn_convnext-t_vit-s_vit-b_1024_672_448_regular-fpn": 2,
    "mask_rcnn_convnext-tsb_1024_672_448_regular-fpn": 6,
    "mask_rcnn_vit-t_convnext-s_convnext-b_1024_672_448_regular-fpn": 4,
    "mask_rcnn_vit-t_convnext-s_vit-b_1024_672_448_regular-fpn": 2,
    "mask_rcnn_vit-t_vit-s_convnext-b_1024_672_448_regular-fpn": 2,
}
# One network of every kind is checked in every run.
FAST = (
    "vit_b", "tsb_1120", "beit", "uniperceiver", "convnext-tsb", "h6b_1024_512_fpn_1x_coco_bs16_ms_speedup",
    "upernet_internvit_6b", "upernet_internvit_h6b_192", "tsb_368", "sbl_320"
)  # fmt: skip
NETWORKS = [
    pytest.param(name, marks=[] if any(part in name for part in FAST) else [pytest.mark.slow])
    for name in sorted(official_keys())
    if name.startswith(("mask_rcnn_", "upernet_", "piip_3branch_"))
]


def convert_shapes(stem: str, config: Config) -> tuple[dict[str, Tensor], dict[str, Tensor], ConversionReport]:
    """Ours, what was converted, and the report, for an official state dict of the recorded shapes without values."""
    with torch.device("meta"):
        ours = build_model(config.model).state_dict()
        official = {key: torch.empty(shape) for key, shape in official_keys()[stem]}
    converted, report = convert_state_dict(official, ours, table=key_table(config.model.backbone))
    return ours, converted, report


def official_form(stem: str) -> Config:
    """The config of the network that the official code builds: its 4-branch class has two equal finest branches."""
    config = load_config(stem)
    return load_config(config.alternative) if config.alternative else config


@pytest.mark.parametrize("stem", NETWORKS)
def test_every_official_key_is_converted_or_known_to_be_unused(stem: str) -> None:
    ours, converted, report = convert_shapes(stem, official_form(stem))
    assert not report.unknown
    assert not report.missing
    assert not report.resized
    assert len(report.unused) == UNUSED_KEYS.get(stem, 0)
    assert report.reasons.keys() == set(report.unused)
    assert set(report.reasons.values()) <= set(UNUSED.values())
    assert len(report.loaded) == len(official_keys()[stem]) - len(report.unused)
    assert {key: value.shape for key, value in converted.items()} == {key: value.shape for key, value in ours.items()}


@pytest.mark.parametrize("stem", NETWORKS)
def test_the_way_back_is_the_inverse(stem: str) -> None:
    table = key_table(official_form(stem).model.backbone)
    for key, _ in official_keys()[stem]:
        if table.why_unused(key) is None or key.startswith("backbone.fpn1"):
            assert table.to_official(str(table.to_ours(key))) == key


@pytest.mark.slow
def test_the_published_form_of_tsbl_is_told_from_the_released_one() -> None:
    stem = "mask_rcnn_deit_tsbl_1568_1120_672_448_fpn_1x_coco_bs16"
    published = load_config(stem)
    assert [branch.size for branch in published.model.backbone.branches] == ["T", "S", "B", "L"]
    assert [branch.size for branch in official_form(stem).model.backbone.branches] == ["S", "S", "B", "L"]
    _, _, report = convert_shapes(stem, published)
    assert report.unknown[0] == "backbone.branch4.pos_embed (1, 196, 384), expected (1, 196, 192)"


def test_a_detector_has_the_official_number_of_parameters() -> None:
    with torch.device("meta"):
        model = build_model(load_config("detection/mask_rcnn_piip_tsb_1120_896_448").model)
    assert sum(value.numel() for value in model.state_dict().values()) == 195_735_411


@pytest.mark.parametrize(
    ("branches", "official", "name"),
    [
        (2, "backbone.branch1.pos_embed", "backbone.branches.1.pos_embed"),
        (4, "backbone.branch4.blocks.3.gamma_2", "backbone.branches.0.blocks.3.ls2.gamma"),
        (4, "backbone.interactions.5.interaction_units_34.branch2to1_injector.ca_gamma",
         "backbone.interactions.5.units.0.to_coarse.gamma"),
        (4, "backbone.interactions.5.interaction_units_12.branch1to2_injector.attn.value_proj.bias",
         "backbone.interactions.5.units.2.to_fine.attn.deform.value_proj.bias"),
        (3, "backbone.interactions.0.interaction_units_12.branch1to2_injector.attn.wq.weight",
         "backbone.interactions.0.units.1.to_fine.attn.q.weight"),
        (3, "backbone.w3", "backbone.merge.weights.0"),
        (3, "backbone.intermediate_merging_10_w1", "backbone.intermediate.10.weights.2"),
        (1, "backbone.blocks.0.attn.qkv.bias", "backbone.branches.0.blocks.0.attn.qkv.bias"),
        (1, "backbone.up2.0.weight", "backbone.pyramid.up2.weight"),
    ],
)  # fmt: skip
def test_branch_numbers_run_the_other_way(branches: int, official: str, name: str) -> None:
    table = KeyTable(branches)
    assert table.to_ours(official) == name
    assert table.to_official(name) == official


def test_an_unknown_key_has_no_name() -> None:
    assert KeyTable(3).to_ours("optimizer.step") is None
    assert KeyTable(3).why_unused("optimizer.step") is None
    assert KeyTable(3).why_unused("ema_backbone_w1") is not None
    assert KeyTable(3).to_official("backbone.interactions.0.units.0.sideways.gamma") is None
