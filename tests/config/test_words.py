"""Mistakes are told in the words of the field, with who made them and what to write instead."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import pytest

from piip.config.load import config_from_dict, find_config, load_config, shipped_configs
from piip.errors import ConfigError
from tests.config.cases import CLASSIFIER, CONVNEXT, DINO, MINIMAL, SHAPES, TSB, UPERNET, message


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("model.backbone.resolutions=128,96,64",
         "model.backbone.resolutions: give a list, as in [1568,1120,672] (got '128,96,64')"),
        ("data.train_transforms.resize=640", "data.train_transforms.resize: give a list, as in [[1333,800]] (got 640)"),
        ("data.train_transforms.resize=[640,640]",
         "data.train_transforms.resize: give a list, as in [[1333,800]] (got [640, 640])"),
        ("data.train_transforms.resize=[[0,640]]",
         "data.train_transforms.resize.0.0: give a number greater than 0 (got 0)"),
        ("data.val=null", "data.val: give a mapping of keys, as in {key: value} (got null)"),
        ("model.mean=[1,2]", "model.mean: give a list, as in [127.5,127.5,127.5] (got [1, 2])"),
        ("model.backbone.interactions=many",
         "model.backbone.interactions: give a whole number, as in 8, or a list, as in [[2,5,8,11],[5,11,17,23]] "
         "(got 'many')"),
        ("data.workers=1000000", "data.workers: give a number of at most 256 (got 1000000)"),
        ("scale=1.0e+308", "scale: give a number of at most 100 (got 1e+308)"),
        ("optim.lr=.inf", "optim.lr: give a finite number (got inf)"),
        ("optim.lr=1.0e+999", "optim.lr: give a finite number (got inf)"),
        ("optim.clip_grad_norm=nan", "optim.clip_grad_norm: give a finite number (got 'nan')"),
        ("model.mean=[.nan,0,0]", "model.mean.0: give a finite number (got nan)"),
        # What concerns several settings is told of whoever set the one that is named.
        ("model.backbone.resolutions=[128,96]", "model.backbone: 3 branches need as many resolutions, got 128/96"),
        ("model.backbone.resolutions=[64,96,128]",
         "model.backbone: resolutions: branches are listed finest resolution first, got 64/96/128"),
        ("model.backbone.branches.0.num_heads=5",
         "model.backbone.branches.0: embed_dim 48 is not divisible by num_heads 5"),
        ("schedule.epochs=3", "schedule: give exactly one of epochs and iterations, and null for the other, as in "
         "schedule.iterations=null"),
        ("model.backbone.merge=false", "model: backbone.merge: false is for head: {type: classifier}; mask_rcnn needs "
         "the merged maps"),
        ("data.val_transforms.type=classification",
         "config: data.val_transforms are for classification, but model.head mask_rcnn is for detection: set "
         "data.val_transforms.type: detection, with its settings"),
        # Names of timm, and widths that contradict them.
        ("model.backbone.branches.0.model=vit_smal_patch16_224",
         "model.backbone.branches.0: timm has no model 'vit_smal_patch16_224'"),
        ("model.backbone.branches.0.model=vit_small_patch16_224",
         "model.backbone.branches.0: embed_dim 48 contradicts model 'vit_small_patch16_224', whose is 384; leave one "
         "out"),
        # Keys.
        ("lr=0.1", "lr: unknown key 'lr'; did you mean optim.lr?"),
        ("epochs=3", "epochs: unknown key 'epochs'; did you mean schedule.epochs?"),
        ("opitm.lr=1", "opitm: unknown key 'opitm'; did you mean 'optim'?"),
        ("name=2020-10-13", "name: give text (got 2020-10-13)"),
        ("bse=x", "bse: unknown key 'bse'; did you mean 'base'?"),
        ("drop_path=0", "drop_path: unknown key 'drop_path'; did you mean model.backbone.branches.0.drop_path, "
         "model.backbone.interaction.drop_path?"),
        ("data.train.labels=x",
         "data.train.labels: unknown key 'labels'; 'labels' belongs to type label_maps; data.train.type is shapes"),
        ("model.head.num_queries=3",
         "model.head.num_queries: unknown key 'num_queries'; 'num_queries' belongs to type dino; model.head.type is "
         "mask_rcnn"),
        ("model.head.rpn=3", "model.head.rpn: unknown key 'rpn'; did you mean one of rpn_batch, rpn_pre_nms_train, "
         "rpn_pre_nms_test, ...?"),
    ],
)  # fmt: skip
def test_a_mistake_on_the_command_line_is_told_as_one_in_plain_words(override: str, words: str) -> None:
    assert message(load_config, SHAPES, [override]).startswith(f"command line: {words}")


def test_what_a_file_and_its_base_make_together_is_told_of_the_file(write) -> None:
    write(MINIMAL, "base.yaml")
    path = write("base: base.yaml\nmodel: {backbone: {resolutions: [64]}}")
    assert message(load_config, path) == f"{path}: model.backbone: 2 branches need as many resolutions, got 64"
    # The command line has said something too, but nothing that matters here.
    text = message(load_config, path, ["model.backbone.interactions=3"])
    assert text.startswith(f"{path}: ")


def test_an_override_may_have_spaces_around_its_sign_and_one_that_the_shell_cut_is_explained() -> None:
    assert load_config(SHAPES, ["train.seed = 7"]).train.seed == 7
    assert "without spaces around '='" in message(load_config, SHAPES, ["optim.lr", "=", "0.1"])
    assert "in quotes, as in 'key=[1, 2]'" in message(load_config, SHAPES, ["model.backbone.resolutions=[128,", "96]"])


def _leaves(node: Any, keys: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    yield keys
    items = node.items() if isinstance(node, dict) else enumerate(node) if isinstance(node, list) else ()
    for key, value in items:
        yield from _leaves(value, (*keys, key))


@pytest.mark.parametrize("name", [TSB, CONVNEXT, DINO, UPERNET, CLASSIFIER, SHAPES])
def test_no_wrong_value_of_any_setting_is_answered_in_words_of_the_code(name: str) -> None:
    data = load_config(name).model_dump(mode="json")
    told = 0
    for keys in list(_leaves(data))[1:]:
        for wrong in ("??", -1.5, None, [], {}, [None], {"x": 1}, float("nan"), 10**12, True):
            *parents, last = keys
            node = data
            for key in parents:
                node = node[key]
            before, node[last] = node[last], wrong
            try:
                config_from_dict(data)
            except ConfigError as error:
                told += 1
                words = re.sub(r"\(got .*\)", "", str(error))
                assert not re.search(
                    r"Input|a valid|[Tt]uple|[Ll]ist should|dict|instance of|require|string|None", words
                ), words
            node[last] = before
    assert told > 500


@pytest.mark.parametrize("name", sorted(shipped_configs()))
def test_the_last_part_of_a_shipped_name_will_do(name: str) -> None:
    assert find_config(name.split("/")[-1]) == shipped_configs()[name]


def test_a_name_that_many_begin_with_is_answered_with_some_of_them() -> None:
    for name in ("mask_rcnn_piip_tsb", "detection/mask_rcnn_piip_tsb"):
        assert message(load_config, name) == (
            f"unknown config '{name}'; did you mean one of detection/mask_rcnn_piip_tsb_1120_896_448, "
            "detection/mask_rcnn_piip_tsb_1568_1120_672, detection/mask_rcnn_piip_tsb_1568_896_448, ...?"
        )


def test_a_run_is_a_config_and_other_folders_and_files_are_told_apart(write, tmp_path) -> None:
    file = write(MINIMAL, "run/config.yaml")
    assert load_config(tmp_path / "run") == load_config(file)
    assert message(load_config, tmp_path).startswith(f"{tmp_path} is a folder without a config.yaml; ")
    write("x", "picture.jpg")
    assert message(load_config, tmp_path / "picture.jpg").startswith(f"{tmp_path / 'picture.jpg'} is no config; ")
