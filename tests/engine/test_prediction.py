"""Predictions on files: what is found, drawn and written."""

from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from pycocotools import mask as mask_utils
from safetensors.torch import load_file
from torch import Tensor

from piip.engine.device import autocast, choose_device
from piip.engine.evaluate import run_evaluation
from piip.engine.predict import find_images, run_prediction
from piip.errors import CheckpointError, ConfigError, DataError
from piip.load import build_model
from piip.results.drawing import class_colour, draw_detections
from piip.weights.files import write_weights
from tests.engine.tiny import tiny_config

NAMES = ["circle", "rectangle", "triangle", "star", "cross"]


def result(boxes: list[list[float]], size: tuple[int, int]) -> dict[str, Tensor]:
    masks = torch.zeros(len(boxes), *size, dtype=torch.bool)
    for mask, (x1, y1, x2, y2) in zip(masks, boxes, strict=True):
        mask[int(y1) : int(y2), int(x1) : int(x2)] = True
    return {
        "boxes": torch.tensor(boxes).reshape(-1, 4),
        "scores": torch.linspace(0.9, 0.5, len(boxes)),
        "labels": torch.arange(len(boxes)),
        "masks": masks,
    }


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Untrained weights, with a low score for everything."""
    torch.manual_seed(0)
    file = tmp_path_factory.mktemp("weights") / "tiny.safetensors"
    write_weights(file, build_model(tiny_config(file.parent).model).state_dict(), class_names=NAMES)
    return file


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    folder = tmp_path / "photos"
    (folder / "deeper").mkdir(parents=True)
    generator = np.random.default_rng(0)
    for name, size in (("b.jpg", (50, 70)), ("a.PNG", (64, 48)), ("deeper/b.jpg", (40, 40))):
        Image.fromarray(generator.integers(0, 255, (*size, 3), dtype=np.uint8)).save(folder / name)
    (folder / "notes.txt").write_text("not an image")
    (folder / "broken.jpg").write_bytes((folder / "b.jpg").read_bytes()[:300])
    return folder


def test_files_folders_and_patterns_are_found_once_and_in_order(photos: Path) -> None:
    below = ["a.PNG", "b.jpg", "broken.jpg", "deeper/b.jpg"]
    assert find_images([photos]) == {photos / name: Path(name) for name in below}
    assert list(find_images([photos / "b.jpg", photos / "*.jpg"])) == [photos / "b.jpg", photos / "broken.jpg"]
    assert find_images([photos / "**" / "b*"]) == {photos / name: Path(name) for name in below[1:]}
    assert find_images([photos / "*" / ".." / "a.PNG"]) == {photos / "deeper" / ".." / "a.PNG": Path("a.PNG")}
    with pytest.raises(DataError, match=r"image not found: .*missing\.jpg"):
        find_images([photos / "missing.jpg"])
    with pytest.raises(DataError, match="no images in"):
        find_images([photos / "*.gif"])


def test_what_is_no_image_file_is_passed_over_or_named_and_never_waited_for(
    photos: Path, caplog: pytest.LogCaptureFixture
) -> None:
    os.mkfifo(photos / "pipe.jpg")
    for name, target in (("one.jpg", "two.jpg"), ("two.jpg", "one.jpg"), ("gone.jpg", "nowhere")):
        (photos / name).symlink_to(photos / target)
    for name in ("x.heic", "y.JXL"):
        (photos / name).write_bytes(b"")
    expected = ["a.PNG", "b.jpg", "broken.jpg"]
    assert [path.name for path in find_images([photos])] == [*expected, "b.jpg"]
    (record,) = caplog.records
    irregular = "4 x no regular file, or link to nothing, passed over (gone.jpg, one.jpg, pipe.jpg, ...)"
    other = "2 x image of a format that is not read, passed over (x.heic, y.JXL)"
    assert record.getMessage() == f"{photos}: {irregular}; {other}"
    assert [path.name for path in find_images([photos / "*.jpg"])] == expected[1:]
    with pytest.raises(DataError, match=r"pipe\.jpg is neither a file nor a folder"):
        find_images([photos / "pipe.jpg"])
    with pytest.raises(DataError, match=r"image not found: .*one\.jpg"):
        find_images([photos / "one.jpg"])


def test_overlays_and_results_are_written_and_a_broken_image_is_left_out(
    photos: Path, weights: Path, tmp_path: Path
) -> None:
    output = tmp_path / "out"
    config = tiny_config(tmp_path)
    found = run_prediction(config, [photos], weights=weights, output=output, score_threshold=0.0)
    assert [(p.image.name, p.overlay and p.overlay.relative_to(output).as_posix()) for p in found] == [
        ("a.PNG", "a.jpg"),
        ("b.jpg", "b.jpg"),
        ("broken.jpg", None),
        ("b.jpg", "deeper/b.jpg"),
    ]
    assert all(prediction.overlay.is_file() for prediction in found if prediction.overlay)
    assert "broken.jpg" in str(found[2].error)
    document = json.loads((output / "predictions.json").read_text())
    assert document["errors"] == [{"file_name": str(photos / "broken.jpg"), "error": found[2].error}]
    assert [category["name"] for category in document["categories"]] == NAMES
    assert [(image["width"], image["height"]) for image in document["images"]] == [(48, 64), (70, 50), (40, 40)]
    # Against the model itself, on the one image.
    model = build_model(config.model).eval()
    model.transforms = config.data.val_transforms
    model.load_state_dict(load_file(weights))
    expected = model.predict([photos / "b.jpg"])[0]
    entries = [entry for entry in document["annotations"] if entry["image_id"] == 2]
    assert len(entries) == len(expected["scores"]) > 0
    assert sum(found[1].found.values()) == len(entries)
    for index, entry in enumerate(entries):
        x, y, width, height = entry["bbox"]
        assert [x, y, x + width, y + height] == pytest.approx(expected["boxes"][index].tolist(), abs=1e-4)
        assert entry["score"] == pytest.approx(expected["scores"][index].item())
        assert entry["category_id"] == expected["labels"][index]
        assert np.array_equal(mask_utils.decode(entry["segmentation"]), expected["masks"][index].numpy())


def test_results_below_the_threshold_are_left_out(photos: Path, weights: Path, tmp_path: Path) -> None:
    found = run_prediction(
        tiny_config(tmp_path), [photos / "b.jpg"], weights=weights, output=tmp_path / "out", score_threshold=0.999
    )
    assert found[0].found == {}
    assert json.loads((tmp_path / "out" / "predictions.json").read_text())["annotations"] == []


def test_pictures_of_an_earlier_prediction_in_a_folder_are_not_predicted_on(
    photos: Path, weights: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    found = [
        run_prediction(tiny_config(tmp_path), [photos], weights=weights, output=photos / "shown") for _ in range(2)
    ]
    assert len(list((photos / "shown").rglob("*.jpg"))) == 3
    assert found[0] == found[1]
    assert "3 x image in the folder of the output, passed over (shown/a.jpg, " in caplog.text


def test_an_overlay_never_has_the_name_of_a_folder_of_others(weights: Path, tmp_path: Path) -> None:
    photos = tmp_path / "photos"
    for name in ("x.png", "x_2.bmp", "X.jpg/y.png", "y.png/z.png"):
        (photos / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (30, 20)).save(photos / name)
    run_prediction(tiny_config(tmp_path), [photos], weights=weights, output=tmp_path / "o")
    overlays = sorted(path.relative_to(tmp_path / "o").as_posix() for path in (tmp_path / "o").rglob("*.jpg"))
    assert [name for name in overlays if (tmp_path / "o" / name).is_file()] == [
        "X.jpg/y.jpg", "x_2.jpg", "x_3.jpg", "y.png/z.jpg",
    ]  # fmt: skip


def test_chosen_classes_alone_are_found(photos: Path, weights: Path, tmp_path: Path) -> None:
    config, output = tiny_config(tmp_path), tmp_path / "out"
    every, chosen = (
        run_prediction(config, [photos / "b.jpg"], weights=weights, output=output, score_threshold=0, classes=classes)
        for classes in (None, ["star", "circle"])
    )
    expected = {name: count for name, count in every[0].found.items() if name in ("star", "circle")}
    assert chosen[0].found == expected != every[0].found
    with pytest.raises(ConfigError, match=r"no class 'sta'; did you mean 'star'\?"):
        run_prediction(config, [photos / "b.jpg"], weights=weights, output=output, classes=["sta"])


def test_only_broken_images_are_an_error(photos: Path, weights: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"none of the 1 images can be read; the first: .*broken\.jpg"):
        run_prediction(tiny_config(tmp_path), [photos / "broken.jpg"], weights=weights, output=tmp_path / "out")


@pytest.mark.parametrize("size", [(6, 9), (100, 150), (480, 640), (1200, 900)])
def test_overlays_show_every_object_in_its_classes_colour_at_any_size(size: tuple[int, int]) -> None:
    height, width = size
    boxes = [[0.0, 0.0, width / 3, height / 2], [width / 2, height / 3, width * 1.0, height * 1.0]]
    image = torch.full((3, *size), 128, dtype=torch.uint8)
    drawn = draw_detections(image, result(boxes, size), NAMES)
    assert max(drawn.size) >= 900
    assert drawn.width % width == drawn.height % height == 0
    zoom = drawn.width // width
    pixels = np.asarray(drawn).astype(int)
    for label, (x1, y1, x2, y2) in enumerate(boxes):
        inside = pixels[int(y1) * zoom : int(y2) * zoom, int(x1) * zoom : int(x2) * zoom]
        assert (inside == class_colour(label)).all(axis=2).any()
        # The middle of the mask is tinted, not covered.
        middle = inside[inside.shape[0] // 2, inside.shape[1] // 2]
        assert np.abs(middle - (0.58 * 128 + 0.42 * np.array(class_colour(label)))).max() <= 1.5
    # Somewhere there are letters: black or white on the plates.
    assert ((pixels <= 20).all(axis=2) | (pixels >= 235).all(axis=2)).sum() > 50


def test_an_image_without_detections_is_shown_as_it_is() -> None:
    image = torch.randint(0, 255, (3, 1000, 1000), dtype=torch.uint8)
    drawn = np.asarray(draw_detections(image, result([], (1000, 1000)), NAMES))
    assert np.array_equal(drawn, image.permute(1, 2, 0).numpy())


def test_colours_of_classes_are_fixed_and_different() -> None:
    colours = [class_colour(label) for label in range(24)]
    assert colours == [class_colour(label) for label in range(24)]
    assert len(set(colours)) == 24


def test_weights_of_other_classes_are_not_evaluated(weights: Path, tmp_path: Path) -> None:
    config = tiny_config(tmp_path)
    state = build_model(config.model).state_dict()
    config.data.val.build(training=False)
    write_weights(tmp_path / "other.safetensors", state, class_names=["circle", "square", *NAMES[2:]])
    with pytest.raises(ConfigError, match="class 1 is 'square' there and 'rectangle' here"):
        run_evaluation(config, weights=tmp_path / "other.safetensors")
    write_weights(tmp_path / "fewer.safetensors", state, class_names=NAMES[:3])
    with pytest.raises(ConfigError, match="class 3 is None there and 'star' here"):
        run_evaluation(config, weights=tmp_path / "fewer.safetensors")
    with pytest.raises(CheckpointError, match="weights not found"):
        run_evaluation(config, weights=tmp_path / "none.safetensors")


def test_a_device_that_is_not_there_is_a_usage_error() -> None:
    assert choose_device("cpu") == torch.device("cpu")
    for name in ("cuda:99", "gpu", "meta"):
        with pytest.raises(ConfigError, match=f"{name}.*(use|--device)"):
            choose_device(name)
    with autocast(torch.device("cpu"), "auto"):
        assert (torch.ones(2, 2) @ torch.ones(2, 2)).dtype == torch.float32


def test_images_are_never_overwritten(photos: Path, weights: Path, tmp_path: Path) -> None:
    before = {path: path.read_bytes() for path in photos.iterdir() if path.is_file()}
    with pytest.raises(DataError, match=r"would overwrite the image .*a\.PNG|b\.jpg"):
        run_prediction(tiny_config(tmp_path), [photos], weights=weights, output=photos)
    assert {path: path.read_bytes() for path in photos.iterdir() if path.is_file()} == before
