"""What tools write in their own way is read as what it means: the same objects as from a file without a fault."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pycocotools import mask as mask_utils

from piip.data.sets.coco.config import CocoData
from piip.data.sets.instances.dataset import InstanceDataset
from piip.errors import DataError
from tests.data.exports import BOX, HEIGHT, OTHER, WIDTH, coco, save_images

Change = Callable[[dict[str, Any]], Any]

NUMBER = "number or id written as text, or a whole number as 64.0, read"
ELSEWHERE = "file name of another machine or server matched with the file that it means"
CROWDS = (
    "annotation with iscrowd 1 read as an object: exports of brush and SAM masks set the flag on every mask "
    "(crowds: regions keeps crowds)"
)


def each(section: str, **functions: Callable[[Any], Any]) -> Change:
    """Changes keys of every entry of a section."""

    def change(data: dict[str, Any]) -> None:
        for entry in data[section]:
            for key, function in functions.items():
                entry[key] = function(entry[key])

    return change


def drop(section: str, *keys: str) -> Change:
    return lambda data: [entry.pop(key) for entry in data[section] for key in keys]


def both(*changes: Change) -> Change:
    return lambda data: [change(data) for change in changes]


def corners(polygons: list[list[float]]) -> list[tuple[float, float]]:
    return list(zip(polygons[0][::2], polygons[0][1::2]))


def run_lengths(
    polygons: list[list[float]], size: tuple[int, int] = (HEIGHT, WIDTH), missing: int = 0
) -> dict[str, Any]:
    """Plain run lengths of a rectangle on a canvas of some size, the last shorter by so many pixels."""
    (left, top), _, (right, bottom), _ = corners(polygons)
    mask = np.zeros(size, dtype=bool)
    mask[int(top) : int(bottom), int(left) : int(right)] = True
    ends = np.flatnonzero(np.diff(mask.T.ravel())) + 1
    runs = np.diff([0, *ends.tolist(), mask.size]).tolist()
    runs[-1] -= missing
    return {"size": list(size), "counts": runs}


def compressed(polygons: list[list[float]], missing: int = 0) -> dict[str, Any]:
    rle = run_lengths(polygons)
    shorter = [*rle["counts"][:-1], rle["counts"][-1] - missing]
    text = mask_utils.frPyObjects({"size": [HEIGHT, WIDTH], "counts": shorter}, HEIGHT, WIDTH)["counts"].decode()
    return {"size": [HEIGHT, WIDTH], "counts": text}


# What is done to a file of two images with two objects each, and how often what is then repaired.
REPAIRS: dict[str, tuple[Change, dict[str, int]]] = {
    "numbers as text": (
        each("annotations", bbox=lambda box: [f"{v}.0" for v in box], area=str, iscrowd=str), {NUMBER: 12},
    ),
    "whole numbers as floats": (
        both(each("images", id=float, height=float, width=float), each("annotations", id=float, image_id=float)),
        {NUMBER: 14},
    ),
    "ids as text": (both(each("images", id=str), each("annotations", image_id=str)), {NUMBER: 6}),
    "image ids as text in annotations": (each("annotations", image_id=str), {NUMBER: 4}),
    "category ids as text": (both(each("categories", id=str), each("annotations", category_id=str)), {NUMBER: 6}),
    "category ids from zero as text": (
        both(each("categories", id=lambda i: i - 1), each("annotations", category_id=lambda i: str(i - 1))),
        {NUMBER: 4},
    ),
    "categories by name": (
        each("annotations", category_id=lambda label: ("box", "disc")[label - 1]), {"category given by its name": 4},
    ),
    "images by name": (
        each("annotations", image_id=lambda i: f"im{i - 1}.png"), {"image given by its file name": 4},
    ),
    "names in capitals": (each("images", file_name=str.upper), {ELSEWHERE: 2}),
    "ignored as text": (lambda data: [entry.update(ignore="0") for entry in data["annotations"]], {}),
    "text ids that are no numbers": (
        both(each("images", id="x{}".format), each("annotations", image_id="x{}".format)), {},
    ),
    "annotation ids all zero": (
        each("annotations", id=lambda _: 0), {"annotation id that repeats numbered anew": 3},
    ),
    "no annotation ids": (drop("annotations", "id"), {"annotation without id numbered": 4}),
    "crowd flag as truth value": (each("annotations", iscrowd=bool), {}),
    "no crowd flag": (drop("annotations", "iscrowd"), {}),
    "every mask a crowd": (each("annotations", iscrowd=lambda _: 1), {CROWDS: 4}),
    "sizes of zero and less": (
        each("images", height=lambda _: 0, width=lambda _: -1), {"image size that is missing read from the image": 2},
    ),
    "no sizes": (drop("images", "height", "width"), {"image size that is missing read from the image": 2}),
    "area zero": (each("annotations", area=lambda _: 0), {"area that contradicts its box computed anew": 4}),
    "no area": (drop("annotations", "area"), {}),
    "box drawn from the lower right": (
        each("annotations", bbox=lambda b: [b[0] + b[2], b[1] + b[3], -b[2], -b[3]]),
        {"box of negative width or height turned round": 4},
    ),
    "no box": (drop("annotations", "bbox"), {"box without area taken from its mask": 4}),
    "flat polygon": (
        each("annotations", segmentation=lambda s: s[0]), {"flat list of numbers read as one polygon": 4},
    ),
    "list of points": (
        each("annotations", segmentation=corners), {"list of points read as one polygon": 4},
    ),
    "list of lists of points": (
        each("annotations", segmentation=lambda s: [corners(s)]), {"list of points read as one polygon": 4},
    ),
    "polygons as text": (
        each("annotations", segmentation=lambda s: [[str(v) for v in s[0]]]),
        {"polygon with numbers written as text read": 4},
    ),
    "rectangle as two points": (
        each("annotations", segmentation=lambda s: [s[0][:2] + s[0][4:6]]),
        {"polygon of two corners of its box read as that rectangle": 4},
    ),
    "pieces of polygons": (
        each("annotations", segmentation=lambda s: [*s, [1, 1, 2, 2], [3]]),
        {"piece of a polygon below three corners, or with half a corner, left out": 8},
    ),
    "run lengths in a list": (each("annotations", segmentation=lambda s: [run_lengths(s)]), {}),
    "run lengths too short": (
        each("annotations", segmentation=lambda s: run_lengths(s, missing=5)),
        {"run lengths some pixels too short or too long filled up with background or cut": 4},
    ),
    "compressed run lengths too short": (
        each("annotations", segmentation=lambda s: compressed(s, missing=5)),
        {"run lengths some pixels too short or too long filled up with background or cut": 4},
    ),
    "run lengths too long": (
        each("annotations", segmentation=lambda s: run_lengths(s, missing=-7)),
        {"run lengths some pixels too short or too long filled up with background or cut": 4},
    ),
    "masks a pixel larger": (
        each("annotations", segmentation=lambda s: run_lengths(s, (HEIGHT + 1, WIDTH + 1))),
        {"mask some pixels larger or smaller than its image cut or filled up": 4},
    ),
    "back-slashes": (each("images", file_name="..\\..\\media\\upload\\4\\{}".format), {ELSEWHERE: 2}),
    "prefix of an upload": (each("images", file_name="data/upload/1/0a1b2c3d-{}".format), {ELSEWHERE: 2}),
    "address": (each("images", file_name="http://host/a%20b/{}?size=big".format), {ELSEWHERE: 2}),
    "image listed twice": (
        lambda data: data["images"].append(dict(data["images"][0])), {"image listed twice read once": 1},
    ),
}  # fmt: skip


class Export:
    """Two images and their sound annotations."""

    def __init__(self, root: Path) -> None:
        self.images, self.file = root / "images", root / "train.json"
        self.data = coco(save_images(self.images, 2))

    def load(self, **settings: Any) -> InstanceDataset:
        self.file.write_text(json.dumps(self.data))
        return CocoData(images=self.images, annotations=self.file, **settings).build(training=True)


@pytest.fixture
def export(tmp_path: Path) -> Export:
    return Export(tmp_path)


@pytest.mark.parametrize("name", REPAIRS)
def test_a_repaired_file_holds_the_objects_of_a_sound_one(export: Export, name: str) -> None:
    change, counts = REPAIRS[name]
    change(export.data)
    dataset = export.load()
    assert dataset.report.of("repaired", "left out", "error") == counts
    assert (len(dataset), dataset.class_names) == (2, ["box", "disc"])
    for index in range(2):
        truth = dataset.truth(index)
        assert truth["xywh"].tolist() == [list(BOX), list(OTHER)]
        assert truth["labels"].tolist() == [0, 1]
        assert truth["areas"].tolist() == [BOX[2] * BOX[3], OTHER[2] * OTHER[3]]
        assert not truth["crowd"].any()
        for rle, (x, y, w, h) in zip(truth["rles"], (BOX, OTHER)):
            mask = np.zeros((HEIGHT, WIDTH), dtype=np.uint8)
            mask[y : y + h, x : x + w] = 1
            assert np.array_equal(mask_utils.decode(rle), mask)
        assert dataset.image(index).shape == (3, HEIGHT, WIDTH)


def test_names_of_categories_that_are_numbers_are_their_text(export: Export) -> None:
    each("categories", name=lambda name: ["box", "disc"].index(name))(export.data)
    assert export.load().class_names == ["0", "1"]


def test_ids_beyond_64_bits_stay_apart(export: Export) -> None:
    both(each("images", id=lambda i: 2**64 + i), each("annotations", image_id=lambda i: 2**64 + i))(export.data)
    assert [export.load().image_id(index) for index in range(2)] == [2**64 + 1, 2**64 + 2]


def test_annotations_of_images_that_are_not_listed_are_left_out(export: Export) -> None:
    export.data["annotations"].append(export.data["annotations"][0] | {"id": 99, "image_id": 77})
    dataset = export.load()
    assert dataset.report.of("left out") == {"annotation for an image that is not listed left out": 1}
    assert "annotation 99 is for image 77" in str(dataset.report)


def test_an_absolute_name_inside_the_folder_is_taken(export: Export) -> None:
    each("images", file_name=lambda name: str(export.images / name))(export.data)
    assert export.load().record(0).file_name == "im0.png"
    export.images = Path(os.path.relpath(export.images))
    assert export.load().record(0).file_name == "im0.png"


def test_lvis_names_images_by_their_address(export: Export) -> None:
    for entry in export.data["images"]:
        entry["coco_url"] = f"http://images.example.org/train2017/{entry.pop('file_name')}"
    dataset = export.load()
    assert dataset.record(1).file_name == "im1.png"
    assert "LVIS (whose own AP is not computed here)" in str(dataset.report)


def test_a_name_is_never_matched_with_the_file_of_another_image(export: Export) -> None:
    export.data["images"][1]["file_name"] = "elsewhere/im0.png"
    with pytest.raises(DataError, match=r"1 of 2 images of .* are missing from .*: elsewhere/im0\.png"):
        export.load()


def test_boxes_in_fractions_are_an_error_with_the_remedy(export: Export) -> None:
    sides = (WIDTH, HEIGHT, WIDTH, HEIGHT)
    each("annotations", bbox=lambda box: [v / side for v, side in zip(box, sides)])(export.data)
    drop("annotations", "segmentation")(export.data)
    with pytest.raises(DataError, match="4 of 4 boxes lie within 0 and 1: they look like fractions of the image"):
        export.load()


def test_crowds_are_regions_where_they_are_to_be_and_then_nothing_is_left(export: Export) -> None:
    each("annotations", iscrowd=lambda _: 1)(export.data)
    with pytest.raises(DataError, match=r"no object is left to train on.*4 x annotation with iscrowd 1.*box 2 of 2"):
        export.load(crowds="regions")


def test_crowds_beside_masks_of_objects_stay_regions_and_can_be_read_as_objects(export: Export) -> None:
    export.data["annotations"][1]["iscrowd"] = 1
    assert export.load().truth(0)["crowd"].tolist() == [False, True]
    assert not export.load(crowds="objects").truth(0)["crowd"].any()


def test_boxes_only_need_no_mask_and_look_at_none(export: Export) -> None:
    for entry, segmentation in zip(export.data["annotations"], ([], "x", {"counts": [3]}, [[1, 2]])):
        entry["segmentation"] = segmentation
    dataset = export.load(masks=False)
    assert (dataset.report.of("repaired", "left out", "error"), dataset.has_masks) == ({}, False)
    assert [len(dataset.target(index)["boxes"]) for index in range(2)] == [2, 2]


def test_faults_of_all_kinds_are_told_at_once(export: Export) -> None:
    export.data["annotations"][0]["bbox"] = "big"
    export.data["annotations"][1]["category_id"] = 7
    export.data["annotations"][2]["iscrowd"] = "perhaps"
    export.data["images"][1]["width"] = 60
    with pytest.raises(DataError) as error:
        export.load()
    lines = str(error.value).splitlines()
    assert lines[0] == f"{export.file}: 4 faults that have to be corrected first:"
    assert lines[-1] == f"`piip data check {export.file}` shows everything that is wrong"
    for words in ("got 'big'", "has category 7", "got 'perhaps'", "it should have 60 x 48"):
        assert words in str(error.value)


def test_classes_can_be_chosen_and_ordered_by_name(export: Export) -> None:
    export.data["categories"].append({"id": 0, "name": "project"})
    dataset = export.load(class_names=("disc", "box"))
    assert dataset.class_names == ["disc", "box"]
    assert dataset.category_ids == [2, 1]
    assert dataset.truth(0)["labels"].tolist() == [1, 0]
    with pytest.raises(DataError, match=r"class that class_names does not list:\n.*'disc': annotation 12 of im0.png"):
        export.load(class_names=("box",))
