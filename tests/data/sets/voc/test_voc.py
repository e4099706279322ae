"""Pascal VOC's files give the boxes that they mean, in whichever folders they lie."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from piip.data.sets.voc.config import VocData
from piip.errors import DataError
from tests.data.exports import BOX, HEIGHT, NAMES, OTHER, WIDTH, save_images, voc


def write_set(images: Path, annotations: Path, **settings: object) -> None:
    annotations.mkdir(parents=True, exist_ok=True)
    for name in save_images(images, 3):
        (annotations / name).with_suffix(".xml").write_text(voc(name, **settings))


@pytest.mark.parametrize("folders", [("JPEGImages", "Annotations"), (".", "."), ("train/images", "train/labels")])
def test_boxes_and_sorted_names_are_read(tmp_path: Path, folders: tuple[str, str]) -> None:
    write_set(tmp_path / folders[0], tmp_path / folders[1])
    dataset = VocData(root=tmp_path).build(training=True)
    assert (len(dataset), dataset.class_names, dataset.has_masks) == (3, NAMES, False)
    assert dataset.truth(0)["xywh"].tolist() == [list(BOX), list(OTHER)]
    assert dataset.truth(0)["labels"].tolist() == [0, 1]


def test_a_split_is_the_list_of_its_images(tmp_path: Path) -> None:
    write_set(tmp_path / "JPEGImages", tmp_path / "Annotations")
    lists = tmp_path / "ImageSets" / "Main"
    lists.mkdir(parents=True)
    (lists / "val.txt").write_text("im1\nim2 -1\n")
    dataset = VocData(root=tmp_path, split="val").build(training=False)
    assert [dataset.image_id(index) for index in range(2)] == ["JPEGImages/im1.png", "JPEGImages/im2.png"]


def test_the_challenge_counts_pixels_from_one(tmp_path: Path) -> None:
    write_set(tmp_path, tmp_path, database="The VOC2007 Database")
    x, y, w, h = BOX
    assert VocData(root=tmp_path).build(training=True).truth(0)["xywh"][0].tolist() == [x - 1, y - 1, w + 1, h + 1]


def test_difficult_objects_are_neither_learned_nor_counted(tmp_path: Path) -> None:
    write_set(tmp_path, tmp_path, difficult=1)
    dataset = VocData(root=tmp_path).build(training=True)
    assert dataset.truth(0)["crowd"].tolist() == [False, True]
    assert len(dataset.target(0)["boxes"]) == len(dataset.target(0)["crowd_boxes"]) == 1
    assert dataset.report.of("left out") == {
        "object marked as difficult, which nothing is learned from and no figure counts": 3
    }


def test_all_faults_are_told(tmp_path: Path) -> None:
    write_set(tmp_path, tmp_path)
    (tmp_path / "im0.xml").write_text("<annotation><object><name>box</name></object></annotation>")
    (tmp_path / "im1.xml").write_text("<annotation>")
    (tmp_path / "other.xml").write_text(voc("gone.jpg"))
    with pytest.raises(DataError) as error:
        VocData(root=tmp_path, class_names=("box",)).build(training=True)
    for words in (
        "im0.xml: object 1 'box' has no name or no box",
        "im1.xml: ",
        "other.xml (gone.jpg)",
        "'disc' in im2.png",
    ):
        assert words in str(error.value)


@pytest.mark.parametrize("encoding", ["gbk", "unheard-of"])
def test_a_file_in_an_encoding_that_is_not_read_is_told(tmp_path: Path, encoding: str) -> None:
    write_set(tmp_path, tmp_path)
    file = tmp_path / "im0.xml"
    file.write_text(f'<?xml version="1.0" encoding="{encoding}"?>{file.read_text()}')
    with pytest.raises(DataError, match=r"im0\.xml: .*encoding"):
        VocData(root=tmp_path).build(training=True)


def test_a_list_of_images_that_is_no_text_is_told(tmp_path: Path) -> None:
    write_set(tmp_path / "JPEGImages", tmp_path / "Annotations")
    (tmp_path / "ImageSets" / "Main").mkdir(parents=True)
    (tmp_path / "ImageSets" / "Main" / "val.txt").write_bytes(b"\xff")
    with pytest.raises(DataError, match=r"cannot read .*val\.txt"):
        VocData(root=tmp_path, split="val").read()


def test_a_size_beyond_reason_is_that_of_the_image(tmp_path: Path) -> None:
    write_set(tmp_path, tmp_path)
    file = tmp_path / "im0.xml"
    file.write_text(re.sub("<width>.*?</width>", "<width>1e25</width>", file.read_text()))
    image = VocData(root=tmp_path).read().images[0]
    assert (image.height, image.width) == (HEIGHT, WIDTH)


def test_a_set_without_a_file_that_can_be_read_says_why(tmp_path: Path) -> None:
    write_set(tmp_path, tmp_path)
    for file in tmp_path.glob("*.xml"):
        file.write_bytes(b"<annotation><object><name>\xff</name></object></annotation>")
    with pytest.raises(DataError, match=r"no image with a file of annotations, .* not well-formed"):
        VocData(root=tmp_path).build(training=True)
