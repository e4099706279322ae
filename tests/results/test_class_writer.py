"""The likeliest classes of an image: in the document, in words, and as bars whose length is the score."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from piip.results.classes import ClassificationWriter, draw_classes
from piip.results.drawing import class_colour

NAMES = ["cat", "dog", "a name so long that no picture of whatever width could possibly show all of it", "cow"]
RESULT = {"labels": torch.tensor([1, 0, 3]), "scores": torch.tensor([0.91, 0.0875, 0.0025])}


def photo(height: int, width: int) -> Tensor:
    return torch.full((3, height, width), 128, dtype=torch.uint8)


def test_the_document_has_labels_names_and_scores_of_every_image(tmp_path: Path) -> None:
    writer = ClassificationWriter(NAMES, score_threshold=0.5)
    found = writer.add(Path("some/b.png"), photo(30, 40), RESULT, tmp_path / "b.jpg")
    writer.add(Path("c.png"), photo(20, 10), RESULT, tmp_path / "c.d.jpg")
    assert {path.name for path in tmp_path.iterdir()} == {"b.jpg", "c.d.jpg"}
    assert list(found) == ["dog", "cat", "cow"]
    document = json.loads(json.dumps(writer.document))
    assert document["class_names"] == NAMES
    first, second = document["images"]
    assert (first["file_name"], first["width"], first["height"]) == ("some/b.png", 40, 30)
    assert (second["file_name"], second["width"], second["height"]) == ("c.png", 10, 20)
    assert first["labels"] == [1, 0, 3]
    assert first["names"] == ["dog", "cat", "cow"]
    assert first["scores"] == pytest.approx([0.91, 0.0875, 0.0025])


def test_words_begin_with_the_likeliest_and_leave_out_what_is_next_to_nothing(tmp_path: Path) -> None:
    writer = ClassificationWriter(NAMES, score_threshold=0.3)
    found = writer.add(Path("b.png"), photo(30, 40), RESULT, tmp_path / "b.jpg")
    assert writer.describe(found) == "0.91 dog, 0.09 cat"


def test_of_more_than_five_classes_the_five_likeliest_are_shown(tmp_path: Path) -> None:
    writer = ClassificationWriter([f"class {label}" for label in range(8)], score_threshold=0.0)
    ranking = {"labels": torch.arange(8).flip(0), "scores": torch.linspace(0.3, 0.0, 8)}
    found = writer.add(Path("b.png"), photo(30, 40), ranking, tmp_path / "b.jpg")
    assert list(found) == ["class 7", "class 6", "class 5", "class 4", "class 3"]
    assert writer.document["images"][0]["labels"] == [7, 6, 5, 4, 3]


@pytest.mark.parametrize("size", [(30, 40), (400, 20), (20, 400), (700, 900)])
def test_bars_under_the_picture_are_as_long_as_the_scores(size: tuple[int, int]) -> None:
    scores = [0.8, 0.2, 0.0]
    picture = draw_classes(photo(*size), [1, 0, 3], ["dog", "cat", "cow"], scores)
    pixels = np.asarray(picture)
    lengths = [(pixels == class_colour(label)).all(axis=2).sum(axis=1).max() for label in (1, 0, 3)]
    assert lengths[0] == pytest.approx(4 * lengths[1], abs=4)
    assert lengths[0] > picture.width * 0.2
    assert lengths[2] == 0
    # The image itself is whole, and grey.
    zoom = max(1, -(-640 // max(size)))
    grey = (pixels == 128).all(axis=2)
    assert grey.any(axis=1).sum() >= size[0] * zoom
    assert grey.any(axis=0).sum() >= size[1] * zoom


def test_a_long_name_is_cut_short_of_the_bars() -> None:
    long, short = (np.asarray(draw_classes(photo(100, 640), [0], [name], [1.0])) for name in (NAMES[2], NAMES[2][:10]))
    starts = [np.nonzero((pixels == class_colour(0)).all(axis=2).any(axis=0))[0][0] for pixels in (long, short)]
    assert starts[1] < starts[0] < 640 * 0.55


def test_two_classes_of_one_name_both_get_a_bar() -> None:
    picture = draw_classes(photo(50, 50), [0, 1], ["crane", "crane"], [0.6, 0.4])
    pixels = np.asarray(picture)
    assert Image.fromarray(pixels).size == picture.size
    assert all((pixels == class_colour(label)).all(axis=2).any() for label in (0, 1))
