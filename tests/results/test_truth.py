"""What the data set says of an image is drawn as a perfect result is."""

from __future__ import annotations

import numpy as np
import torch
from pycocotools import mask as mask_utils

from piip.conventions import NO_LABEL
from piip.results.base import ResultWriter
from piip.results.classes import ClassificationWriter
from piip.results.detections import DetectionWriter
from piip.results.drawing import draw_detections
from piip.results.label_maps import LabelMapWriter

NAMES = ["cat", "dog", "cow"]
IMAGE = torch.randint(0, 256, (3, 48, 64), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
BOXES = torch.tensor([[4.0, 6.0, 30.0, 40.0], [20.0, 2.0, 60.0, 30.0]])
LABELS = torch.tensor([1, 2])
MASKS = torch.zeros(2, 48, 64, dtype=torch.bool)
MASKS[0, 8:30, 5:25] = True


def pixels(picture: object) -> np.ndarray:
    return np.asarray(picture)


def test_objects_of_files_and_of_targets_are_drawn_alike_without_scores() -> None:
    writer = DetectionWriter(NAMES, score_threshold=0.5)
    rles = mask_utils.encode(np.asfortranarray(MASKS.permute(1, 2, 0).numpy().astype(np.uint8)))
    xywh = np.concatenate([BOXES[:, :2], BOXES[:, 2:] - BOXES[:, :2]], axis=1).astype(np.float64)
    expected = pixels(draw_detections(IMAGE, {"boxes": BOXES, "labels": LABELS, "masks": MASKS}, NAMES))
    # An object without a mask, among others that have one, shows its box.
    for truth in (
        {"xywh": xywh, "labels": LABELS.numpy(), "rles": [rles[0], None]},
        {"boxes": BOXES.numpy(), "labels": LABELS.numpy(), "masks": MASKS.numpy().astype(np.uint8)},
    ):
        assert np.array_equal(pixels(writer.draw_truth(IMAGE, truth)), expected)
    nothing = {"xywh": np.zeros((0, 4)), "labels": np.zeros(0, dtype=np.int64), "rles": []}
    assert pixels(writer.draw_truth(IMAGE, nothing)).shape == expected.shape


def test_detections_below_the_threshold_are_not_drawn() -> None:
    writer = DetectionWriter(NAMES, score_threshold=0.5)
    found = {"boxes": BOXES, "labels": LABELS, "scores": torch.tensor([0.9, 0.4])}
    first = {name: value[:1] for name, value in found.items()}
    assert np.array_equal(pixels(writer.draw(IMAGE, found)), pixels(writer.draw(IMAGE, first)))


def test_true_label_maps_leave_pixels_without_a_label_as_they_are() -> None:
    writer = LabelMapWriter(NAMES, score_threshold=0.5)
    labels = torch.zeros(48, 64, dtype=torch.uint8)
    labels[:, 32:] = 2
    whole = pixels(writer.draw_truth(IMAGE, {"label_map": labels.numpy()}))
    assert np.array_equal(whole, pixels(writer.draw(IMAGE, {"labels": labels})))
    labels[:, :32] = NO_LABEL
    zoom = whole.shape[1] // 64
    shown = pixels(writer.draw_truth(IMAGE, {"label_map": labels.numpy()}))[: 48 * zoom : zoom, : 31 * zoom : zoom]
    assert np.array_equal(shown, IMAGE.permute(1, 2, 0)[:, :31].numpy())
    writer.draw_truth(IMAGE, {"label_map": np.full((48, 64), NO_LABEL, dtype=np.uint8)})


def test_the_right_class_is_drawn_as_a_sure_one() -> None:
    writer = ClassificationWriter(NAMES, score_threshold=0.5)
    sure = {"labels": torch.tensor([2]), "scores": torch.tensor([1.0])}
    assert np.array_equal(pixels(writer.draw_truth(IMAGE, {"label": np.array(2)})), pixels(writer.draw(IMAGE, sure)))


def test_a_writer_that_draws_nothing_shows_the_image() -> None:
    class Plain(ResultWriter):
        def add(self, *_: object) -> dict[str, float]:
            return {}

        def describe(self, found: dict[str, float]) -> str:
            return ""

    shown = Plain(NAMES, score_threshold=0.5).draw_truth(IMAGE, {})
    assert np.array_equal(pixels(shown), IMAGE.permute(1, 2, 0).numpy())
