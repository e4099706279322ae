"""Official Python configs, read as data and explained as ours."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml

from piip.config.load import load_config
from piip.errors import ConfigError
from piip.official.configs.explain import explain_official_config, explain_settings, write_explained_config
from piip.official.configs.python import read_python_config
from tests.cli.chain import run, succeed
from tests.official.recorded import official_recipes

UPERNET = "upernet_internvit_h6b_256_512_80k_ade20k_bs16_lr4e-5"
VIT_B = "mask_rcnn_deit_vit_b_fpn_1x_coco_bs16"


@pytest.mark.parametrize("stem", sorted(official_recipes()))
def test_every_official_config_is_found_among_the_shipped(stem: str) -> None:
    found = explain_settings(official_recipes()[stem], Path(f"{stem}.py"))
    assert load_config(found.shipped).official == stem
    assert found.differences == {}
    assert found.unmapped == []


def test_dino_is_not_clipped_as_its_files_say_but_deepspeed_never_did() -> None:
    stem = "dino_4scale_deit_384_sbl_1792_1120_672_fpn_3x_coco_bs32_ms"
    settings = official_recipes()[stem]
    assert settings["optimizer_config"]["grad_clip"]["max_norm"] == 0.1
    assert load_config(stem).optim.clip_grad_norm is None
    elsewhere = {name: value for name, value in settings.items() if name != "deepspeed_config"}
    assert explain_settings(elsewhere, Path(f"{stem}.py")).differences == {"optim.clip_grad_norm": (None, 0.1)}


def as_python(settings: dict) -> str:
    return "".join(f"{name} = {value!r}\n" for name, value in settings.items())


def test_a_changed_classification_config_is_explained_too(tmp_path: Path) -> None:
    path = tmp_path / "mine.py"
    settings = json.loads(json.dumps(official_recipes()["piip_3branch_tsb_368-192-128_cls_token_deit1"]))
    settings["model"]["backbone"]["interaction_drop_path_rate"] = 0.2
    settings["model"]["backbone"]["branch1"]["drop_rate"] = 0.1
    path.write_text(as_python(settings))
    found = explain_official_config(path)
    assert found.shipped == "classification/piip_tsb_368_192_128"
    assert found.differences == {"model.backbone.interaction.drop_path": (0.4, 0.2)}
    assert found.unmapped == ["model.backbone.branch1.drop_rate"]
    settings["model"]["backbone"]["separate_head"] = False
    path.write_text(as_python(settings))
    with pytest.raises(ConfigError, match="not the config of an official PIIP classifier"):
        explain_official_config(path)


@pytest.fixture
def official(tmp_path: Path) -> Path:
    """The single ViT-B in two files: a base with everything, and an empty one on top."""
    (tmp_path / "base.py").write_text(as_python(official_recipes()[VIT_B]))
    path = tmp_path / f"{VIT_B}.py"
    path.write_text("_base_ = ['base.py']\n")
    return path


def test_changed_settings_are_named_and_written_on_top_of_the_shipped_config(official: Path) -> None:
    text = """
layers = 12
model = dict(
    backbone=dict(drop_path_rate=0.3, window_attn=[True] * layers, window_size=[14] * layers),
    roi_head=dict(bbox_head=dict(num_classes=7)))
optimizer = dict(lr=2e-4)
"""
    official.write_text(official.read_text() + text)
    found = explain_official_config(official)
    assert found.shipped == "detection/mask_rcnn_vit_b"
    assert set(found.differences) == {"model.backbone.branches", "model.head.num_classes", "optim.lr"}
    assert found.differences["optim.lr"] == (1e-4, 2e-4)
    output = official.with_name("ours.yaml")
    write_explained_config(found, output)
    assert yaml.safe_load(output.read_text())["base"] == found.shipped  # a path would tie the file to this installation
    config, shipped = load_config(output), load_config(found.shipped)
    branch = config.model.backbone.branches[0]
    assert (branch.drop_path, branch.window_size, branch.global_blocks) == (0.3, 14, ())
    assert (config.model.head.num_classes, config.optim.lr) == (7, 2e-4)
    assert config.data == shipped.data
    assert config.schedule == shipped.schedule


def test_settings_without_a_counterpart_are_listed(official: Path) -> None:
    official.write_text(official.read_text() + "model = dict(backbone=dict(use_moe=True))\n")
    assert explain_official_config(official).unmapped == ["model.backbone.use_moe"]


def test_a_changed_segmentation_config_is_explained_too(tmp_path: Path) -> None:
    settings = official_recipes()[UPERNET]
    (tmp_path / "base.py").write_text(as_python(settings))
    path = tmp_path / f"{UPERNET}.py"
    path.write_text("""
_base_ = ['base.py']
model = dict(
    backbone=dict(branch2=dict(img_size=640)),
    decode_head=dict(channels=512, align_corners=True),
    auxiliary_head=dict(loss_decode=dict(loss_weight=0.2), num_convs=2),
    test_cfg=dict(_delete_=True, mode='whole'))
