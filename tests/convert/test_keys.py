"""The key tables, against the recorded key list of an official detector."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from piip.config import load_config
from piip.convert.keys import KeyTable
from piip.model import build_model

RECORDED = json.loads((Path(__file__).parents[1] / "golden" / "tsb_1120_896_448.json").read_text())


@pytest.fixture(scope="module")
def ours() -> dict[str, torch.Tensor]:
    with torch.device("meta"):
        return build_model(load_config("detection/mask_rcnn_piip_tsb_1120_896_448").model).state_dict()


def test_every_official_key_has_exactly_one_name_of_ours_with_the_same_shape(ours: dict[str, torch.Tensor]) -> None:
    table = KeyTable(3)
    mapped = {table.to_ours(key): tuple(shape) for key, shape in RECORDED["keys"]}
    assert mapped == {key: tuple(value.shape) for key, value in ours.items()}


def test_the_way_back_is_the_inverse() -> None:
    table = KeyTable(3)
    for key, _ in RECORDED["keys"]:
        assert table.to_official(table.to_ours(key)) == key


def test_the_detector_has_the_official_number_of_parameters(ours: dict[str, torch.Tensor]) -> None:
    assert sum(value.numel() for value in ours.values()) == RECORDED["n_params"] == 195_735_411


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
    assert KeyTable(3).to_official("backbone.interactions.0.units.0.sideways.gamma") is None
