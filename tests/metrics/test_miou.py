"""mIoU: against mmsegmentation's histograms, against figures by hand, and over several processes."""

from __future__ import annotations

import os
import socket
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.multiprocessing
from PIL import Image

from piip.errors import PiipError
from piip.metrics.miou import MIoUMetric
from tests.no_waits import Waits

NAMES = ["sky", "tree", "road", "sea"]


def true(labels: list[list[int]] | np.ndarray) -> dict[str, np.ndarray]:
    return {"label_map": np.asarray(labels, dtype=np.uint8)}


def answer(labels: list[list[int]] | np.ndarray) -> dict[str, torch.Tensor]:
    return {"labels": torch.from_numpy(np.asarray(labels, dtype=np.uint8))}


def test_figures_by_hand() -> None:
    metric = MIoUMetric(NAMES)
    metric.update([answer([[0, 0, 1, 1], [1, 2, 0, 3]])], [true([[0, 0, 0, 1], [1, 1, 255, 255]])], [0])
    # sky: 2 of 3 found, nothing else; tree: 2 of 3, one more elsewhere; road: never right; sea: not there.
    assert metric.compute() == pytest.approx(
        {"miou": (2 / 3 + 2 / 4 + 0) / 3, "aacc": 4 / 6, "macc": (2 / 3 + 2 / 3) / 2}
    )
    assert metric.table() == [
        {"class": "sky", "iou": pytest.approx(2 / 3), "acc": pytest.approx(2 / 3), "pixels": 0.5},
        {"class": "tree", "iou": 0.5, "acc": pytest.approx(2 / 3), "pixels": 0.5},
        {"class": "road", "iou": 0.0, "acc": None, "pixels": 0.0},
        {"class": "sea", "iou": None, "acc": None, "pixels": 0.0},
    ]
    assert list(metric.compute()) == ["miou", "aacc", "macc"]


def test_a_batch_is_read_from_the_device_once() -> None:
    metric, waits = MIoUMetric(NAMES), Waits()
    answers = [answer([[0, 0]]), answer([[2], [1]])]
    with waits:
        metric.update(answers, [true([[0, 1]]), true([[2], [2]])], [0, 1])
    assert waits.counts == {"to host": 1}
    assert metric.compute()["aacc"] == 0.5


def scenes(images: int = 6, classes: int = 20) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """True and found labels of images of different sizes; a fifth of the pixels has no label, two classes are rare."""
    rng = np.random.default_rng(4)
    truth, found = [], []
    for number in range(images):
        size = (13 + number, 29)
        labels = rng.integers(0, classes - 2, size)
        answers = np.where(rng.random(size) < 0.6, labels, rng.integers(0, classes - 1, size))
        truth.append(np.where(rng.random(size) < 0.2, 255, labels))
        found.append(answers)
    return truth, found


def official(truth: list[np.ndarray], found: list[np.ndarray], classes: int) -> dict[str, float]:
    """mmsegmentation's intersect_and_union and total_area_to_metrics: histograms of each image, then the ratios."""
    areas = torch.zeros(3, classes, dtype=torch.float64)
    for labels, answers in zip(truth, found, strict=True):
        known = labels != 255
        a, b = torch.from_numpy(labels[known]), torch.from_numpy(answers[known])
        for row, values in enumerate((b[a == b], b, a)):
            areas[row] += torch.histc(values.float(), bins=classes, min=0, max=classes - 1)
    right, predicted, true = areas
    ious, accuracies = right / (predicted + true - right), right / true
    return {
        "miou": ious.nanmean().item(),
        "aacc": (right.sum() / true.sum()).item(),
        "macc": accuracies.nanmean().item(),
    }


def test_figures_are_those_of_mmsegmentation() -> None:
    truth, found = scenes()
    metric = MIoUMetric([str(label) for label in range(20)])
    for first in (0, 4):
        numbers = list(range(len(truth)))[first : first + 4]
        metric.update([answer(found[n]) for n in numbers], [true(truth[n]) for n in numbers], numbers)
    expected = official(truth, found, 20)
    assert metric.compute() == pytest.approx(expected, abs=1e-12)
    assert metric.table()[19] == {"class": "19", "iou": None, "acc": None, "pixels": 0.0}
    assert metric.table()[18]["iou"] == 0
    assert sum(row["pixels"] for row in metric.table()) == pytest.approx(1)
    assert metric.confusion().sum() == sum((labels != 255).sum() for labels in truth)


def test_an_image_that_comes_again_counts_once() -> None:
    metric = MIoUMetric(NAMES)
    metric.update([answer([[0, 0]]), answer([[0, 0]])], [true([[0, 1]]), true([[0, 0]])], [0, 1])
    metric.update([answer([[0, 0]])], [true([[0, 0]])], [1])
    assert metric.confusion().sum() == 4


