"""The list of timm's networks that can be branches says what building one of them finds."""

from __future__ import annotations

import json

import pytest
import timm
import torch

from piip.branches import catalogue
from piip.branches.catalogue import backbones, describe
from piip.branches.config import BranchConfig
from tests.cli.chain import run

FAMILIES = {
    "deit_tiny_patch16_224": "vit",
    "vit_small_patch16_dinov3": "timm_vit",
    "vit_small_patch14_reg4_dinov2": "timm_vit",
    "eva02_tiny_patch14_224": "timm_vit",
    "convnextv2_atto": "convnext",
    "swin_tiny_patch4_window7_224": "hierarchical",
    "sam2_hiera_tiny": "hierarchical",
    "hiera_tiny_224": "hierarchical",
}


@pytest.mark.parametrize("name", FAMILIES)
def test_the_record_is_what_building_finds(name: str) -> None:
    recorded = catalogue._record()[name]
    assert tuple(recorded) == describe(name)
    assert recorded[0] == FAMILIES[name] == BranchConfig.meant_type({"model": name})
    with torch.device("meta"):
        whole = sum(p.numel() for p in timm.create_model(name, num_classes=0).parameters())
    assert 0.75 * whole < recorded[1] <= whole  # without the norm behind the blocks, and an unused class token


def test_what_cannot_be_a_branch_is_not_listed() -> None:
    record = catalogue._record()
    assert all(record[name] is None for name in ("resnet50", "mvitv2_tiny"))
    assert not backbones("resnet50.a1_in1k")
    assert sum(facts is not None for facts in record.values()) > 300


def test_an_architecture_beyond_the_record_is_built(monkeypatch: pytest.MonkeyPatch) -> None:
    record = {key: value for key, value in catalogue._record().items() if "dinov3" not in key}
    monkeypatch.setattr(catalogue, "_record", lambda: record)
    found = {one.name: one for one in backbones("vit_small_patch16_dinov3")}
    one = found["vit_small_patch16_dinov3.lvd1689m"]
    assert (one.type, one.strides, one.prefix, one.licence) == ("timm_vit", (16, 16), 5, "dinov3-license")


def test_the_command_prints_them() -> None:
    rows = json.loads(run("models", "--backbones", "dinov3", "--json").stdout)
    names = {row["name"] for row in rows}
    assert {"vit_small_patch16_dinov3.lvd1689m", "convnext_tiny.dinov3_lvd1689m"} <= names
    text = run("models", "--backbones", "convnext_*dinov3*").stdout
    assert "dinov3-license" in text
    assert "4-32" in text
    refused = run("models", "--backbones", "resnet50")
    assert refused.exit_code == 2
    assert "can be a branch has 'resnet50' in its name" in refused.stderr
