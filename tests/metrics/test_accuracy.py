"""Accuracy: against timm's on the logits and counts by hand, over several processes, and as pictures."""

from __future__ import annotations

import os
import socket
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.multiprocessing
from PIL import Image
from timm.utils import accuracy
from torch import Tensor

from piip.errors import PiipError
from piip.metrics.accuracy import AccuracyMetric
from piip.metrics.confusion_chart import draw_confusion
from piip.metrics.iou_chart import draw_ious
from tests.no_waits import Waits

NAMES = ["ant", "bee", "cat", "dog"]
WORDS: Any = {"title": "images", "axis_labels": ("right class", "named first")}


def truth_of(image_id: str) -> dict[str, int]:
    return {"label": int(image_id.partition("/")[0])}


def results(logits: Tensor) -> list[dict[str, Tensor]]:
    scores, labels = logits.softmax(dim=1).topk(min(5, logits.shape[1]), dim=1)
    return [{"labels": a, "scores": b} for a, b in zip(labels, scores, strict=True)]


FIRST = {"0/a": 0, "0/b": 3, "1/c": 2, "1/d": 0, "1/e": 2, "2/f": 2}


def answer(first: int, score: float = 0.75) -> dict[str, Tensor]:
    return {"labels": torch.tensor([first, (first + 1) % 4]), "scores": torch.tensor([score, 1 - score])}


def by_hand() -> AccuracyMetric:
    """Two ants, one taken for a dog; three bees, twice taken for cats and once for an ant; a cat; no dog at all."""
    metric = AccuracyMetric(NAMES)
    for image_id, first in FIRST.items():
        metric.update([answer(first)], [truth_of(image_id)], [image_id])
    return metric


@pytest.mark.parametrize("classes", [3, 5, 6, 40])
def test_top1_and_top5_are_timms(classes: int) -> None:
    generator = torch.Generator().manual_seed(classes)
    labels = torch.randint(classes, (60,), generator=generator)
    logits = torch.randn(60, classes, generator=generator) + torch.nn.functional.one_hot(labels, classes)
    ids = [f"{label}/{number}.jpg" for number, label in enumerate(labels.tolist())]
    metric = AccuracyMetric([f"class {label}" for label in range(classes)])
    for part in (slice(0, 25), slice(25, 60)):
        metric.update(results(logits[part]), [truth_of(image_id) for image_id in ids[part]], ids[part])
    figures = metric.compute()
    expected = [value.item() / 100 for value in accuracy(logits, labels, topk=(1, 5))]
    assert figures["top1"] == pytest.approx(expected[0])
    assert list(figures) == (["top1", "top5"] if classes > 5 else ["top1"])
    if classes > 5:
        assert figures["top5"] == pytest.approx(expected[1])


def test_a_batch_is_read_from_the_device_once() -> None:
    answers = results(torch.eye(3))
    metric, waits = AccuracyMetric(NAMES[:3]), Waits()
    with waits:
        metric.update(answers, [{"label": 0}, {"label": 1}, {"label": 0}], ["a", "b", "c"])
    assert waits.counts == {"to host": 1}
    assert metric.compute() == {"top1": pytest.approx(2 / 3)}


def test_the_table_counts_images_and_names_the_commonest_mistake() -> None:
    assert by_hand().table() == [
        {"class": "ant", "images": 2, "top1": 0.5, "most_confused_with": "dog"},
        {"class": "bee", "images": 3, "top1": 0.0, "most_confused_with": "cat"},
        {"class": "cat", "images": 1, "top1": 1.0, "most_confused_with": None},
        {"class": "dog", "images": 0, "top1": None, "most_confused_with": None},
    ]
    assert by_hand().compute() == {"top1": pytest.approx(1 / 3)}
    assert by_hand().confusion().tolist() == [[1, 0, 0, 1], [1, 0, 2, 0], [0, 0, 1, 0], [0, 0, 0, 0]]


def test_an_image_counts_once_however_often_it_comes() -> None:
    metric = by_hand()
    metric.update([answer(0)] * 2, [{"label": 0}] * 2, ["0/a", "0/b"])
    assert metric.compute() == {"top1": 0.5}
    assert metric.table()[0] == {"class": "ant", "images": 2, "top1": 1.0, "most_confused_with": None}


def test_a_label_beyond_the_classes_is_an_error() -> None:
    with pytest.raises(PiipError, match="results with label 4, but the data have 4 classes"):
        AccuracyMetric(NAMES).update(
            [{"labels": torch.tensor([0, 4]), "scores": torch.ones(2) / 2}], [{"label": 0}], ["0/a"]
        )


def test_an_image_that_could_not_be_read_counts_as_answered_wrongly() -> None:
    metric = by_hand()
    metric.miss({"label": 3}, "3/g")
    assert metric.compute() == {"top1": pytest.approx(2 / 7)}
    assert metric.table()[3] == {"class": "dog", "images": 1, "top1": 0.0, "most_confused_with": None}
    assert metric.confusion().sum() == 6


