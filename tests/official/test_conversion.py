"""Whole files: an official checkpoint converted to ours and back, for the form that the config names or the other."""

from __future__ import annotations

import argparse
import re
from pathlib import Path

import pytest
import torch
import yaml
from torch import Tensor

from piip.config.experiment import Config
from piip.config.load import load_config
from piip.engine.checkpoint import save_checkpoint
from piip.errors import CheckError
from piip.load import build_model
from piip.official.branch_class import branch_class
from piip.official.checkpoints import convert_back, convert_checkpoint
from piip.official.keys import key_table
from piip.weights.files import read_weights
from tests.cli.chain import run

NANO = "detection/mask_rcnn_piip_nano_shapes"
SMALL = [
    "model.backbone.interactions=2",
    "model.backbone.resolutions=[128,96,64]",
    "model.neck.out_channels=32",
    "model.head.fc_channels=16",
    "model.head.mask_channels=8",
]
COMMON = {"depth": 2, "num_heads": 2, "embed_dim": 32}
UNIPERCEIVER = COMMON | {"embed_norm": True, "frame_embed": True, "layer_scale": 0.0, "pretrain_size": 32}
BEIT = COMMON | {"position": "relative", "qkv_bias": "qv", "window_size": 3}
INTERNVIT = COMMON | {"norm": "rms", "qkv_bias": "none", "qk_norm": True, "drop_path_schedule": "linear"}
CONVNEXT = {"type": "convnext", "model": "convnext_atto"}
DEIT = COMMON | {"pretrain_size": 64}
TINY_CLASSIFIER = [
    "model.backbone.interactions=2",
    "model.backbone.interaction.num_heads=2",
    *(f"model.backbone.branches.{index}.{key}={value}" for index in range(3) for key, value in COMMON.items()),
]


def config_of(*branches: dict) -> Config:
    return load_config(NANO, [*SMALL, f"model.backbone.branches={list(branches)}"])


def official_weights(config: Config) -> dict[str, Tensor]:
    """Random weights of the official network, with the tensors it has beyond ours."""
    torch.manual_seed(0)
    backbone = config.model.backbone
    table = key_table(backbone)
    state = {}
    for key, value in build_model(config.model).state_dict().items():
        tensor, official = torch.randn(value.shape), str(table.to_official(key))
        if official.endswith("spatial_pos_embed.weight"):
            tensor = tensor[0]
        elif official.endswith("temporal_pos_embed.weight"):
            tensor = torch.cat([tensor[0], torch.zeros(7, tensor.shape[2])])
        elif official.endswith("pos_embed") and branch_class(backbone.branches[int(key.split(".")[2])]) == "internvit":
            tensor = torch.cat([torch.zeros(1, 1, tensor.shape[2]), tensor], dim=1)
        state[official] = tensor
    return state


@pytest.mark.parametrize(
    ("branches", "computed"),
    [
        ((DEIT, UNIPERCEIVER, INTERNVIT), []),
        ((DEIT, BEIT, BEIT), ["relative_position_index"] * 4),
        ((CONVNEXT, DEIT, DEIT), ["convnext_model.layernorm.weight", "convnext_model.layernorm.bias"]),
    ],
)
def test_there_and_back_gives_the_same_file(branches: tuple[dict, ...], computed: list[str], tmp_path: Path) -> None:
    config = config_of(*branches)
    official = official_weights(config)
    torch.save({"state_dict": official, "meta": {"CLASSES": ("cat", "dog")}}, tmp_path / "official.pth")
    report = convert_checkpoint(tmp_path / "official.pth", tmp_path / "ours.safetensors", config=config)
    assert len(report.loaded) == len(official)
    assert read_weights(tmp_path / "ours.safetensors")[1].class_names == ["cat", "dog"]
    convert_back(tmp_path / "ours.safetensors", tmp_path / "back.pth", config=config)
    back = torch.load(tmp_path / "back.pth", weights_only=True)
    assert back["meta"] == {"CLASSES": ("cat", "dog")}
    added = back["state_dict"].keys() - official.keys()
    assert sorted(added) == sorted(key for key in added if key.endswith(tuple(computed)) and computed)
    assert len(added) == len(computed)
    for key, value in official.items():
        assert torch.equal(back["state_dict"][key], value), key


