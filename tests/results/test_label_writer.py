"""Predicted label maps: stored exactly, summed up in the document, and drawn with a legend."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from piip.files import to_json
from piip.results.drawing import class_colour
from piip.results.label_maps import LabelMapWriter
from piip.results.label_overlay import draw_label_map

NAMES = ["sky", "tree", "road", "sea"]


def found(labels: Tensor) -> dict[str, Tensor]:
    """A result with scores that say which row a pixel is in."""
    scores = torch.linspace(0.2, 1, labels.shape[0])[:, None].expand(labels.shape)
    return {"labels": labels, "scores": scores}


def halves(height: int = 20, width: int = 30) -> Tensor:
    """tree above, of a quarter of the rows, and road below."""
    labels = torch.full((height, width), 2, dtype=torch.uint8)
    labels[: height // 4] = 1
    return labels


def grey(height: int, width: int) -> Tensor:
    return torch.full((3, height, width), 128, dtype=torch.uint8)


def test_labels_are_stored_as_they_are_in_the_classes_colours(tmp_path: Path) -> None:
    writer = LabelMapWriter(NAMES, score_threshold=0.99)
    labels = torch.randint(0, 4, (37, 53), dtype=torch.uint8)
    writer.add(Path("photo.jpg"), grey(37, 53), found(labels), tmp_path / "photo_2.jpg")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["photo_2.jpg", "photo_2.png"]
    with Image.open(tmp_path / "photo_2.png") as image:
        assert image.mode == "P"
        assert np.array_equal(np.asarray(image), labels)
        shown = np.asarray(image.convert("RGB"))
    for label in range(4):
        assert (shown[labels.numpy() == label] == class_colour(label)).all()


def test_more_classes_than_a_palette_holds_are_stored_in_16_bits(tmp_path: Path) -> None:
    names = [f"class {label}" for label in range(400)]
    writer = LabelMapWriter(names, score_threshold=0)
    labels = torch.arange(400).reshape(20, 20)
    writer.add(Path("photo.jpg"), grey(20, 20), found(labels), tmp_path / "photo.jpg")
    with Image.open(tmp_path / "photo.png") as image:
        assert np.array_equal(np.asarray(image), labels)


def test_the_document_and_the_words_say_what_covers_how_much(tmp_path: Path) -> None:
    writer = LabelMapWriter(NAMES, score_threshold=0.3)
    shares = writer.add(Path("in/photo.jpg"), grey(20, 30), found(halves()), tmp_path / "photo.jpg")
    assert shares == {"road": 0.75, "tree": 0.25}
    assert writer.describe(shares) == "75 % road, 25 % tree"
    document = json.loads(to_json(writer.document))
    assert document["classes"] == [{"id": label, "name": name} for label, name in enumerate(NAMES)]
    (image,) = document["images"]
    rows = torch.linspace(0.2, 1, 20)
    assert image == {
        "file_name": "in/photo.jpg",
        "width": 30,
        "height": 20,
        "label_map": "photo.png",
        "classes": [
            {"id": 2, "name": "road", "share": 0.75, "score": pytest.approx(rows[5:].mean().item())},
            {"id": 1, "name": "tree", "share": 0.25, "score": pytest.approx(rows[:5].mean().item())},
        ],
    }


def test_small_shares_and_many_classes_are_cut_short_in_words() -> None:
    writer = LabelMapWriter(NAMES, score_threshold=0)
    assert writer.describe({"sky": 0.996, "sea": 0.004}) == "100 % sky, <1 % sea"
    assert writer.describe({str(number): 0.125 for number in range(8)}).endswith("12 % 5, ...")


@pytest.mark.parametrize("size", [(1, 1), (3, 40), (64, 64), (700, 1400)])
def test_the_overlay_shows_every_class_in_the_picture_and_in_a_legend_below(size: tuple[int, int]) -> None:
    height, width = size
    labels = torch.zeros(size, dtype=torch.int64)
    labels[:, width // 2 :] = 3
    shares = {0: 0.5, 3: 0.5} if width > 1 else {3: 1.0}
    sheet = draw_label_map(grey(height, width), labels, shares, NAMES)
    zoom = max(1, -(-960 // max(size)))
    assert sheet.width == width * zoom
    assert height * zoom + 20 < sheet.height < height * zoom + 150
    pixels = np.asarray(sheet).astype(int)
    legend = pixels[height * zoom :]
    for label in shares:
        tinted = (128 + 0.55 * (np.array(class_colour(label)) - 128)).round()
        inside = pixels[: height * zoom, : width * zoom].repeat(1, 0)[
            np.kron(labels == label, np.ones((zoom, zoom))) > 0
        ]
        assert (np.abs(inside - tinted) <= 1).all(axis=1).mean() > 0.5
        assert (legend == class_colour(label)).all(axis=2).sum() > 100
    for label in {0, 1, 2, 3} - shares.keys():
        assert not (legend == class_colour(label)).all(axis=2).any()
    assert ((legend == 255).all(axis=2)).mean() > 0.3


def test_the_legend_has_room_for_150_long_names() -> None:
    names = [f"class with a long name {label}" for label in range(150)]
    labels = torch.arange(150).repeat_interleave(4).reshape(1, -1).repeat(400, 1)
    sheet = draw_label_map(grey(400, 600), labels, dict.fromkeys(range(150), 1 / 150), names)
    legend = np.asarray(sheet)[800:]
    shown = {colour for _, colour in Image.fromarray(legend).getcolors(1 << 20)}
    assert {class_colour(label) for label in range(150)} <= shown
    # The last row ends above the lower edge of the sheet.
    assert (legend[-3:] == 255).all()
