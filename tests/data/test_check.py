"""Everything that is wrong with data is found in one pass."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from piip.data.check import as_document, check_data, repaired, small_shares, suggest_side, wrong
from piip.data.find import find_data
from piip.data.sets.coco.config import CocoData
from piip.data.sets.image_folder.config import ImageFolderData
from piip.data.sets.label_maps.config import LabelMapData
from tests.data.exports import HEIGHT, WIDTH, coco, save_images, write_coco
from tests.data.test_find import coco_roboflow, folders_by_split, save_map


def photograph(folder: Path, name: str, seed: int, quality: int) -> None:
    """A smooth image, so that it looks alike however it is compressed."""
    grid = np.random.default_rng(seed).integers(0, 256, (4, 5, 3), dtype=np.uint8)
    folder.mkdir(parents=True, exist_ok=True)
    Image.fromarray(grid).resize((WIDTH, HEIGHT), Image.Resampling.BICUBIC).save(folder / name, quality=quality)


def test_sound_data_are_sound(tmp_path: Path) -> None:
    coco_roboflow(tmp_path)
    found = find_data(tmp_path)
    splits = check_data({"train": found.train, "val": found.val})
    assert [split.findings.counts for split in splits] == [{}, {}]
    assert wrong(splits) == 0
    assert as_document(splits)["ok"] is True
    assert splits[0].objects == {"box": [2, 0, 0], "disc": [2, 0, 0]}


def test_one_pass_finds_faults_of_files_and_of_images(tmp_path: Path) -> None:
    names = save_images(tmp_path, 4)
    data = coco(names)
    data["categories"].append({"id": 3, "name": "never"})
    data["images"][1]["width"] = 99
    data["annotations"][0]["bbox"] = ["6", "6", "20", "20"]
    data["annotations"][1]["segmentation"] = [[-9, -9, -5, -9, -5, -5]]
    data["annotations"][2]["category_id"] = 8
    (tmp_path / names[2]).write_bytes((tmp_path / names[2]).read_bytes()[:200])
    shutil.copy(tmp_path / names[0], tmp_path / names[3])
    save_images(tmp_path, 1, first=7)
    (tmp_path / "train.json").write_text(json.dumps(data))
    [split] = check_data({"all": CocoData(images=tmp_path, annotations=tmp_path / "train.json")})
    assert split.findings.counts == {
        "number or id written as text, or a whole number as 64.0, read": 1,
        "mask that is empty or outside its box left out": 1,
        "annotation whose category is not listed": 1,
        "class without objects": 1,
        "image in the folder that the annotations do not list": 1,
        "image that cannot be read": 1,
        "image of another size than annotated": 1,
        "copy of another image of the split (largest group: 2)": 1,
    }
    assert wrong([split]) == 6


def test_a_category_above_all_others_is_told(tmp_path: Path) -> None:
    data = coco(save_images(tmp_path, 2))
    for entry in data["categories"]:
        entry["supercategory"] = "project"
    data["categories"].append({"id": 0, "name": "project", "supercategory": "none"})
    (tmp_path / "train.json").write_text(json.dumps(data))
    [split] = check_data({"all": CocoData(images=tmp_path, annotations=tmp_path / "train.json")})
    assert split.findings.of("suspect") == {
        "category that is the supercategory of all others, a class without objects": 1
    }


def test_images_of_training_that_are_evaluated_are_found_however_they_are_called(tmp_path: Path) -> None:
    for seed in range(4):
        photograph(tmp_path / "train" / "a", f"{seed}.jpg", seed, 95)
        photograph(tmp_path / "train" / "b", f"b{seed}.jpg", 10 + seed, 95)
        photograph(tmp_path / "val" / "b", f"{seed}.jpg", 20 + seed, 95)
    photograph(tmp_path / "val" / "a", "again.jpg", 2, 95)
    photograph(tmp_path / "val" / "a", "smaller.jpg", 3, 60)
    roots = {split: ImageFolderData(root=tmp_path / split) for split in ("train", "val")}
    _, val = check_data(dict(roots))
    assert val.findings.counts == {"copy of an image in train": 1, "image nearly identical to one in train": 1}
    assert val.findings.examples["image nearly identical to one in train"] == ["smaller.jpg is much like 3.jpg"]
    same = check_data({"train": roots["train"], "val": roots["train"]})
    assert same[1].findings.counts == {"image that is in train too": 8}


def test_classes_that_differ_between_splits_are_told(tmp_path: Path) -> None:
    folders_by_split(tmp_path)
    save_images(tmp_path / "val" / "cat", 1, first=90)
    splits = check_data({split: ImageFolderData(root=tmp_path / split) for split in ("train", "val")})
    assert splits[1].findings.of("error") == {"classes that are others, or numbered otherwise, in training": 1}
    assert splits[1].objects == {"box": [2], "cat": [1], "disc": [2]}


@pytest.mark.parametrize(
    ("labels", "kind"), [((0, 255), "maps of 0 and 255 alone"), ((0, 5), "label without a class"), ((0, 1), None)]
)
def test_label_maps_are_looked_into(tmp_path: Path, labels: tuple[int, ...], kind: str | None) -> None:
    for name in save_images(tmp_path / "images", 2):
        save_map(tmp_path / "labels" / name, labels)
    config = LabelMapData(images=tmp_path / "images", labels=tmp_path / "labels", class_names=("bg", "box"))
    [split] = check_data({"all": config})
    assert split.findings.of("error").keys() == ({kind} if kind else set())
    if kind is None:
        half = HEIGHT * WIDTH
        assert split.objects == {"bg": [half], "box": [half], "no label": [0]}


def test_values_of_no_sense_in_a_coco_file_are_findings(tmp_path: Path) -> None:
    data = coco(save_images(tmp_path, 3))
    data["categories"][0]["supercategory"] = ["a list"]
    data["images"][0]["file_name"], data["images"][1]["file_name"] = "http://[abc/x.jpg", "\ud800/x.jpg"
    (tmp_path / "all.json").write_text(json.dumps(data))
    [split] = check_data({"all": CocoData(images=tmp_path, annotations=tmp_path / "all.json")})
    assert split.findings.counts["image file that is missing"] == 2


def test_data_that_cannot_be_read_at_all_are_a_finding_too(tmp_path: Path) -> None:
    [split] = check_data({"all": CocoData(images=tmp_path, annotations=tmp_path / "gone.json")})
    assert split.findings.of("error") == {"data that cannot be read": 1}


def test_a_repaired_file_is_sound_and_holds_what_could_be_read(tmp_path: Path) -> None:
    data = coco(save_images(tmp_path, 3))
    sides = (WIDTH, HEIGHT, WIDTH, HEIGHT)
    for entry in data["annotations"]:
        entry["bbox"] = [str(value / side) for value, side in zip(entry["bbox"], sides)]
        entry["id"] = 0
        del entry["segmentation"]
    data["annotations"][0]["category_id"] = 9
    data["images"][2] |= {"id": 77}  # its annotations are those of no image
    (tmp_path / "train.json").write_text(json.dumps(data))
    [split] = check_data({"all": CocoData(images=tmp_path, annotations=tmp_path / "train.json")})
    told: list[str] = []
    (tmp_path / "clean.json").write_text(json.dumps(repaired(split, told.append)))
    assert told[-1] == "3 images, 3 annotations and 2 categories written"
    clean = CocoData(images=tmp_path, annotations=tmp_path / "clean.json")
    [again] = check_data({"all": clean})
    assert wrong([again]) == 0
    assert [a.box for image in clean.read().images for a in image.annotations] == [
        (34, 10, 24, 30), (6, 6, 20, 20), (34, 10, 24, 30)
    ]  # fmt: skip


def test_a_repaired_file_leaves_damaged_images_out_and_corrects_sizes(tmp_path: Path) -> None:
    names = save_images(tmp_path, 2)
    data = coco(names)
    data["images"][0]["width"] = 99
    (tmp_path / names[1]).write_bytes(b"gone")
    (tmp_path / "train.json").write_text(json.dumps(data))
    [split] = check_data({"all": CocoData(images=tmp_path, annotations=tmp_path / "train.json")})
    document = repaired(split, lambda _: None)
    assert [(entry["file_name"], entry["width"]) for entry in document["images"]] == [(names[0], WIDTH)]
    assert len(document["annotations"]) == 2


def test_resolutions_are_suggested_by_the_objects_that_stay_large_enough(tmp_path: Path) -> None:
    file = write_coco(tmp_path / "a.json", save_images(tmp_path, 1))
    [split] = check_data({"all": CocoData(images=tmp_path, annotations=file)}, pixels=False)
    # The objects are 20 and 26.8 pixels of 64.
    assert small_shares(split, (16, 20, 26)) == {16: 1.0, 20: 0.5, 26: 0.0}
    assert suggest_side({16: 1.0, 20: 0.5, 26: 0.0}) == 26