def test_a_classification_file_is_converted_and_written_back(tmp_path: Path) -> None:
    """As the official loop saves it: weights, averaged weights, and the command line as an argparse.Namespace."""
    config = load_config("classification/piip_sbl_320_160_96", ["model.head.num_classes=3", *TINY_CLASSIFIER])
    official = official_weights(config)
    averaged = {key: value + 1 for key, value in official.items()}
    beside = {"optimizer": {"state": {}}, "epoch": 19, "args": argparse.Namespace(model="piip.py", lr=3e-5)}
    torch.save({"model": official, "model_ema": averaged, **beside}, tmp_path / "official.pth")
    for ema, expected in ((False, official), (True, averaged)):
        ours = tmp_path / f"ours_{ema}.safetensors"
        report = convert_checkpoint(tmp_path / "official.pth", ours, config=config, ema=ema)
        assert len(report.loaded) == len(official)
        convert_back(ours, tmp_path / "back.pth", config=config)
        back = torch.load(tmp_path / "back.pth", weights_only=True)["model"]
        assert back.keys() == expected.keys()
        for key, value in expected.items():
            # The slot of a class token in a position embedding is read by nobody, and comes back as zeros.
            padded = key.endswith("pos_embed")
            assert torch.equal(back[key][:, 1:] if padded else back[key], value[:, 1:] if padded else value), key


def test_bf16_stays_bf16(tmp_path: Path) -> None:
    config = config_of(DEIT, DEIT, DEIT)
    state = {f"module.{key}": value.bfloat16() for key, value in official_weights(config).items()}
    torch.save({"module": state, "optimizer": None}, tmp_path / "official.pt")
    convert_checkpoint(tmp_path / "official.pt", tmp_path / "ours.safetensors", config=config)
    assert {value.dtype for value in read_weights(tmp_path / "ours.safetensors")[0].values()} == {torch.bfloat16}


@pytest.mark.parametrize("shape", [(), (7,), (3, 17, 32), (2, 2, 16, 32), (1, 0, 32), (1, 17, 5)])
def test_embeddings_of_no_shape_that_could_be_resampled_are_named(tmp_path: Path, shape: tuple[int, ...]) -> None:
    config = config_of(DEIT, DEIT, DEIT)
    state = official_weights(config)
    key = next(key for key in state if key.endswith("pos_embed"))
    torch.save({"state_dict": state | {key: torch.zeros(shape)}}, tmp_path / "official.pth")
    with pytest.raises(CheckError, match=rf"1 unknown or of another shape: {re.escape(key)}"):
        convert_checkpoint(tmp_path / "official.pth", tmp_path / "ours.safetensors", config=config)


def test_weights_of_another_network_cannot_be_written_back(tmp_path: Path) -> None:
    config = config_of(DEIT, DEIT, DEIT)
    torch.save({"state_dict": official_weights(config)}, tmp_path / "official.pth")
    convert_checkpoint(tmp_path / "official.pth", tmp_path / "ours.safetensors", config=config)
    with pytest.raises(CheckError, match="does not hold the weights of"):
        convert_back(tmp_path / "ours.safetensors", tmp_path / "back.pth", config=config_of(DEIT, DEIT, BEIT))
    assert not (tmp_path / "back.pth").exists()


@pytest.mark.parametrize("option", ["--ema", "--no-strict"])
def test_what_only_the_way_to_ours_knows_is_refused_on_the_way_back(option: str, tmp_path: Path) -> None:
    source, output = tmp_path / "ours.safetensors", tmp_path / "back.pth"
    source.touch()
    done = run("convert-ckpt", source, output, "--config", NANO, "--to-official", option)
    assert done.exit_code == 2
    assert "ema.safetensors" in done.stderr
    assert not output.exists()


def test_a_checkpoint_is_written_back_as_the_average_that_was_evaluated(tmp_path: Path) -> None:
    config = config_of(DEIT, DEIT, DEIT)
    weights = {name: build_model(config.model).state_dict() for name in ("model", "ema")}
    checkpoint = save_checkpoint(tmp_path, 1, weights=weights, trainer={}, config={}, class_names=["cat"])
    convert_back(checkpoint, tmp_path / "back.pth", config=config)
    back = torch.load(tmp_path / "back.pth", weights_only=True)
    assert back["meta"] == {"CLASSES": ("cat",)}
    assert torch.equal(back["state_dict"]["neck.lateral_convs.0.conv.weight"], weights["ema"]["neck.lateral.0.weight"])


def test_a_checkpoint_of_the_alternative_form_is_converted_for_that_form(tmp_path: Path) -> None:
    forms = {"narrow": COMMON, "wide": COMMON | {"embed_dim": 64}}
    paths = {name: tmp_path / f"{name}.yaml" for name in forms}
    for (name, finest), other in zip(forms.items(), ("wide", "narrow"), strict=True):
        config = config_of(finest, DEIT, DEIT).model_dump(mode="json")
        config |= {"name": name, "alternative": str(paths[other])}
        paths[name].write_text(yaml.safe_dump(config))
    torch.save({"state_dict": official_weights(load_config(paths["wide"]))}, tmp_path / "official.pth")
    for asked in forms:
        config = load_config(paths[asked])
        report = convert_checkpoint(tmp_path / "official.pth", tmp_path / "ours.safetensors", config=config)
        assert report.config == "wide"
        assert not report.unknown
        assert (read_weights(tmp_path / "ours.safetensors")[1].config or {})["name"] == "wide"
