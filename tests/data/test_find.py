"""What a folder holds is found, whatever tool has exported it."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import yaml
from PIL import Image

from piip.data.find import find_data
from piip.errors import DataError
from tests.data.exports import HEIGHT, NAMES, WIDTH, labelme, save_images, voc, write_coco, write_yolo


def coco_official(root: Path) -> None:
    for split, first in (("train2017", 0), ("val2017", 9)):
        names = save_images(root / split, 2, first=first)
        write_coco(root / "annotations" / f"instances_{split}.json", names)
        text = {"images": [], "annotations": [{"caption": "a"}]}
        (root / "annotations" / f"captions_{split}.json").write_text(json.dumps(text))


def coco_roboflow(root: Path) -> None:
    for split, first in (("train", 0), ("valid", 9)):
        write_coco(root / split / "_annotations.coco.json", save_images(root / split, 2, first=first))


def coco_by_folders(root: Path) -> None:
    for split, first in (("train", 0), ("val", 9)):
        names = save_images(root / "images" / split, 2, first=first)
        write_coco(root / f"{split}.json", [f"{split}/{name}" for name in names])


def coco_alone(root: Path) -> None:
    write_coco(root / "result.json", [f"images\\{name}" for name in save_images(root / "images", 4)])


def coco_cvat(root: Path) -> None:
    write_coco(root / "annotations" / "instances_default.json", save_images(root / "images" / "default", 4))


def coco_boxes(root: Path) -> None:
    write_coco(root / "boxes.json", save_images(root, 4), masks=False)


def yolo(root: Path, *, polygons: bool = False) -> None:
    for split, first in (("train", 0), ("valid", 9)):
        names = save_images(root / split / "images", 2, first=first)
        write_yolo(root / split / "labels", [Path(name).stem for name in names], polygons=polygons)
    data = {"train": "../train/images", "val": "../valid/images", "nc": 2, "names": NAMES}
    (root / "data.yaml").write_text(yaml.safe_dump(data))


def yolo_polygons(root: Path) -> None:
    yolo(root, polygons=True)


def yolo_classes(root: Path) -> None:
    names = save_images(root / "images", 4)
    write_yolo(root / "labels", [Path(name).stem for name in names])
    (root / "classes.txt").write_text("\n".join(NAMES))


def voc_challenge(root: Path) -> None:
    names = save_images(root / "VOC" / "JPEGImages", 4)
    for folder in ("Annotations", "ImageSets/Main"):
        (root / "VOC" / folder).mkdir(parents=True)
    for name in names:
        (root / "VOC" / "Annotations" / name).with_suffix(".xml").write_text(voc(name))
    for split, stems in (("train", "im0\nim1\n"), ("val", "im2\nim3\n")):
        (root / "VOC" / "ImageSets" / "Main" / f"{split}.txt").write_text(stems)


def voc_split(root: Path) -> None:
    for split, first in (("train", 0), ("valid", 9)):
        for name in save_images(root / split, 2, first=first):
            (root / split / name).with_suffix(".xml").write_text(voc(name))


def voc_alone(root: Path) -> None:
    for name in save_images(root, 4):
        (root / name).with_suffix(".xml").write_text(voc(name))


def labelme_alone(root: Path) -> None:
    for name in save_images(root, 4):
        (root / name).with_suffix(".json").write_text(json.dumps(labelme(name)))


def save_map(file: Path, labels: tuple[int, ...] = (0, 1)) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.resize(np.array(labels, dtype=np.uint8), (HEIGHT, WIDTH))).save(file)


def maps_alone(root: Path) -> None:
    for name in save_images(root / "images", 4):
        save_map(root / "masks" / name)
    (root / "classes.txt").write_text("\n".join(NAMES))


def maps_by_split(root: Path) -> None:
    for split, first in (("training", 0), ("validation", 9)):
        for name in save_images(root / "images" / split, 2, first=first, ending="jpg"):
            save_map((root / "annotations" / split / name).with_suffix(".png"))
    (root / "classes.txt").write_text("\n".join(NAMES))


def maps_with_suffixes(root: Path) -> None:
    for split, first in (("train", 0), ("val", 9)):
        for name in save_images(root / "leftImg8bit" / split / "a", 2, first=first):
            file = root / "leftImg8bit" / split / "a" / name
            file.rename(file.with_name(f"{file.stem}_leftImg8bit.png"))
            save_map(root / "gtFine" / split / "a" / f"{file.stem}_gtFine_labelTrainIds.png")
    (root / "classes.txt").write_text("\n".join(NAMES))


def folders_alone(root: Path) -> None:
    for number, name in enumerate(NAMES):
        save_images(root / name, 4, first=10 * number)


def folders_by_split(root: Path) -> None:
    for split, first in (("train", 0), ("val", 50)):
        for number, name in enumerate(NAMES):
            save_images(root / split / name, 2, first=first + 10 * number)


# The format's name begins so; images for training and evaluation, 0 where the hash divides; masks.
LAYOUTS: list[tuple[Callable[[Path], None], str, tuple[int, int], bool | None]] = [
    (coco_official, "COCO", (2, 2), True),
    (coco_roboflow, "COCO", (2, 2), True),
    (coco_by_folders, "COCO", (2, 2), True),
    (coco_alone, "COCO", (0, 0), True),
    (coco_cvat, "COCO", (0, 0), True),
    (coco_boxes, "COCO", (0, 0), False),
    (yolo, "YOLO", (2, 2), False),
    (yolo_polygons, "YOLO", (2, 2), True),
    (yolo_classes, "YOLO", (0, 0), False),
    (voc_challenge, "Pascal VOC", (2, 2), False),
    (voc_split, "Pascal VOC", (2, 2), False),
    (voc_alone, "Pascal VOC", (0, 0), False),
    (labelme_alone, "labelme", (0, 0), True),
    (maps_alone, "images and label maps", (0, 0), None),
    (maps_by_split, "images and label maps", (2, 2), None),
    (maps_with_suffixes, "images and label maps", (2, 2), None),
    (folders_alone, "a folder of images per class", (0, 0), None),
    (folders_by_split, "a folder of images per class", (4, 4), None),
]


@pytest.mark.parametrize(
    ("write", "words", "counts", "masks"), LAYOUTS, ids=lambda value: getattr(value, "__name__", "")
)
def test_a_folder_becomes_training_and_validation_data(
    tmp_path: Path, write: Callable[[Path], None], words: str, counts: tuple[int, int], masks: bool | None
) -> None:
    write(tmp_path)
    found = find_data(tmp_path)
    train, val = found.train.build(training=True), found.val.build(training=False)
    assert found.format.startswith(words)
    assert found.masks is masks
    assert found.class_names == train.class_names == val.class_names == NAMES
    ids = [{dataset.image_id(index) for index in range(len(dataset))} for dataset in (train, val)]
    if counts == (0, 0):
        assert not ids[0] & ids[1]
        assert len(ids[0] | ids[1]) == (8 if write is folders_alone else 4)
        assert "hashes of their names" in str(found)
    else:
        assert tuple(map(len, ids)) == counts
    for dataset in (train, val):
        assert dataset.image(0).shape == (3, HEIGHT, WIDTH)
        assert dataset.target(0)


def test_a_file_of_masks_of_255_is_told_before_anything_is_trained(tmp_path: Path) -> None:
    for name in save_images(tmp_path / "images", 2):
        save_map(tmp_path / "labels" / name, (0, 255))
    with pytest.raises(DataError, match="hold only 0 and 255, which is never a label; save what is to be found as 1"):
        find_data(tmp_path)


def test_classes_without_a_list_of_names_are_the_numbers_in_the_maps(tmp_path: Path) -> None:
    for name in save_images(tmp_path / "images", 4):
        save_map(tmp_path / "labels" / name, (0, 3, 255))
    assert find_data(tmp_path).class_names == ["label 0", "label 1", "label 2", "label 3"]


@pytest.mark.parametrize("ending", [".PNG", "[1].png", "**_b.png"])
def test_label_maps_are_found_whatever_their_names_end_with(tmp_path: Path, ending: str) -> None:
    for name in save_images(tmp_path / "images", 4):
        save_map(tmp_path / "labels" / name, (0, 3, 255))
        (tmp_path / "labels" / name).rename(tmp_path / "labels" / f"{Path(name).stem}{ending}")
    found = find_data(tmp_path)
    assert len(found.class_names) == 4
    assert len(found.train.build(training=True)) + len(found.val.build(training=False)) == 4


def test_classes_that_splits_number_otherwise_are_matched_by_name(tmp_path: Path) -> None:
    coco_roboflow(tmp_path)
    file = tmp_path / "valid" / "_annotations.coco.json"
    data = json.loads(file.read_text())
    data["categories"] = [{"id": 1, "name": "disc"}, {"id": 2, "name": "box"}]
    file.write_text(json.dumps(data))
    found = find_data(tmp_path)
    train, val = found.train.build(training=True), found.val.build(training=False)
    assert train.class_names == val.class_names == NAMES
    assert (train.truth(0)["labels"].tolist(), val.truth(0)["labels"].tolist()) == ([0, 1], [1, 0])


def test_what_is_not_found_is_said(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="there is no folder"):
        find_data(tmp_path / "gone")
    save_images(tmp_path, 3)
    with pytest.raises(DataError, match="has 3 images, but nothing says what is on them: neither a COCO"):
        find_data(tmp_path)


def test_several_files_for_one_split_are_named(tmp_path: Path) -> None:
    for name in ("a.json", "b.json"):
        write_coco(tmp_path / name, save_images(tmp_path, 2))
    with pytest.raises(DataError, match=r"several COCO files for training: a\.json, b\.json; name one"):
        find_data(tmp_path)
