"""The words of every error in a config."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import pytest

from piip.branches.vit.config import ViTConfig
from piip.config import load as load_module
from piip.config.load import config_from_dict, load_config
from piip.config.strict import Component, Strict
from piip.errors import ConfigError
from tests.config.cases import CLASSIFIER, CONVNEXT, DINO, MINIMAL, SHAPES, TSB, UPERNET, message

# --- unreadable files ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"a: [1, 2", "is not valid YAML"),
        (b"a: \xff\xfe", "is not valid YAML"),
        (b"- 1\n- 2\n", "must hold a mapping of keys, got list"),
        (b"", "must hold a mapping of keys, got NoneType"),
        (b"x: !!python/object/apply:os.getcwd []", "is not valid YAML"),
    ],
)
def test_a_file_that_is_no_config_is_named(tmp_path, content, words):
    path = tmp_path / "broken.yaml"
    path.write_bytes(content)
    text = message(load_config, path)
    assert words in text
    assert str(path) in text


def test_a_file_that_cannot_be_opened_is_named_with_the_reason(write, monkeypatch):
    def refuse(self, *_):
        raise PermissionError(13, "Permission denied", str(self))

    path = write(MINIMAL)
    monkeypatch.setattr(Path, "open", refuse)
    assert message(load_config, path) == f"cannot read config {path}: Permission denied"


# --- wrong keys and values -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("addition", "words"),
    [
        (
            "optim: {learning_rate: 1}",
            ["optim.learning_rate", "unknown key 'learning_rate'", "valid keys: lr, weight_decay"],
        ),
        ("optim: {weight_decey: 1}", ["optim.weight_decey", "did you mean 'weight_decay'?"]),
        ("opitm: {lr: 1}", ["opitm", "did you mean 'optim'?"]),
        ("3: 4", ["unknown key '3'"]),
        ("optim: {lr: fast}", ["optim.lr", "give a number, as in 0.5", "(got 'fast')"]),
        ("optim: {lr: -1}", ["optim.lr", "greater than 0", "(got -1)"]),
        ("optim: {layer_decay: 1.5}", ["optim.layer_decay", "at most 1", "(got 1.5)"]),
        ("train: {precision: fp8}", ["train.precision", "'auto', 'fp32' or 'bf16'", "(got 'fp8')"]),
        ("train: {seed: 0.5}", ["train.seed", "give a whole number", "(got 0.5)"]),
        ("train:", ["train", "(got null)"]),
        ("optim: 3", ["optim", "(got 3)"]),
    ],
)
def test_a_wrong_key_or_value_is_named_with_its_file_and_remedy(write, addition, words):
    path = write(MINIMAL + addition)
    text = message(load_config, path)
    assert text.startswith(f"{path}: ")
    assert all(word in text for word in words), text


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ("resolutions: [64, 32]", "resolutions: [64]", "2 branches need as many resolutions, got 64"),
        ("resolutions: [64, 32]", "resolutions: [32, 64]", "finest resolution first, got 32/64"),
        ("resolutions: [64, 32]", "resolutions: [64, 0]", "model.backbone.resolutions.1"),
        ("resolutions: [64, 32]", "", "model.backbone.resolutions: this key is missing"),
        ("{size: T}", "{size: X}", "model.backbone.branches.0.size"),
        ("{size: T}", "{embed_dim: 100, depth: 2}", "model.backbone.branches.0.num_heads: this key is missing"),
        ("{size: T}", "{size: T, num_heads: 5}", "embed_dim 192 is not divisible by num_heads 5"),
        ("{size: T}", "{size: T, window: 7}", "did you mean 'window_size'?"),
        ("branches: [{size: T}, {size: S}]", "branches: []", "model.backbone.branches"),
        ("{type: shapes, images: 4}", "{type: shape, images: 4}", "data.train"),
        ("{type: shapes, images: 4}", "{images: 4}", "data.train"),
        ("{type: shapes, images: 4}", "{type: shapes}", "data.train.images: this key is missing"),
        ("{type: shapes, images: 4}", "{type: shapes, sise: 8}", "data.train.sise: unknown key 'sise'; did you mean"),
        ("{type: shapes, images: 4}", "{type: coco, images: a, annotation: b}", "did you mean 'annotations'?"),
        ("schedule: {iterations: 2}", "schedule: {}", "schedule: give exactly one of epochs and iterations"),
        ("schedule: {iterations: 2}", "schedule: {epochs: 1, iterations: 2}", "exactly one of epochs and iterations"),
        ("schedule: {iterations: 2}", "", "schedule: this key is missing"),
    ],
)  # fmt: skip
def test_a_network_or_schedule_that_cannot_be_is_refused_in_plain_words(write, old, new, words):
    assert old in MINIMAL
    path = write(MINIMAL.replace(old, new))
    text = message(load_config, path)
    assert words in text
    assert str(path) in text


def test_every_mistake_is_reported_not_only_the_first(write):
    text = message(load_config, write(MINIMAL + "optim: {lr: fast, weight_decay: slow}"))
    assert len(text.splitlines()) == 2
    assert "optim.lr" in text
    assert "optim.weight_decay" in text


def test_config_from_dict_names_the_source_it_was_given():
    assert message(lambda: config_from_dict({}, source="checkpoint")).startswith(
        "checkpoint: name: this key is missing"
    )


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("base: 3", "'base' must be a file, a shipped name, or a list of these"),
        ("base: null", "'base' must be a file"),
        ("base: [1]", "'base' must be a file"),
        ("model: &m\n  backbone: *m", "an anchor refers to itself"),
    ],
)
def test_a_malformed_file_is_refused(text: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "odd.yaml").write_text(text)
    with pytest.raises(ConfigError, match=message):
        load_config(tmp_path / "odd.yaml")


@pytest.mark.parametrize("key", ["model.head", "model.neck", "model.backbone.branches.0", "data.train",
                                 "data.train_transforms"])  # fmt: skip
@pytest.mark.parametrize("name", [TSB, UPERNET, CLASSIFIER])
@pytest.mark.parametrize("unknown", ["colour", "vit", "shapes", "none"])
def test_an_unknown_key_is_named_as_written_whatever_the_type_of_the_part(name: str, key: str, unknown: str) -> None:
    text = message(load_config, name, [f"{key}.{unknown}=red"])
    assert text.startswith(f"command line: {key}.{unknown}: unknown key '{unknown}'; ")


@pytest.mark.parametrize(
    ("name", "key", "value"),
    [
        (TSB, "data.train.keep_empty", "perhaps"),
        (UPERNET, "data.train.reduce_zero_label", "perhaps"),
        (CLASSIFIER, "data.val.max_image_pixels", "0"),
        (SHAPES, "data.val.size", "8"),
        (TSB, "data.train_transforms.resize.0.1", "wide"),
        (UPERNET, "data.val_transforms.pad_divisor", "0"),
        (CLASSIFIER, "data.train_transforms.mixup", "-1"),
        (TSB, "model.neck.levels", "0"),
        (DINO, "model.neck.out_channels", "7"),
        (TSB, "model.head.nms", "2"),
        (DINO, "model.head.points", "0"),
        (UPERNET, "model.head.window", "0"),
        (CLASSIFIER, "model.head.token", "last"),
        (TSB, "model.backbone.branches.2.drop_path", "1"),
        (CONVNEXT, "model.backbone.branches.1.model", "3"),
        # Unions without a type.
        (TSB, "model.backbone.interactions", "many"),
        (UPERNET, "data.train.class_names", "3"),
    ],
)
def test_a_wrong_value_is_named_by_its_key_as_written_and_nothing_else_is(name: str, key: str, value: str) -> None:
    lines = message(load_config, name, [f"{key}={value}"]).splitlines()
    assert {line.split(": ")[1] for line in lines} == {key}


@pytest.mark.parametrize("name", [TSB, UPERNET, CLASSIFIER])
@pytest.mark.parametrize(
    ("key", "near", "types"),
    [
        ("model.head", "upernet", "classifier, dino, mask_rcnn, upernet"),
        ("model.neck", "channel_mapper", "channel_mapper, fpn, none"),
        ("model.backbone.branches.1", "convnext", "convnext, hierarchical, timm_vit, vit"),
        ("data.val", "label_maps", "coco, image_folder, label_maps, labelme, shapes, voc, yolo"),
        ("data.train_transforms", "segmentation", "classification, detection, segmentation"),
    ],
)
def test_an_unknown_type_is_named_with_the_valid_ones_and_the_nearest(
    name: str, key: str, near: str, types: str
) -> None:
    given, start = near[:-1], f"command line: {key}.type: unknown type"
    text = message(load_config, name, [f"{key}.type={given}"])
    assert text == f"{start} '{given}', not among {types}; did you mean '{near}'?"
    text = message(load_config, name, [f"{key}.type=zzz"])
    assert text == f"{start} 'zzz', not among {types}; name one of these"


def test_data_without_a_type_is_told_the_valid_ones() -> None:
    text = message(load_config, TSB, ["data.val={images: a}"])
    assert text == "command line: data.val.type: name one of coco, image_folder, label_maps, labelme, shapes, voc, yolo"


@pytest.mark.parametrize("key", ["model.head", "model.backbone.branches.0", "data.train", "data.train_transforms"])
@pytest.mark.parametrize("value", ["3", "null", "[]", "coco"])
def test_a_part_of_several_types_that_is_no_mapping_is_named(key: str, value: str) -> None:
    text = message(load_config, TSB, [f"{key}={value}"])
    assert text.startswith(f"command line: {key}: give a mapping of keys, as in {{key: value}} (got ")


@pytest.mark.parametrize(
    ("name", "key", "value"),
    [
        (UPERNET, "test_scales", "[1, 0]"),
        (UPERNET, "pool_scales", "[1, 0]"),
        (SHAPES, "anchor_ratios", "[1, 0]"),
        (SHAPES, "anchor_ratios", "[]"),
    ],
)
def test_scales_and_ratios_of_nothing_are_refused(name, key, value):
    assert f"model.head.{key}" in message(load_config, name, [f"model.head.{key}={value}"])


@pytest.mark.parametrize(
    ("setting", "words"),
    [
        ("window_sise: 4", "window_sise: unknown key 'window_sise'; did you mean 'window_size'?"),
        ("drop_path: 1", "drop_path: give a number less than 1 (got 1)"),
        ("1: 2", "1: unknown key '1'; valid keys: " + ", ".join(ViTConfig.model_fields)),
        (
            "type: vitt",
            "type: unknown type 'vitt', not among convnext, hierarchical, timm_vit, vit; did you mean 'vit'?",
        ),
    ],
)
def test_a_mistake_in_every_branch_is_named_there_and_once(write, setting, words):
    base = write(MINIMAL, "base.yaml")
    path = write(f"base: {base}\nmodel: {{backbone: {{every_branch: {{{setting}}}}}}}")
    assert message(load_config, path) == f"{path}: model.backbone.every_branch.{words}"


def test_a_mistake_of_a_branch_is_named_there_although_every_branch_has_the_key(write):
    every = "{backbone: {every_branch: {drop_path: 0.5}, branches: [{size: T}, {size: S, drop_path: 1}]}}"
    path = write(f"base: {write(MINIMAL, 'base.yaml')}\nmodel: {every}")
    assert message(load_config, path).startswith(f"{path}: model.backbone.branches.1.drop_path: ")
    assert len(message(load_config, path).splitlines()) == 1


def test_a_key_that_a_replaced_mapping_lacks_is_missing_where_it_was_replaced(write):
    base = write(MINIMAL, "base.yaml")
    path = write(f"base: {base}\ndata: {{val: {{type: coco, annotations: a.json}}}}")
    assert message(load_config, path) == f"{path}: data.val.images: this key is missing"


def test_a_key_may_be_called_like_a_type(monkeypatch: pytest.MonkeyPatch) -> None:
    class Shape(Component):
        pass

    class Square(Shape):
        type: Literal["square"]
        square: int
        round: int

    class Round(Shape):
        type: Literal["round"]

    class Form(Strict):
        square: list[Shape]

    monkeypatch.setattr(load_module, "Config", Form)
    data = {"square": [{"type": "square", "square": "x"}, {"type": "round", "square": 1}]}
    keys = [line.split(": ")[1] for line in message(config_from_dict, data).splitlines()]
    assert keys == ["square.0.square", "square.0.round", "square.1.square"]


def test_a_list_index_is_plain_decimal() -> None:
    with pytest.raises(ConfigError, match=r"branches\.² does not exist|branches\.²"):
        load_config("detection/mask_rcnn_piip_nano_shapes", ["model.backbone.branches.².depth=3"])
