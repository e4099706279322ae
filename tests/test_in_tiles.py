"""Large images with small objects: the shipped network in tiles against the whole image at once."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from pycocotools import mask as mask_utils
from torchvision.ops import box_iou

import piip
from piip.data.sets.shapes.config import CLASS_NAMES
from piip.data.sets.shapes.drawing import draw_image
from piip.engine import predict as prediction
from piip.errors import ConfigError
from piip.model import Model
from tests.cli.chain import run, succeed

SIDE, ACROSS = 256, 3  # generated images, side by side, as they were learned


@pytest.fixture(scope="module")
def scene(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with an image of nine generated ones and its annotations."""
    folder, rng = tmp_path_factory.mktemp("scene"), np.random.default_rng(5)
    pixels = np.zeros((ACROSS * SIDE, ACROSS * SIDE, 3), dtype=np.uint8)
    objects = []
    for top in range(0, ACROSS * SIDE, SIDE):
        for left in range(0, ACROSS * SIDE, SIDE):
            picture, found = draw_image(SIDE, rng)
            pixels[top : top + SIDE, left : left + SIDE] = np.asarray(picture)
            for label, visible in found:
                mask = np.zeros(pixels.shape[:2], dtype=np.uint8, order="F")
                mask[top : top + SIDE, left : left + SIDE] = visible
                rle = mask_utils.encode(mask)
                box = mask_utils.toBbox(rle).tolist()
                segmentation = {"size": rle["size"], "counts": rle["counts"].decode()}
                objects.append({"category_id": label + 1, "bbox": box, "segmentation": segmentation})
    Image.fromarray(pixels).save(folder / "scene.png")
    for number, item in enumerate(objects, 1):
        area = float(mask_utils.area(item["segmentation"]))
        item |= {"id": number, "image_id": 1, "area": area, "iscrowd": 0}
    document = {
        "images": [{"id": 1, "file_name": "scene.png", "width": pixels.shape[1], "height": pixels.shape[0]}],
        "annotations": objects,
        "categories": [{"id": number, "name": name} for number, name in enumerate(CLASS_NAMES, 1)],
    }
    (folder / "scene.json").write_text(json.dumps(document))
    return folder


@pytest.fixture(scope="module")
def model() -> Model:
    return piip.create_model("nano", "shipped")


def test_tiles_find_what_the_whole_image_is_too_small_for(model, scene):
    whole = model.predict(scene / "scene.png", threshold=0.5)
    tiled = model.predict(scene / "scene.png", threshold=0.5, tile=SIDE)
    assert len(tiled["scores"]) > 1.5 * len(whole["scores"])
    assert tiled["masks"].shape == (len(tiled["scores"]), ACROSS * SIDE, ACROSS * SIDE)
    overlaps = box_iou(tiled["boxes"], tiled["boxes"]).fill_diagonal_(0) > 0.8
    assert not (overlaps & (tiled["labels"][:, None] == tiled["labels"])).any()
    assert tiled["scores"].tolist() == sorted(tiled["scores"].tolist(), reverse=True)


def test_an_image_no_larger_than_a_tile_is_predicted_as_ever(model, scene):
    part = np.asarray(Image.open(scene / "scene.png"))[:SIDE, :SIDE]
    expected, found = model.predict(part), model.predict([part], tile=SIDE)[0]
    assert sorted(found) == sorted(expected)
    order = found["scores"].argsort(descending=True, stable=True)
    assert torch.equal(found["boxes"][order], expected["boxes"])
    assert torch.equal(found["masks"][order], expected["masks"])


def test_evaluation_in_tiles_measures_the_same_way(scene):
    words = ["nano", f"data.val={{type: coco, annotations: {scene / 'scene.json'}, images: {scene}}}", "data.workers=0"]
    whole = json.loads(succeed("eval", *words, "--json").stdout)["metrics"]
    tiled = json.loads(succeed("eval", *words, "--json", "--tile", SIDE).stdout)["metrics"]
    assert tiled["box_ap"] > 2 * whole["box_ap"] > 0
    assert tiled["mask_ap"] > 0.4


def test_a_large_tiff_is_read_in_parts_and_gives_the_same(scene, tmp_path, monkeypatch):
    Image.open(scene / "scene.png").save(tmp_path / "scene.tif")
    words = ["--tile", SIDE, "--json"]
    expected = json.loads(succeed("predict", "nano", tmp_path / "scene.tif", *words, "--output", tmp_path / "a").stdout)
    monkeypatch.setattr(prediction, "PARTS", 1000)
    monkeypatch.setattr(prediction, "_LARGEST_OVERLAY", 300)
    found = json.loads(succeed("predict", "nano", tmp_path / "scene.tif", *words, "--output", tmp_path / "b").stdout)
    assert found["images"] == expected["images"]
    # The whole image, made smaller, is made so in another way.
    assert abs(len(found["annotations"]) - len(expected["annotations"])) <= 2
    assert found["annotations"][0]["bbox"] == pytest.approx(expected["annotations"][0]["bbox"], abs=0.01)
    assert found["annotations"][0]["segmentation"]["size"] == [ACROSS * SIDE, ACROSS * SIDE]
    assert max(Image.open(tmp_path / "b" / "scene.jpg").size) >= 900


def test_tiles_are_for_results_with_a_place(model, scene):
    with pytest.raises(ConfigError, match="overlap"):
        model.predict(scene / "scene.png", tile=SIDE, overlap=1.0)
    classifier = piip.create_model("classification/piip_nano_shapes")
    with pytest.raises(ConfigError, match="leave out --tile"):
        classifier.predict(scene / "scene.png", tile=SIDE)
    assert run("predict", "nano", scene / "scene.png", "--tile", "0").exit_code == 2


def test_label_maps_of_tiles_have_the_size_of_the_image(scene):
    model = piip.create_model("segmentation/upernet_piip_nano_shapes")
    result = model.predict(scene / "scene.png", tile=SIDE, overlap=0.25)
    assert result["labels"].shape == result["scores"].shape == (ACROSS * SIDE, ACROSS * SIDE)
    assert 0 < result["scores"].min() <= result["scores"].max() <= 1


def test_results_are_arrays_under_the_names_of_supervision(model, scene):
    result = model.predict(scene / "scene.png", threshold=0.3)
    arrays = result.arrays()
    assert arrays["xyxy"].shape == (len(result["scores"]), 4)
    assert arrays["data"]["class_name"].tolist() == result.class_names
    supervision = pytest.importorskip("supervision")
    detections = supervision.Detections(**arrays)
    assert len(detections) == len(result["scores"])
    assert detections.area.tolist() == result["masks"].sum((1, 2)).tolist()
