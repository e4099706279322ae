"""Annotation files: what is wrong with one is said with file and id, and what is cleaned is reported."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays
from pycocotools import mask as mask_utils

from piip.data.sets.coco.dataset import CocoDataset
from piip.data.sets.coco.rle import covers
from piip.data.sets.label_maps.class_names import read_class_names
from piip.errors import DataError
from tests.data.sets.coco.coco_set import Coco


def test_a_missing_file_is_named(coco: Coco, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"annotation file not found: .*gone\.json"):
        CocoDataset(images=coco.images, annotations=tmp_path / "gone.json", training=True)


def test_a_file_that_is_not_json_is_named(coco: Coco) -> None:
    for text in ("{'images': []}", "", "\ufeff\x80"):
        coco.file.write_text(text)
        with pytest.raises(DataError, match=r"instances\.json is not valid JSON: .*line 1"):
            CocoDataset(images=coco.images, annotations=coco.file, training=True)
    coco.file.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(DataError, match=r"instances\.json is not valid JSON"):
        CocoDataset(images=coco.images, annotations=coco.file, training=True)


def test_a_file_of_nested_brackets_or_endless_digits_is_named(coco: Coco) -> None:
    for text, words in (("[" * 20_000, "brackets in brackets"), ('{"images": ' + "9" * 5000 + "}", "digits")):
        coco.file.write_text(text)
        with pytest.raises(DataError, match=rf"instances\.json is not valid JSON: .*{words}"):
            CocoDataset(images=coco.images, annotations=coco.file, training=True)


@pytest.mark.parametrize("make", [os.mkfifo, os.mkdir])
def test_what_is_no_file_is_named_and_never_waited_for(coco: Coco, make: Callable[[Path], None]) -> None:
    make(coco.file)
    with pytest.raises(DataError, match=r"cannot read annotation file .*: it is a folder, a pipe or a device"):
        CocoDataset(images=coco.images, annotations=coco.file, training=True)
    with pytest.raises(DataError, match=r"cannot read the class-name file .*: it is a folder, a pipe or a device"):
        read_class_names(coco.file)


def test_a_file_of_another_kind_is_named(coco: Coco) -> None:
    coco.file.write_text("[1, 2]")
    with pytest.raises(
        DataError, match="not a COCO annotation file: it has no list 'images', 'annotations', 'categories'"
    ):
        CocoDataset(images=coco.images, annotations=coco.file, training=True)


def drop(section: str, position: int, key: str) -> Callable[[dict[str, Any]], Any]:
    return lambda data: data[section][position].pop(key)


def put(section: str, position: int, key: str, value: Any) -> Callable[[dict[str, Any]], Any]:
    return lambda data: data[section][position].update({key: value})


# What is done to the set (images 7, 3, 12; categories 90, 4, 17; annotations 1, 2, 3, 5), and what the message says.
DAMAGES = [
    (lambda data: data.pop("categories"), "it has no list 'categories'"),
    (lambda data: data.update(images=3), "'images' must be a list, got int"),
    (lambda data: data["images"].clear() or data["annotations"].clear(), "has no images"),
    (lambda data: data["categories"].clear() or data["annotations"].clear(), "has no categories"),
    (drop("images", 1, "file_name"), "image 3 has no 'file_name'"),
    (drop("images", 2, "height"), "image 12 has no 'height'"),
    (drop("images", 0, "id"), "image number 1 of the list has no integer 'id'"),
    (put("images", 0, "id", "seven"), "image number 1 of the list has no integer 'id'"),
    (put("images", 0, "width", "60"), "image 7: 'width' must be int, got '60'"),
    (put("images", 0, "width", 0), "image 7 has a size of 0 x 40 pixels"),
    (put("images", 1, "id", 7), "image id 7 occurs more than once"),
    (drop("categories", 1, "name"), "category 4 has no 'name'"),
    (put("categories", 1, "id", 90), "category id 90 occurs more than once"),
    (drop("annotations", 0, "bbox"), "annotation 1 has no 'bbox'"),
    (drop("annotations", 1, "image_id"), "annotation 2 has no 'image_id'"),
    (put("annotations", 1, "id", 1), "annotation id 1 occurs more than once"),
    (put("annotations", 2, "image_id", 99), "annotation 3 is for image 99, not listed in the file"),
    (put("annotations", 2, "category_id", 5), "annotation 3 has category 5, not listed in the file"),
    (put("annotations", 0, "bbox", [1, 2, 3]), r"annotation 1: 'bbox' must be four numbers, got \[1, 2, 3\]"),
    (put("annotations", 0, "bbox", [1, 2, 3, "4"]), "annotation 1: 'bbox' must be four numbers"),
    (put("annotations", 0, "area", "big"), "annotation 1: 'area' must be a number, got 'big'"),
    (put("annotations", 0, "segmentation", [[1, 2], "x"]), "annotation 1: 'segmentation' must be a list of polygons"),
    (put("annotations", 0, "segmentation", "x"), "annotation 1: 'segmentation' is neither"),
    (put("annotations", 2, "segmentation", {"size": [50, 36]}), "annotation 3: 'segmentation' is neither"),
    (put("annotations", 2, "segmentation", {"size": [36, 50], "counts": [1800]}),
     r"annotation 3: the run lengths are for a size of \[36, 50\], the image has \[50, 36\]"),
    (put("annotations", 2, "segmentation", {"size": [50, 36], "counts": [7, 9]}),
     "annotation 3: the run lengths do not sum up to the 1800 pixels"),
    (put("categories", 1, "name", "half \ud83d"), r"category 4: the name 'half \\ud83d' is no UTF-8 text"),
    # Numbers beyond reason.
    (put("images", 0, "width", 10**400), "image 7 has a size of an integer of 1329 bits x 40 pixels"),
    (put("images", 0, "width", 2**30), "image 7 has a size of 1073741824 x 40 pixels"),
    (put("images", 0, "id", 1.5), r"image number 1 of the list has no integer 'id' \(got 1.5\)"),
    (put("annotations", 0, "image_id", 10**400), "annotation 1 is for image an integer of 1329 bits, not listed"),
    (put("annotations", 0, "bbox", [1, 1, 10**400, 5]), "annotation 1: 'bbox' holds a number beyond reason, an int"),
    (put("annotations", 0, "bbox", [1, 1, 1e300, 5]), "annotation 1: 'bbox' holds a number beyond reason, 1e.300"),
    (put("annotations", 0, "area", 2**63), "annotation 1: 'area' holds a number beyond reason"),
    (put("annotations", 0, "area", float("nan")), "annotation 1: 'area' holds a number beyond reason, nan"),
    *[(put("annotations", 0, "segmentation", [[0, 0, 9, 0, 9, 9], [0, 0, 9, number, 9, 9]]),
       f"annotation 1: 'segmentation' holds a number beyond reason, {words}")
      for number, words in [(10**400, "an integer"), (2**31, "2147483648"), (1e300, "1e.300"), (float("nan"), "nan"),
                            (float("-inf"), "-inf")]],
    *[(put("annotations", 2, "segmentation", {"size": [50, 36], "counts": counts}),
       "annotation 3: the run lengths do not sum up to the 1800 pixels")
      # Added up in 64 bits the last ones give 1800.
      for counts in [[2**63], [10**400], [2**63 - 1, 2**63 - 1, 1802], [-1, 1801]]],
]  # fmt: skip


@pytest.mark.parametrize(("damage", "message"), DAMAGES, ids=range(len(DAMAGES)))
def test_damaged_entries_are_named_with_file_and_id(
    coco: Coco, damage: Callable[[dict[str, Any]], Any], message: str
) -> None:
    damage(coco.data)
    with pytest.raises(DataError, match=rf"{coco.file}.*{message}"):
        coco.load()


# Changes of a sound annotation (box 8, 8, 16, 16 of a 64 x 64 image): kind of report, trained on?, evaluated?
CLEANED = [
    ({}, None, True, True),
    ({"bbox": [8, 8, 0, 16]}, "box without area dropped", False, False),
    ({"bbox": [8, 8, 16, 0]}, "box without area dropped", False, False),
    ({"bbox": [24, 24, -16, -16]}, "box without area dropped", False, False),
    ({"bbox": [8, 8, float("nan"), 16]}, "box without area dropped", False, False),
    ({"bbox": [8, 8, 16, float("inf")]}, "box without area dropped", False, False),
    ({"bbox": [70, 8, 16, 16]}, "box outside its image dropped", False, False),
    ({"bbox": [-30, 8, 16, 16]}, "box outside its image dropped", False, False),
    ({"bbox": [8, 64, 16, 16]}, "box outside its image dropped", False, False),
    ({"bbox": [8, 8, 0.9, 16]}, "object below one pixel kept from training", False, True),
    ({"bbox": [8, 8, 16, 0.5]}, "object below one pixel kept from training", False, True),
    ({"bbox": [63.5, 8, 16, 16]}, "object below one pixel kept from training", False, True),
    ({"area": 0}, "object below one pixel kept from training", False, True),
    ({"bbox": [50, 8, 30, 16]}, "box reaching out of its image clipped", True, True),
    ({"bbox": [-5, -5, 20, 20]}, "box reaching out of its image clipped", True, True),
    ({"bbox": [56, 8, 8.7, 16]}, None, True, True),
    ({"segmentation": None}, "annotation without segmentation dropped", False, False),
    ({"segmentation": []}, "annotation without segmentation dropped", False, False),
    ({"segmentation": [[8, 8, 24, 24]]}, "annotation without segmentation dropped", False, False),
]


@pytest.mark.parametrize(("changes", "kind", "trained", "evaluated"), CLEANED)
def test_boxes_are_cleaned_by_the_documented_rule_and_reported(
    coco: Coco,
    caplog: pytest.LogCaptureFixture,
    index_of: Callable[[CocoDataset, int], int],
    changes: dict[str, Any],
    kind: str | None,
    trained: bool,
    evaluated: bool,
) -> None:
    coco.annotate(changes)
    with caplog.at_level(logging.INFO):
        dataset = coco.load(keep_empty=True)
    assert dataset.report.counts == ({} if kind is None else {kind: 1})
    lines = [record.getMessage() for record in caplog.records]
    if kind is None:
        assert lines == []
    else:
        assert lines == [f"instances.json: 1 x {kind} (annotation 100 of 12.png)"]
    target = dataset.target(index_of(dataset, 12))
    assert len(target["boxes"]) == len(target["labels"]) == len(target["masks"]) == trained
    x1, y1, x2, y2 = target["boxes"].unbind(1)
    assert bool(((x1 >= 0) & (y1 >= 0) & (x2 <= 64) & (y2 <= 64) & (x2 > x1) & (y2 > y1)).all())
    assert len(dataset.truth(index_of(dataset, 12))["labels"]) == evaluated


def test_clipping_cuts_the_training_box_and_leaves_the_evaluated_one(
    coco: Coco, index_of: Callable[[CocoDataset, int], int]
) -> None:
    coco.annotate({"bbox": [50, -3, 30, 16]})
    dataset = coco.load()
    assert dataset.target(index_of(dataset, 12))["boxes"].tolist() == [[50, 0, 64, 13]]
    assert dataset.truth(index_of(dataset, 12))["xywh"].tolist() == [[50, -3, 30, 16]]


def test_the_report_counts_all_and_names_the_first(coco: Coco) -> None:
    for id_ in range(200, 209):
        coco.annotate({"id": id_, "bbox": [1, 1, 0, 0]})
    coco.annotate({"bbox": [100, 100, 5, 5]})
    assert str(coco.load().report) == (
        "instances.json: 9 x box without area dropped (annotation 200 of 12.png, annotation 201 of 12.png, "
        "annotation 202 of 12.png, ...); 1 x box outside its image dropped (annotation 100 of 12.png); "
        "1 x image without annotations left out of training (12.png)"
    )


def test_missing_images_are_counted_and_the_first_are_named(coco: Coco) -> None:
    coco.data["images"] += [
        {"id": 100 + n, "file_name": f"more/{n}.png", "height": 5, "width": 5} for n in range(8)
    ]  # fmt: skip
    (coco.images / "7.png").unlink()
    (coco.images / "3.png").unlink()
    (coco.images / "3.png").mkdir()
    expected = (
        rf"10 of 11 images of {coco.file} are missing from {coco.images}: 3\.png, 7\.png, more/0\.png, .*, \.\.\."
    )
    with pytest.raises(DataError, match=expected):
        coco.load()


def test_a_missing_image_folder_is_named(coco: Coco) -> None:
    coco.images = coco.images / "nowhere"
    with pytest.raises(DataError, match=r"image folder not found: .*nowhere"):
        coco.load()


@pytest.mark.parametrize("name", ["../secret.png", "a/../../secret.png", "{root}/secret.png", "..", "", "a\0b"])
def test_file_names_leading_out_of_the_image_folder_are_refused(coco: Coco, tmp_path: Path, name: str) -> None:
    (tmp_path / "secret.png").write_bytes((coco.images / "7.png").read_bytes())
    coco.data["images"][0]["file_name"] = name.format(root=tmp_path)
    with pytest.raises(DataError, match=r"instances\.json: file name '.*' is refused"):
        coco.load()


def test_links_leading_out_of_the_image_folder_are_refused(coco: Coco, tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "7.png").write_bytes((coco.images / "7.png").read_bytes())
    (coco.images / "link.png").symlink_to(outside / "7.png")
    (coco.images / "sub").symlink_to(outside)
    for name in ("link.png", "sub/7.png"):
        coco.data["images"][0]["file_name"] = name
        with pytest.raises(DataError, match=f"file name '{name}' is refused; it is or follows a link out"):
            coco.load()


def test_links_to_themselves_lead_to_no_image(coco: Coco, tmp_path: Path) -> None:
    (coco.images / "7.png").unlink()
    (coco.images / "7.png").symlink_to(coco.images / "7.png")
    (coco.images / "sub").symlink_to(coco.images / "sub")
    coco.data["images"][1]["file_name"] = "sub/3.png"
    with pytest.raises(DataError, match=rf"2 of 3 images of {coco.file} are missing from {coco.images}: sub/3\.png, 7"):
        coco.load()
    coco.images = tmp_path / "round"
    coco.images.symlink_to(coco.images)
    with pytest.raises(DataError, match=r"image folder not found: .*round"):
        coco.load()


def test_links_and_folders_within_the_image_folder_are_fine(coco: Coco, tmp_path: Path) -> None:
    (coco.images / "sub").mkdir()
    os.rename(coco.images / "7.png", coco.images / "sub" / "7.png")
    (coco.images / "link.png").symlink_to(coco.images / "3.png")
    coco.data["images"][0]["file_name"] = "sub/7.png"
    coco.data["images"][1]["file_name"] = "link.png"
    whole = tmp_path / "elsewhere"
    whole.symlink_to(coco.images)  # the folder itself may be a link
    coco.images = whole
    dataset = coco.load()
    assert [tuple(dataset.image(index).shape) for index in range(2)] == [(3, 50, 36), (3, 40, 60)]


@pytest.mark.parametrize("counts", ["zzzz", "", "P", "Po", "0", "1" * 9, "PPPPPPPPPPPPPPP0", "\u20ac1"])
def test_damaged_compressed_run_lengths_are_named(coco: Coco, counts: str) -> None:
    coco.annotate({"segmentation": {"size": [64, 64], "counts": counts}})
    with pytest.raises(
        DataError, match=rf"{coco.file}: annotation 100: the run lengths do not sum up to the 4096 pixels"
    ):
        coco.load()


@given(arrays(np.uint8, array_shapes(min_dims=2, max_dims=2, max_side=40), elements=st.integers(0, 1)), st.data())
def test_compressed_run_lengths_are_checked_as_pycocotools_writes_them(mask: np.ndarray, data: st.DataObject) -> None:
    text = mask_utils.encode(np.asfortranarray(mask))["counts"].decode()
    assert covers(text, mask.size)
    assert not covers(text, mask.size + 1)
    cut = data.draw(st.integers(0, len(text) - 1))
    # What is left of a string that is cut short covers fewer pixels, unless only a last empty run was lost.
    if covers(text[:cut], mask.size):
        assert np.array_equal(mask_utils.decode({"size": list(mask.shape), "counts": text[:cut].encode()}), mask)


def test_records_survive_packing(coco: Coco) -> None:
    dataset = coco.load()
    record = dataset.record(1)
    assert (record.id, record.file_name, record.height, record.width) == (7, "7.png", 40, 60)
    assert [annotation.id for annotation in record.annotations] == [1, 2]
    assert record.annotations[0].segmentation == [[10, 5, 30, 5, 30, 35, 10, 35]]
    with pytest.raises(IndexError):
        dataset.record(2)
    assert torch.equal(torch.from_numpy(dataset.aspect_ratios), torch.tensor([50 / 36, 40 / 60], dtype=torch.float64))
