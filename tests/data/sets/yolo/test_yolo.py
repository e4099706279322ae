"""YOLO's label files give the boxes and polygons that they mean, wherever a data.yaml says they lie."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import yaml

from piip.data.sets.yolo.config import YoloData
from piip.errors import DataError
from tests.data.exports import BOX, NAMES, OTHER, save_images, write_yolo


def write_set(root: Path, split: str, first: int, *, polygons: bool = False) -> None:
    names = save_images(root / split / "images", 2, first=first)
    write_yolo(root / split / "labels", [Path(name).stem for name in names], polygons=polygons)


def describe(root: Path, **data: object) -> YoloData:
    (root / "data.yaml").write_text(yaml.safe_dump({"names": NAMES} | data))
    return YoloData(root=root)


@pytest.mark.parametrize("names", [NAMES, {1: "disc", 0: "box"}])
@pytest.mark.parametrize("train", ["train/images", "../train/images", ["train/images"], "./train/images/", "list.txt"])
def test_images_and_boxes_are_found(tmp_path: Path, train: object, names: object) -> None:
    write_set(tmp_path, "train", 0)
    (tmp_path / "list.txt").write_text("./train/images/im0.png\ntrain/images/im1.png\n")
    dataset = describe(tmp_path, train=train, names=names).build(training=True)
    assert (len(dataset), dataset.class_names, dataset.has_masks) == (2, NAMES, False)
    for index in range(2):
        truth = dataset.truth(index)
        assert truth["xywh"] == pytest.approx(np.array([BOX, OTHER]))
        assert truth["labels"].tolist() == [0, 1]
    assert dataset.image_id(0) == "im0.png"


def test_path_of_the_description_is_the_folder_of_the_splits(tmp_path: Path) -> None:
    write_set(tmp_path / "sets" / "mine", "train", 0)
    for path in (str(tmp_path / "sets" / "mine"), "sets/mine"):
        assert len(describe(tmp_path, path=path, train="train/images").build(training=True)) == 2


def test_polygons_are_masks_and_boxes_beside_them_have_none(tmp_path: Path) -> None:
    write_set(tmp_path, "train", 0, polygons=True)
    dataset = describe(tmp_path, train="train").build(training=True)
    truth = dataset.truth(0)
    assert truth["xywh"] == pytest.approx(np.array([BOX, OTHER]))
    assert [rle is not None for rle in truth["rles"]] == [False, True]
    assert dataset.target(0)["masks"].sum(dim=(1, 2)).tolist() == [0, OTHER[2] * OTHER[3]]


def test_classes_in_a_text_file_beside_images_and_labels(tmp_path: Path) -> None:
    names = save_images(tmp_path, 3)
    write_yolo(tmp_path, [Path(name).stem for name in names])
    (tmp_path / "classes.txt").write_text("box\ndisc\n")
    dataset = YoloData(root=tmp_path).build(training=True)
    assert (len(dataset), dataset.class_names) == (3, NAMES)


def test_all_faulty_lines_are_told_with_file_and_line(tmp_path: Path) -> None:
    write_set(tmp_path, "train", 0)
    (tmp_path / "train" / "labels" / "im0.txt").write_text(
        "0 0.5 0.5\n2 0.5 0.5 0.1 0.1\n0 30 20 10 10\n0 a b c d\n,\n"
    )
    with pytest.raises(DataError) as error:
        describe(tmp_path, train="train").build(training=True)
    for words in (
        "im0.txt, line 1",
        "im0.txt, line 2: class 2, but there are 2",
        "im0.txt, line 3: 30 is no",
        "line 4",
    ):
        assert words in str(error.value)


def test_an_image_without_labels_has_no_objects(tmp_path: Path) -> None:
    write_set(tmp_path, "train", 0)
    (tmp_path / "train" / "labels" / "im0.txt").unlink()
    (tmp_path / "train" / "labels" / "im1.txt").write_text("")
    config = describe(tmp_path, train="train", names=NAMES)
    assert [len(image.annotations) for image in config.read().images] == [0, 0]
    assert config.read().findings.of("note") == {"image without a file of labels, which has no objects then": 1}


@pytest.mark.parametrize(
    ("data", "words"),
    [
        ({"names": {1: "a", 2: "b"}}, "must number its classes 0, 1"),
        ({"names": 2}, "must be a list of names"),
        ({"train": "gone"}, "no gone below"),
        ({"train": "a" * 5000}, "no a* below"),
        ({"train": None}, "has no 'train'"),
        ({"train": "latin.txt"}, r"cannot read .*latin\.txt"),
    ],
)
def test_a_description_that_does_not_fit_is_an_error(tmp_path: Path, data: dict[str, object], words: str) -> None:
    write_set(tmp_path, "train", 0)
    (tmp_path / "latin.txt").write_bytes(b"\xe9.png")
    with pytest.raises(DataError, match=words):
        describe(tmp_path, **{"train": "train"} | data).read()


@pytest.mark.parametrize("text", ["names: 2024-13-45", f"names: {'[' * 5000}"])
def test_a_description_that_yaml_cannot_hold_is_an_error(tmp_path: Path, text: str) -> None:
    (tmp_path / "data.yaml").write_text(text)
    with pytest.raises(DataError, match=r"cannot read .*data\.yaml"):
        YoloData(root=tmp_path / "data.yaml").read()


def test_a_list_may_mix_absolute_and_relative_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_set(tmp_path, "train", 0)
    (tmp_path / "list.txt").write_text(f"train/images/im0.png\n{tmp_path}/train/images/im1.png\n")
    describe(tmp_path, train="list.txt")
    monkeypatch.chdir(tmp_path)
    found = YoloData(root=Path("data.yaml")).read()
    assert [image.file_name for image in found.images] == ["im0.png", "im1.png"]
