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

from piip.data.sets.coco.config import CocoData
from piip.data.sets.instances.dataset import InstanceDataset
from piip.data.sets.instances.masks import read_mask, to_rle
from piip.data.sets.label_maps.class_names import read_class_names
from piip.errors import DataError
from tests.data.sets.coco.coco_set import Coco


def test_a_missing_file_is_named(coco: Coco, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"annotation file not found: .*gone\.json"):
        CocoData(images=coco.images, annotations=tmp_path / "gone.json").build(training=True)


def test_a_file_that_is_not_json_is_named(coco: Coco) -> None:
    for text in ("{'images': []}", "", "\ufeff\x80"):
        coco.file.write_text(text)
        with pytest.raises(DataError, match=r"instances\.json is not valid JSON: .*line 1"):
            CocoData(images=coco.images, annotations=coco.file).build(training=True)
    coco.file.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(DataError, match=r"instances\.json is not valid JSON"):
        CocoData(images=coco.images, annotations=coco.file).build(training=True)


def test_a_file_of_nested_brackets_or_endless_digits_is_named(coco: Coco) -> None:
    for text, words in (("[" * 20_000, "brackets in brackets"), ('{"images": ' + "9" * 5000 + "}", "digits")):
        coco.file.write_text(text)
        with pytest.raises(DataError, match=rf"instances\.json is not valid JSON: .*{words}"):
            CocoData(images=coco.images, annotations=coco.file).build(training=True)


@pytest.mark.parametrize("make", [os.mkfifo, os.mkdir])
def test_what_is_no_file_is_named_and_never_waited_for(coco: Coco, make: Callable[[Path], None]) -> None:
    make(coco.file)
    with pytest.raises(DataError, match=r"cannot read annotation file .*: it is a folder, a pipe or a device"):
        CocoData(images=coco.images, annotations=coco.file).build(training=True)
    with pytest.raises(DataError, match=r"cannot read the class-name file .*: it is a folder, a pipe or a device"):
        read_class_names(coco.file)


def test_a_file_of_another_kind_is_named(coco: Coco) -> None:
    coco.file.write_text("[1, 2]")
    with pytest.raises(
        DataError, match="not a COCO annotation file: it has no list 'images', 'annotations', 'categories'"
    ):
        CocoData(images=coco.images, annotations=coco.file).build(training=True)


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
    (drop("images", 0, "id"), "image number 1 of the list has no 'id'"),
    (put("images", 1, "id", 7), "image id 7 occurs more than once"),
    (drop("categories", 1, "name"), "category 4 has no 'name'"),
    (put("categories", 1, "id", 90), "category id 90 occurs more than once"),
    (drop("annotations", 1, "image_id"), "annotation 2 has no 'image_id'"),
    (put("annotations", 1, "category_id", None), "annotation 2 has no 'category_id'"),
    (put("annotations", 2, "category_id", 5), "annotation 3 has category 5, not listed in the file"),
    (put("annotations", 0, "bbox", [1, 2, 3]), r"annotation 1: 'bbox' must be four numbers, got \[1, 2, 3\]"),
    (put("annotations", 0, "bbox", [1, 2, 3, "x"]), "annotation 1: 'bbox' must be four numbers"),
    (put("annotations", 0, "area", "big"), "annotation 1: 'area' must be a number, got 'big'"),
    (put("annotations", 0, "iscrowd", "maybe"), "annotation 1: 'iscrowd' must be 0 or 1, got 'maybe'"),
    (put("categories", 1, "name", "half \ud83d"), r"category 4: the name 'half \\ud83d' is no UTF-8 text"),
    # Numbers beyond reason.
    (put("images", 0, "width", 10**400), "image 7 has a size of an integer of 1329 bits x 40 pixels"),
    (put("images", 0, "width", 2**30), "image 7 has a size of 1073741824 x 40 pixels"),
    (put("images", 0, "id", 1.5), r"image number 1 of the list has no 'id' \(got 1.5\)"),
    (put("annotations", 0, "bbox", [1, 1, 10**400, 5]), "annotation 1: 'bbox' holds a number beyond reason, an int"),
    (put("annotations", 0, "bbox", [1, 1, 1e300, 5]), "annotation 1: 'bbox' holds a number beyond reason, 1e.300"),
    (put("annotations", 0, "area", 2**63), "annotation 1: 'area' holds a number beyond reason"),
    (put("annotations", 0, "area", float("nan")), "annotation 1: 'area' holds a number beyond reason, nan"),
]