def test_the_pixels_of_an_image_that_could_not_be_read_count_as_not_found() -> None:
    metric = MIoUMetric(NAMES)
    metric.update([answer([[0, 0, 1, 1]])], [true([[0, 0, 1, 255]])], ["whole"])
    metric.miss(true([[0, 2, 255]]), "damaged")
    # sky: 2 of 3 found, nothing else; tree: 1 of 1; road: 0 of 1.
    assert metric.compute() == pytest.approx({"miou": (2 / 3 + 1 + 0) / 3, "aacc": 3 / 5, "macc": (2 / 3 + 1 + 0) / 3})
    assert [row["pixels"] for row in metric.table()] == pytest.approx([0.6, 0.2, 0.2, 0])
    assert metric.confusion().sum() == 3


def test_results_that_do_not_fit_the_data_are_named() -> None:
    metric, truth = MIoUMetric(NAMES), [true([[0, 1, 2]])]
    with pytest.raises(PiipError, match="image 0: result and label map differ in size, 2 x 3 and 3 x 1 pixels"):
        metric.update([answer([[0, 1], [0, 1], [0, 1]])], truth, [0])
    with pytest.raises(PiipError, match="image 0: results with label 4, but the data have 4 classes"):
        metric.update([answer([[0, 4, 0]])], truth, [0])


def test_without_a_labelled_pixel_there_are_no_figures() -> None:
    metric = MIoUMetric(NAMES)
    metric.update([answer([[0, 9]])], [true([[255, 255]])], [0])
    with pytest.raises(PiipError, match="none of the 1 evaluated images has a pixel with a label"):
        metric.compute()
    assert all(row["iou"] is row["acc"] is None for row in metric.table())


@pytest.mark.parametrize("classes", [3, 70])
def test_a_chart_is_drawn_that_grows_with_the_classes(tmp_path: Path, classes: int) -> None:
    names = [f"class {label}" for label in range(classes)]
    labels = np.arange(classes).reshape(1, -1).repeat(2, 0)
    metric = MIoUMetric(names)
    metric.update([answer(labels)], [true(labels)], [0])
    (file,) = metric.draw(tmp_path)
    assert file == tmp_path / "iou.png"
    assert [path.name for path in tmp_path.iterdir()] == ["iou.png"]
    with Image.open(file) as picture:
        width, height = picture.size
        columns = -(-classes // 50)
        assert width > 600 * columns
        assert height > 25 * classes / columns
        assert len(picture.convert("RGB").getcolors(1 << 20)) > 50


def score_share(rank: int, world: int, port: int, folder: str) -> None:
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    torch.distributed.init_process_group("gloo", rank=rank, world_size=world)
    truth, found = scenes()
    metric = MIoUMetric([str(label) for label in range(20)])
    for number in ([0, 2, 4], [1, 2, 3, 5])[rank]:
        metric.update([answer(found[number])], [true(truth[number])], [number])
    metric.synchronize()
    torch.save((metric.compute(), metric.confusion()), Path(folder) / f"{rank}.pt")
    torch.distributed.destroy_process_group()


@pytest.mark.slow
def test_two_processes_that_share_an_image_score_what_one_does(tmp_path: Path) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    torch.multiprocessing.spawn(score_share, args=(2, port, str(tmp_path)), nprocs=2)
    truth, found = scenes()
    alone = MIoUMetric([str(label) for label in range(20)])
    alone.update([answer(labels) for labels in found], [true(labels) for labels in truth], range(len(found)))
    for rank in range(2):
        figures, matrix = torch.load(tmp_path / f"{rank}.pt", weights_only=False)
        assert figures == alone.compute()
        assert np.array_equal(matrix, alone.confusion())


def test_records_are_the_figures_of_each_image_alone() -> None:
    truth, found = scenes()
    names = [str(label) for label in range(20)]
    metric = MIoUMetric(names)
    metric.update([answer(labels) for labels in found], [true(labels) for labels in truth], list(range(len(truth))))
    metric.miss(true([[2, 2], [3, 255]]), 100)
    metric.update([answer([[0]])], [true([[255]])], [101])
    records = metric.records()
    for number, (labels, answers) in enumerate(zip(truth, found, strict=True)):
        expected = official([labels], [answers], 20)
        assert records[number]["miou"] == pytest.approx(expected["miou"])
        assert records[number]["pixel_accuracy"] == pytest.approx(expected["aacc"])
        assert records[number]["badness"] == pytest.approx(1 - expected["miou"])
        # Class 18 is found, but nowhere in the truth.
        assert records[number]["worst_class"] == "18"
    assert records[100] == {"badness": 1.0, "miou": 0.0, "pixel_accuracy": 0.0, "worst_class": "2"}
    assert records[101] == {"badness": 0.0, "miou": None, "pixel_accuracy": None, "worst_class": None}