lr_config = dict(min_lr=4e-7)
""")
    found = explain_official_config(path)
    assert found.shipped == "segmentation/upernet_piip_h6b_512_256"
    differences = {key: theirs for key, (_, theirs) in found.differences.items() if key != "model.backbone.branches"}
    assert found.differences["model.backbone.branches"][1][0]["pretrain_size"] == 640
    assert differences == {
        "model.head.channels": 512,
        "model.head.auxiliary_weight": 0.2,
        "model.head.window": None,
        "schedule.min_lr_ratio": pytest.approx(0.01),
    }
    assert found.unmapped == [
        "model.auxiliary_head.channels 1536",
        "model.auxiliary_head.num_convs 2",
        "model.decode_head.align_corners True",
    ]
    output = tmp_path / "ours.yaml"
    write_explained_config(found, output)
    assert load_config(output).model.head.window is None


# --- the language ----------------------------------------------------------------------------------------------------


def read(tmp_path: Path, text: str) -> dict:
    path = tmp_path / "config.py"
    path.write_text(text)
    return read_python_config(path)


def test_values_are_what_python_would_make_of_them(tmp_path: Path) -> None:
    text = """
'''A docstring.'''
r = 3 / 2
norm = dict(mean=[1.0, -2.0])
steps = [dict(type='Normalize', **norm, to_rgb=True)] + [dict(size=(int(5 * r), 7 // 2))]
indexes = [[0, 1]] * 3
if r:
    root = 'data/' + 'coco'
else:
    root = None
table = {'a': 1}
"""
    expected: dict = {}
    exec(text, {}, expected)
    del expected["__doc__"]
    assert read(tmp_path, text) == expected


def test_bases_merge_key_by_key_and_delete_replaces(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "a.py").write_text("model = dict(neck=dict(type='FPN', levels=5), head=dict(x=1, y=2))\n")
    (tmp_path / "b.py").write_text("lr = 1\n")
    text = "_base_ = ['folder/a.py', './b.py']\nmodel = dict(neck=dict(_delete_=True, type='M'), head=dict(x=3))\n"
    assert read(tmp_path, text) == {"model": {"neck": {"type": "M"}, "head": {"x": 3, "y": 2}}, "lr": 1}


@pytest.mark.parametrize(
    "line",
    [
        "import os",
        "x = open('a')",
        "x = __import__('os')",
        "x = [i for i in range(9)]",
        "x = (lambda: 1)()",
        "x = unknown",
        "x = dict([(1, 2)])",
        "x = dict(**[1])",
        "x = 'a'.upper()",
        "x = 2 ** 9",
        "x = [0] * 10 ** 9",
        "x = [0] * 1000000000",
        "x = 1 // 0",
        "def f(): pass",
        "x: int = 1",
        "x.y = 1",
    ],
)
def test_what_is_not_data_is_refused_with_its_line(tmp_path: Path, line: str) -> None:
    with pytest.raises(ConfigError, match=r"config\.py:2: cannot be read as data: "):
        read(tmp_path, f"y = 1\n{line}\n")


def test_nothing_in_the_file_is_executed(tmp_path: Path) -> None:
    witness = tmp_path / "witness"
    with pytest.raises(ConfigError, match="cannot be read as data"):
        read(tmp_path, f"x = dict(a=open({str(witness)!r}, 'w'))\n")
    assert not witness.exists()


def test_sizes_stay_small_whatever_a_config_doubles(tmp_path: Path) -> None:
    for start in ("[0]", "9"):
        operator = "+" if start == "[0]" else "*"
        with pytest.raises(ConfigError, match="cannot be read as data"):
            read(tmp_path, f"x = {start}\n" + f"x = x {operator} x\n" * 60)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("x = (", "is not Python"),
        ("_base_ = ['nowhere.py']", "base file not found: nowhere.py; keep the official folders together"),
        ("_base_ = ['config.py']", "leads back to itself"),
        ("_base_ = 3", "base file not found: 3"),
        ("x = " + "-" * 5000 + "1", "config.py"),
    ],
)
def test_files_that_cannot_be_read_are_named(tmp_path: Path, text: str, words: str) -> None:
    with pytest.raises(ConfigError) as caught:
        read(tmp_path, text)
    assert words in str(caught.value)


def test_a_file_of_another_kind_is_no_piip_detector(tmp_path: Path) -> None:
    path = tmp_path / "other.py"
    path.write_text("model = dict(type='RetinaNet', backbone=dict(type='ResNet'))\n")
    with pytest.raises(ConfigError, match="not the config of an official PIIP detector"):
        explain_official_config(path)


# --- the command -----------------------------------------------------------------------------------------------------


def test_the_command_names_the_equal_shipped_config(official: Path) -> None:
    done = succeed("convert-config", official)
    assert "equals shipped config  detection/mask_rcnn_vit_b" in done.stdout
    assert json.loads(run("convert-config", official, "--json").stdout)["equal"] is True


def test_the_command_writes_differences_and_fails_for_what_has_no_counterpart(official: Path) -> None:
    official.write_text(official.read_text() + "model = dict(backbone=dict(use_moe=True, drop_path_rate=0.5))\n")
    output = official.with_name("ours.yaml")
    done = run("convert-config", official, "--output", output)
    assert done.exit_code == 3
    assert "model.backbone.use_moe" in done.stderr
    assert "nearest shipped config" in done.stdout
    assert load_config(output).model.backbone.branches[0].drop_path == 0.5


@pytest.mark.parametrize("arguments", [["nowhere.py"], ["a.py", "--output", "b.txt"]])
def test_the_command_refuses_with_exit_code_2(arguments: list[str]) -> None:
    assert run("convert-config", *arguments).exit_code == 2