def test_records_tell_the_right_label_the_five_first_and_the_probability_of_the_truth() -> None:
    names = [f"class {label}" for label in range(7)]
    metric = AccuracyMetric(names)
    logits = torch.randn(3, 7, generator=torch.Generator().manual_seed(0))
    probabilities = logits.softmax(dim=1)
    scores, labels = probabilities.sort(dim=1, descending=True)
    found = [{"labels": a, "scores": b} for a, b in zip(labels, scores, strict=True)]
    last = int(labels[2, 6])
    metric.update(found, [{"label": 4}, {"label": 0}, {"label": last}], ["a", "b", "c"])
    metric.miss({"label": 1}, "d")
    records = metric.records()
    assert list(records) == ["a", "b", "c", "d"]
    for number, (name, label) in enumerate(zip("abc", (4, 0, last), strict=True)):
        assert records[name]["label"] == names[label]
        assert list(records[name]["top5"]) == [names[label] for label in labels[number, :5].tolist()]
        assert list(records[name]["top5"].values()) == pytest.approx(scores[number, :5].tolist())
        assert records[name]["probability"] == pytest.approx(float(probabilities[number, label]))
        assert records[name]["badness"] == pytest.approx(1 - float(probabilities[number, label]))
    assert records["d"] == {"badness": 1.0, "label": "class 1", "top5": {}, "probability": 0.0}


def test_the_calibration_error_is_that_of_the_class_named_first() -> None:
    metric = by_hand()
    # Two of six are right, and all say 0.75.
    assert metric.details() == {"calibration_error": pytest.approx(0.75 - 2 / 6)}


def _share(rank: int, folder: Path, port: int) -> None:
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    torch.distributed.init_process_group("gloo", rank=rank, world_size=2)
    whole = by_hand()
    metric = AccuracyMetric(NAMES)
    # The second process sees one image, which the first has seen too.
    for image_id in FIRST if rank == 0 else ["1/c"]:
        metric.update([answer(FIRST[image_id])], [truth_of(image_id)], [image_id])
    metric.synchronize()
    assert metric.table() == whole.table()
    assert metric.compute() == whole.compute()
    (folder / str(rank)).touch()
    torch.distributed.destroy_process_group()


@pytest.mark.slow
def test_processes_merge_what_they_saw(tmp_path: Path) -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    torch.multiprocessing.spawn(_share, (tmp_path, port), nprocs=2)
    assert {path.name for path in tmp_path.iterdir()} == {"0", "1"}


def colours(path: Path) -> set[tuple[int, ...]]:
    with Image.open(path) as picture:
        pixels = np.asarray(picture.convert("RGB")).reshape(-1, 3)
    return set(map(tuple, np.unique(pixels, axis=0).tolist()))


@pytest.mark.parametrize("classes", [2, 11, 35, 51, 400])
def test_a_picture_shows_right_answers_blue_and_mistakes_orange(tmp_path: Path, classes: int) -> None:
    """A matrix of few classes has both; of many, the commonest mistakes are bars."""
    names = [f"a rather long name of class {label}" for label in range(classes)]
    right = np.eye(classes, dtype=np.int64) * 10
    clean, mixed = tmp_path / "clean.png", tmp_path / "mixed.png"
    draw_confusion(right, names, clean, **WORDS)
    wrong = right.copy()
    wrong[0] = 0
    wrong[0, 1] = 10
    assert draw_confusion(wrong, names, mixed, **WORDS) == mixed
    blue, orange = (0x33, 0x66, 0xCC), (0xE0, 0x7B, 0x39)
    assert (blue in colours(clean)) == (classes <= 50)
    assert orange not in colours(clean)
    assert orange in colours(mixed)


@pytest.mark.parametrize("classes", [3, 60])
def test_names_that_look_like_formulas_or_commands_are_drawn_as_they_are(tmp_path: Path, classes: int) -> None:
    names = [f"${number}^{{$ \x1b\n\u202e" for number in range(classes)]
    draw_confusion(np.arange(classes**2).reshape(classes, classes), names, tmp_path / "confusion.png", **WORDS)
    rows = [{"class": name, "iou": 0.5, "acc": None, "pixels": 0.1} for name in names]
    draw_ious(rows, {"miou": 0.5, "aacc": 0.5, "macc": 0.5}, tmp_path / "iou.png")


def test_draw_writes_into_the_folder_and_names_the_file(tmp_path: Path) -> None:
    drawn = by_hand().draw(tmp_path)
    assert drawn == [tmp_path / "confusion.png", tmp_path / "calibration.png"]
    for path in drawn:
        with Image.open(path) as picture:
            assert min(picture.size) > 300
