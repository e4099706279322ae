"""A folder in the place of a config's data sets what follows from what it holds."""

from __future__ import annotations

import logging
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from piip.config.load import dump_config, load_config
from piip.errors import ConfigError
from tests.data.test_find import coco_boxes, coco_roboflow, maps_alone, yolo

NANO = "detection/mask_rcnn_piip_nano_shapes"


def test_data_and_classes_of_a_config_are_those_of_the_folder(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    coco_roboflow(tmp_path)
    config = load_config(NANO, [f"data.folder={tmp_path}", "data.train.keep_empty=true"])
    assert config.data.train.model_dump()["annotations"] == tmp_path / "train" / "_annotations.coco.json"
    assert config.data.train.model_dump()["keep_empty"] is True
    assert config.data.val.model_dump()["images"] == tmp_path / "valid"
    assert config.model.head.num_classes == 2
    assert config.model.head.model_dump()["masks"] is True
    assert config.data.batch_size == 4  # the recipe stays
    assert [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING] == [
        f"{tmp_path}: COCO annotations, with a split; 2 classes (box, disc), masks"
    ]
    again = tmp_path / "config.yaml"
    again.write_text(dump_config(config))
    assert load_config(again) == config


def test_a_yaml_names_the_folder_and_masks_follow_the_data(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    coco_boxes(tmp_path / "photos")
    file = tmp_path / "mine.yaml"
    file.write_text(yaml.safe_dump({"base": NANO, "data": "photos"}))
    config = load_config(file)
    assert config.model.head.model_dump()["masks"] is False
    assert "the head learns boxes alone (model.head.masks: false)" in caplog.text
    assert config.data.train.model_dump()["masks"] is False
    assert (config.data.train.part, config.data.val.part) == ("train", "val")
    file.write_text(yaml.safe_dump({"base": NANO, "data": "photos", "model": {"head": {"masks": True}}}))
    assert load_config(file).model.head.model_dump()["masks"] is True  # which training then refuses


def test_heads_without_masks_read_none(tmp_path: Path) -> None:
    coco_roboflow(tmp_path)
    config = load_config("detection/dino_piip_nano_shapes", [f"data={tmp_path}"])
    assert config.data.train.model_dump()["masks"] is False


def test_data_for_another_task_are_refused(tmp_path: Path) -> None:
    maps_alone(tmp_path)
    with pytest.raises(ConfigError, match="label maps, which are for segmentation, but the head of this config is for"):
        load_config(NANO, [f"data.folder={tmp_path}"])
    assert load_config("segmentation/upernet_piip_nano_shapes", [f"data={tmp_path}"]).model.head.num_classes == 2


def test_a_folder_is_looked_at_without_torch(tmp_path: Path) -> None:
    yolo(tmp_path)
    code = f"from piip.config.load import load_config; load_config('{NANO}', ['data={tmp_path}'])"
    subprocess.run([sys.executable, "-c", f"{code}; import sys; assert 'torch' not in sys.modules"], check=True)
