"""labelme's files give the boxes and masks of their shapes."""

from __future__ import annotations

import base64
import json
from pathlib import Path

import numpy as np
import pytest

from piip.data.sets.labelme.config import LabelmeData
from piip.errors import DataError
from tests.data.exports import BOX, NAMES, OTHER, labelme, save_images


def write_set(folder: Path) -> None:
    for name in save_images(folder, 2):
        (folder / name).with_suffix(".json").write_text(json.dumps(labelme(name)))


def test_rectangles_polygons_groups_and_masks_are_read(tmp_path: Path) -> None:
    write_set(tmp_path)
    dataset = LabelmeData(root=tmp_path).build(training=True)
    truth = dataset.truth(0)
    assert dataset.class_names == NAMES
    assert truth["labels"].tolist() == [0, 1, 0]
    x, y, w, h = OTHER  # and a small square to its upper left, in the same group
    assert truth["xywh"].tolist() == [list(BOX), [30, 2, x + w - 30, y + h - 2], [40, 40, 7, 5]]
    assert [rle is not None for rle in truth["rles"]] == [False, True, True]
    assert truth["areas"].tolist() == [BOX[2] * BOX[3], w * h + 4, 35]
    assert dataset.report.of("left out") == {"point or line, which surrounds nothing": 2}


def test_a_circle_is_its_disc(tmp_path: Path) -> None:
    write_set(tmp_path)
    shape = {"label": "disc", "shape_type": "circle", "points": [[30, 20], [30, 30]]}
    (tmp_path / "im0.json").write_text(json.dumps(labelme("im0.png") | {"shapes": [shape]}))
    truth = LabelmeData(root=tmp_path, class_names=tuple(NAMES)).build(training=False).truth(0)
    assert truth["xywh"] == pytest.approx(np.array([[20, 10, 20, 20]]), abs=0.2)
    assert truth["areas"] == pytest.approx([314], abs=10)


def test_a_damaged_mask_is_left_out_and_its_box_kept(tmp_path: Path) -> None:
    write_set(tmp_path)
    data = labelme("im0.png")
    shape = next(shape for shape in data["shapes"] if shape.get("shape_type") == "mask")
    png = bytearray(base64.b64decode(shape["mask"]))
    png[png.index(b"IDAT") + 6] ^= 0xFF
    (tmp_path / "im0.json").write_text(
        json.dumps(data | {"shapes": [shape | {"mask": base64.b64encode(png).decode()}]})
    )
    found = LabelmeData(root=tmp_path, class_names=tuple(NAMES)).read()
    assert [(a.box, a.segmentation) for a in found.images[0].annotations] == [((40, 40, 7, 5), None)]
    assert found.findings.of("left out")["mask that cannot be read left out"] == 1


def test_all_faults_are_told(tmp_path: Path) -> None:
    write_set(tmp_path)
    (tmp_path / "im0.json").write_text("{")
    shapes = [{"label": "", "points": [[1, 1], [2, 2], [3, 3]]}, {"label": "box", "points": [[1, 1], [2, 2]]}]
    shapes.append({"label": "disc", "points": 5})
    shapes.append({"label": "disc", "shape_type": "circle", "points": [[10**400, 1], [1, 1]]})
    (tmp_path / "im1.json").write_text(json.dumps(labelme("im1.png") | {"shapes": shapes}))
    with pytest.raises(DataError) as error:
        LabelmeData(root=tmp_path, class_names=("box",)).build(training=True)
    for words in (
        "im0.json: ",
        "im1.json: shape 1 (polygon '')",
        "im1.json: shape 2 (polygon 'box')",
        "shape 3 (polygon 'disc')",
        "shape 4 (circle 'disc')",
    ):
        assert words in str(error.value)