@pytest.mark.parametrize(("damage", "message"), DAMAGES, ids=range(len(DAMAGES)))
def test_damaged_entries_are_named_with_file_and_id(
    coco: Coco, damage: Callable[[dict[str, Any]], Any], message: str
) -> None:
    damage(coco.data)
    with pytest.raises(DataError, match=rf"(?s){coco.file}.*{message}"):
        coco.load()


TURNED = "box of negative width or height turned round"
FROM_MASK = "box without area taken from its mask"
OUTSIDE = "box outside its image dropped"
TINY = "object below one pixel kept from training"
CLIPPED = "box reaching out of its image clipped"
NO_MASK = "mask that is empty or outside its box left out"
NEW_AREA = "area that contradicts its box computed anew"

# Changes of a sound annotation (box 8, 8, 16, 16 of a 64 x 64 image): kinds of report, trained on?, evaluated?, mask?
CLEANED = [
    ({}, [], True, True, True),
    ({"bbox": [8, 8, 0, 16]}, [FROM_MASK], True, True, True),
    ({"bbox": [8, 8, 0, 16], "segmentation": []}, ["box without area dropped"], False, False, False),
    ({"bbox": [24, 24, -16, -16]}, [TURNED], True, True, True),
    ({"bbox": [24, 8, -16, 16]}, [TURNED], True, True, True),
    ({"bbox": [8, 8, float("nan"), 16]}, [FROM_MASK], True, True, True),
    ({"bbox": [8, 8, 16, float("inf")]}, [FROM_MASK], True, True, True),
    ({"bbox": None}, [FROM_MASK], True, True, True),
    ({"bbox": [70, 8, 16, 16]}, [OUTSIDE], False, False, False),
    ({"bbox": [-30, 8, 16, 16]}, [OUTSIDE], False, False, False),
    ({"bbox": [8, 64, 16, 16]}, [OUTSIDE], False, False, False),
    ({"bbox": [8, 8, 0.9, 16], "area": 14}, [TINY], False, True, True),
    ({"bbox": [8, 8, 16, 0.5], "area": 7}, [TINY], False, True, True),
    ({"area": 0}, [NEW_AREA], True, True, True),
    ({"area": 10_000}, [NEW_AREA], True, True, True),
    ({"segmentation": [[8, 8, 24, 8, 8, 24]]}, [NEW_AREA], True, True, True),
    ({"bbox": [50, 8, 30, 16], "segmentation": None}, [CLIPPED], True, True, False),
    ({"bbox": [-5, -5, 20, 20], "segmentation": None}, [CLIPPED], True, True, False),
    ({"bbox": [56, 8, 8.7, 16], "segmentation": None, "area": 128}, [], True, True, False),
    ({"segmentation": None}, [], True, True, False),
    ({"segmentation": []}, [], True, True, False),
    ({"segmentation": [[-30, -30, -20, -30, -20, -10]]}, [NO_MASK], True, True, False),
    ({"segmentation": [[40, 40, 60, 40, 60, 60]]}, [NO_MASK], True, True, False),
    ({"segmentation": [[8, 8, 24, 8, 8, 8]]}, [NO_MASK], True, True, False),
    ({"segmentation": {"size": [64, 64], "counts": [4096]}}, [NO_MASK], True, True, False),
]


@pytest.mark.parametrize(("changes", "kinds", "trained", "evaluated", "mask"), CLEANED, ids=range(len(CLEANED)))
def test_objects_are_cleaned_by_the_documented_rule_and_reported(
    coco: Coco,
    caplog: pytest.LogCaptureFixture,
    index_of: Callable[[InstanceDataset, int], int],
    changes: dict[str, Any],
    kinds: list[str],
    trained: bool,
    evaluated: bool,
    mask: bool,
) -> None:
    coco.annotate(changes)
    with caplog.at_level(logging.INFO):
        dataset = coco.load(keep_empty=True)
    assert dataset.report.of("repaired", "left out") == dict.fromkeys(kinds, 1)
    lines = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
    assert lines == [f"instances.json: 1 x {kind} (annotation 100 of 12.png)" for kind in kinds]
    index = index_of(dataset, 12)
    target, truth = dataset.target(index), dataset.truth(index)
    assert len(target["boxes"]) == len(target["labels"]) == len(target["masks"]) == trained
    assert target.get("has_mask", torch.ones(int(trained), dtype=torch.bool)).tolist() == [mask] * trained
    x1, y1, x2, y2 = target["boxes"].unbind(1)
    assert bool(((x1 >= 0) & (y1 >= 0) & (x2 <= 64) & (y2 <= 64) & (x2 > x1) & (y2 > y1)).all())
    assert [rle is not None for rle in truth["rles"]] == [mask] * evaluated
    assert len(truth["xywh"]) == evaluated


