"""Pages of pictures show data as the network sees them, whatever is to be learned of them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from piip.config.load import load_config
from piip.data.sets.base import ImageDataset
from piip.data.show import show_data
from tests.data.test_find import coco_roboflow, folders_by_split, maps_by_split

NANO = {
    coco_roboflow: "detection/mask_rcnn_piip_nano_shapes",
    maps_by_split: "segmentation/upernet_piip_nano_shapes",
    folders_by_split: "classification/piip_nano_shapes",
}
CLASSES = ["train-class-0.jpg", "train-class-1.jpg", "val-class-0.jpg", "val-class-1.jpg", "histograms.png"]


def load(write: Callable[[Path], None], folder: Path) -> tuple[dict[str, ImageDataset], object]:
    write(folder)
    data = load_config(NANO[write], [f"data.folder={folder}"]).data
    return {"train": data.train.build(training=True), "val": data.val.build(training=False)}, data.train_transforms


@pytest.mark.parametrize("write", NANO)
def test_pages_are_written_for_every_task(tmp_path: Path, write: Callable[[Path], None]) -> None:
    sets, transforms = load(write, tmp_path / "data")
    files = show_data(sets, transforms, tmp_path / "pages")
    expected = {"train.jpg", "val.jpg", *(CLASSES if write is coco_roboflow else [])}
    assert {file.name for file in files} == expected == {file.name for file in (tmp_path / "pages").iterdir()}
    for file in files:
        assert np.asarray(Image.open(file)).std() > 10


def test_an_image_that_cannot_be_read_leaves_its_place_empty(tmp_path: Path) -> None:
    sets, transforms = load(coco_roboflow, tmp_path / "data")
    (tmp_path / "data" / "train" / "im0.png").write_bytes(b"gone")
    assert len(show_data(sets, transforms, tmp_path / "pages")) == 7
