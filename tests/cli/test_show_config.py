"""`piip show`: the resolved config, and what set each of its values."""

import json

import pytest
import yaml
from typer.testing import CliRunner

from piip.cli.main import app
from piip.config.load import find_config, load_config, load_with_origins, shipped_configs

NANO = "detection/mask_rcnn_piip_nano_shapes"


def show(*words):
    done = CliRunner().invoke(app, ["show", *words])
    assert done.exit_code == 0, done.output
    return done.stdout


def test_what_show_prints_is_the_same_config(tmp_path):
    file = tmp_path / "shown.yaml"
    file.write_text(show(NANO, "optim.lr=0.5"))
    assert load_config(file) == load_config(NANO, ["optim.lr=0.5"])
    assert json.loads(show(NANO, "--json"))["config"] == load_config(NANO).model_dump(mode="json")


def test_show_names_the_command_line_the_file_and_the_base_that_set_a_value_and_nothing_for_a_default(tmp_path):
    (tmp_path / "base.yaml").write_text(f"base: {NANO}\noptim: {{lr: 0.1, weight_decay: 0.2}}\n")
    file = tmp_path / "mine.yaml"
    file.write_text("base: base.yaml\noptim: {weight_decay: 0.3}\nmodel: {head: {nms: 0.6}}\n")
    lines = show(str(file), "model.head.nms=0.7", "model.backbone.branches.0.drop_path=0.25").splitlines()
    comment = {}
    for line in lines:
        value, _, origin = line.partition("  # ")
        comment.setdefault(value.strip(), origin)
    assert comment["lr: 0.1"] == str(tmp_path / "base.yaml")
    assert comment["weight_decay: 0.3"] == str(file)
    assert comment["nms: 0.7"] == comment["drop_path: 0.25"] == "command line"
    assert comment["max_detections: 100"] == ""


@pytest.mark.parametrize("name", shipped_configs())
def test_every_value_with_an_origin_stands_in_that_file(name):
    shipped = find_config(NANO).parents[1]
    for key, origin in load_with_origins(name)[1].items():
        written = yaml.safe_load((shipped / f"{origin}.yaml").read_text())
        parts = key.split(".")
        of_every_branch = ["model", "backbone", "every_branch", *parts[4:]]
        assert holds(written, parts) or (parts[2] == "branches" and holds(written, of_every_branch)), (key, origin)


def holds(node, parts):
    for part in parts:
        if isinstance(node, list):
            part = int(part)
        elif not isinstance(node, dict) or part not in node:
            return False
        node = node[part]
    return True


def test_show_with_data_names_the_folder_that_the_data_come_from(tmp_path):
    from PIL import Image

    for name in ("cats", "dogs"):
        for index in range(4):
            (tmp_path / name).mkdir(exist_ok=True)
            Image.new("RGB", (32, 32), (index, 0, 0)).save(tmp_path / name / f"{index}.png")
    document = json.loads(show("classification/piip_nano_shapes", "--data", str(tmp_path), "--json"))
    assert document["config"]["model"]["head"]["num_classes"] == 2
    assert str(tmp_path) in document["origins"]["data.train.type"]
    assert str(tmp_path) in document["origins"]["model.head.num_classes"]