def test_clipping_cuts_the_training_box_and_leaves_the_evaluated_one(
    coco: Coco, index_of: Callable[[InstanceDataset, int], int]
) -> None:
    coco.annotate({"bbox": [50, -3, 30, 16]})
    dataset = coco.load()
    assert dataset.target(index_of(dataset, 12))["boxes"].tolist() == [[50, 0, 64, 13]]
    assert dataset.truth(index_of(dataset, 12))["xywh"].tolist() == [[50, -3, 30, 16]]


def test_the_report_counts_all_and_names_the_first(coco: Coco) -> None:
    for id_ in range(200, 209):
        coco.annotate({"id": id_, "bbox": [1, 1, 0, 0], "segmentation": []})
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
        rf"10 of 11 images of {coco.file} are missing from {coco.images}: 7\.png, 3\.png, more/0\.png, .*, \.\.\."
    )
    with pytest.raises(DataError, match=expected):
        coco.load()


def test_a_missing_image_folder_is_named(coco: Coco) -> None:
    coco.images = coco.images / "nowhere"
    with pytest.raises(DataError, match=r"image folder not found: .*nowhere"):
        coco.load()


@pytest.mark.parametrize("name", ["../secret.png", "a/../../secret.png", "{root}/secret.png", "..", "a\0b"])
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
    coco.data["images"][1]["file_name"] = "sub/9.png"
    with pytest.raises(DataError, match=rf"2 of 3 images of {coco.file} are missing from {coco.images}: 7\.png, sub/9"):
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


@pytest.mark.parametrize("counts", ["zzzz", "P", "Po", "0", "1" * 9, "PPPPPPPPPPPPPPP0", "\u20ac1", [2**63], [10**400],
                                    [2**63 - 1, 2**63 - 1, 4098], [-1, 4097], [7, 9], ["x"]])  # fmt: skip
def test_damaged_run_lengths_cost_that_mask_alone(coco: Coco, counts: Any) -> None:
    coco.annotate({"segmentation": {"size": [64, 64], "counts": counts}})
    dataset = coco.load()
    assert dataset.report.of("left out") == {"mask that cannot be read left out": 1}
    assert "annotation 100 of 12.png: the run lengths" in str(dataset.report)
    assert [rle is None for rle in dataset.truth(2)["rles"]] == [True]
    assert dataset.target(2)["boxes"].tolist() == [[8, 8, 24, 24]]


@given(arrays(np.uint8, array_shapes(min_dims=2, max_dims=2, max_side=40), elements=st.integers(0, 1)))
def test_compressed_run_lengths_are_read_as_pycocotools_writes_them(mask: np.ndarray) -> None:
    text = mask_utils.encode(np.asfortranarray(mask))["counts"].decode()
    repairs: list[str] = []
    read = read_mask({"size": [*mask.shape], "counts": text}, None, mask.shape, repairs.append)
    assert repairs == []
    assert np.array_equal(mask_utils.decode(to_rle(read.segmentation, *mask.shape)), mask)


def test_records_survive_packing(coco: Coco) -> None:
    dataset = coco.load()
    record = dataset.record(1)
    assert (record.id, record.file_name, record.height, record.width) == (7, "7.png", 40, 60)
    assert [annotation.id for annotation in record.annotations] == [1, 2]
    assert record.annotations[0].segmentation == [[10, 5, 30, 5, 30, 35, 10, 35]]
    with pytest.raises(IndexError):
        dataset.record(2)
    assert torch.equal(torch.from_numpy(dataset.aspect_ratios), torch.tensor([50 / 36, 40 / 60], dtype=torch.float64))
