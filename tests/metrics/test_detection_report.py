"""Records of images, confusions, curves and pictures of detections: against counts by hand and pycocotools."""

from __future__ import annotations

import contextlib
import io
import itertools
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from piip.metrics import detection_charts
from piip.metrics.average_precision import CocoMetric
from piip.metrics.config import CocoMetricConfig
from tests.metrics.test_coco_metric import CATEGORY_IDS, crowded_scene, guesses, metric_of, update, write_set

NAMES = ["ant", "bee", "cat"]
A, B, C = [0.0, 0.0, 10.0, 10.0], [50.0, 0.0, 60.0, 10.0], [0.0, 50.0, 10.0, 60.0]
A_LOW, NOWHERE = [0.0, 0.0, 10.0, 8.0], [80.0, 80.0, 90.0, 90.0]


def truth(*objects: tuple[list[float], int]) -> dict[str, Any]:
    boxes = np.array([box for box, _ in objects], dtype=np.float32).reshape(-1, 4)
    return {"boxes": boxes, "labels": np.array([label for _, label in objects], dtype=np.int64)}


def result(*detections: tuple[list[float], int, float]) -> dict[str, torch.Tensor]:
    return {
        "boxes": torch.tensor([box for box, _, _ in detections]).view(-1, 4),
        "labels": torch.tensor([label for _, label, _ in detections], dtype=torch.int64),
        "scores": torch.tensor([score for _, _, score in detections]),
    }


def by_hand() -> CocoMetric:
    """Three images. F1 is best from 0.6 on: 3 hits of 5 detections and 5 objects; 0.3 adds a false alarm."""
    metric = CocoMetric(CocoMetricConfig(), NAMES)
    truths = [truth((A, 0), (B, 1)), truth((A, 0), (C, 2), (B, 2)), truth()]
    results = [
        result((A_LOW, 0, 0.9), (B, 2, 0.8)),  # a hit, and a bee taken for a cat
        result((A, 0, 0.8), (C, 2, 0.6), (NOWHERE, 1, 0.3)),  # two hits and a miss
        result((NOWHERE, 1, 0.7)),  # a false alarm
    ]
    metric.update(results, truths, [1, 2, 3])
    metric.miss(truth((A, 1)), 4)
    return metric


def test_records_count_what_is_right_and_wrong_in_each_image() -> None:
    records = by_hand().records()
    threshold = 0.45  # halfway between 0.6 and 0.3
    expected = [
        {"badness": 2.2, "hits": 1, "misses": 1, "false_alarms": 1, "mean_iou": 0.8, "worst_class": "bee"},
        {"badness": 1.0, "hits": 2, "misses": 1, "false_alarms": 0, "mean_iou": 1.0, "worst_class": "cat"},
        {"badness": 1.0, "hits": 0, "misses": 0, "false_alarms": 1, "mean_iou": None, "worst_class": "bee"},
        {"badness": 1.0, "hits": 0, "misses": 1, "false_alarms": 0, "mean_iou": None, "worst_class": "bee"},
    ]
    assert list(records) == [1, 2, 3, 4]
    for record, wanted in zip(records.values(), expected, strict=True):
        assert record.pop("score_threshold") == pytest.approx(threshold)
        assert {
            key: pytest.approx(value) if isinstance(value, float) else value for key, value in wanted.items()
        } == record
    assert by_hand().details()["score_threshold"] == pytest.approx(threshold)


def test_no_other_threshold_has_a_better_f1(tmp_path: Path) -> None:
    annotations = crowded_scene()
    dataset = write_set(tmp_path, annotations)
    metric = metric_of(dataset)
    update(metric, dataset, guesses(annotations))

    def f1(threshold: float) -> float:
        images = [image.above(threshold) for image in metric.report._matches["box"].values()]
        hits = sum(int((image.found >= 0).sum()) for image in images)
        return 2 * hits / sum(len(image.scores) + len(image.objects) for image in images)

    best = f1(metric.report.threshold)
    assert best == pytest.approx(max(f1(tenth / 10 - 0.05) for tenth in range(12)))
    records = metric.records().values()
    hits, false_alarms, misses = (sum(r[name] for r in records) for name in ("hits", "false_alarms", "misses"))
    assert 2 * hits / (2 * hits + false_alarms + misses) == pytest.approx(best)


def test_confusions_count_objects_by_what_they_are_found_as_and_the_background() -> None:
    assert by_hand().report.confusion().tolist() == [
        [2, 0, 0, 0],
        [0, 0, 1, 1],
        [0, 0, 1, 1],
        [0, 1, 0, 0],
    ]


def test_records_and_confusions_tell_the_same(tmp_path: Path) -> None:
    annotations = crowded_scene(4)
    dataset = write_set(tmp_path, annotations)
    metric = metric_of(dataset)
    update(metric, dataset, guesses(annotations))
    counts, records = metric.report.confusion(), metric.records().values()
    assert counts.trace() == sum(record["hits"] for record in records)
    assert counts[:-1].sum() == sum(not entry["iscrowd"] for entry in annotations)
    assert counts[:, :-1].sum() == sum(record["hits"] + record["false_alarms"] for record in records)


def test_curves_are_pycocotools_precisions(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    annotations = crowded_scene()
    results = guesses(annotations)
    dataset = write_set(tmp_path, annotations)
    metric = metric_of(dataset)
    update(metric, dataset, results)
    drawn: dict[str, np.ndarray] = {}
    draw = detection_charts.draw_precision_recall
    monkeypatch.setattr(
        detection_charts, "draw_precision_recall", lambda p, *rest: (drawn.update(p), draw(p, *rest))[1]
    )
    metric.draw(tmp_path)
    with contextlib.redirect_stdout(io.StringIO()):
        index = COCO(str(tmp_path / "instances.json"))
        answers = [
            {"image_id": image_id, "category_id": CATEGORY_IDS[label], "score": score, "bbox": [x, y, x2 - x, y2 - y]}
            for image_id, found in results.items()
            for (x, y, x2, y2), score, label in zip(*(found[key].tolist() for key in ("boxes", "scores", "labels")))
        ]
        evaluation = COCOeval(index, index.loadRes(answers), "bbox")
        evaluation.evaluate()
        evaluation.accumulate()
    assert list(drawn) == ["box", "mask"]
    np.testing.assert_allclose(drawn["box"], evaluation.eval["precision"][0, :, :, 0, -1], atol=1e-12)


def test_draw_writes_whole_pictures(tmp_path: Path) -> None:
    names = ["precision_recall.png", "errors.png", "confusion.png", "calibration.png"]
    assert by_hand().draw(tmp_path) == [tmp_path / name for name in names]
    for name in names:
        with Image.open(tmp_path / name) as picture:
            picture.load()
            assert min(picture.size) > 300


@pytest.mark.parametrize("classes", [1, 12, 40, 90])
def test_pictures_of_any_number_of_classes_with_any_names(tmp_path: Path, classes: int) -> None:
    names = [f"${label}_{{ \x1b\n and a name that is rather long" for label in range(classes)]
    metric = CocoMetric(CocoMetricConfig(), names)
    for label, shift in itertools.product(range(0, classes, 2), range(2)):
        metric.update([result((A, (label + shift) % classes, 0.5))], [truth((A, label))], [2 * label + shift])
    metric.draw(tmp_path)


def test_without_any_detection_everything_is_missed(tmp_path: Path) -> None:
    metric = CocoMetric(CocoMetricConfig(), NAMES)
    metric.miss(truth((A, 1), (B, 2)), 1)
    metric.draw(tmp_path)
    details = metric.details()
    assert (details["score_threshold"], details["calibration_error"]) == (1.0, 0.0)
    assert details["box_ap50_lost"]["missed"] == 1.0
    assert metric.records()[1]["misses"] == 2


def test_the_threshold_never_comes_between_equal_scores() -> None:
    metric = CocoMetric(CocoMetricConfig(), NAMES)
    nowhere = [(NOWHERE, 1, 0.5)] * 4
    metric.update([result((A, 0, 0.9), (B, 0, 0.5), *nowhere)], [truth((A, 0), (B, 0))], [1])
    # 2 / 3 from 0.9 on, 1 / 2 from 0.5 on, although the first two detections alone would have 1.
    assert metric.report.threshold == pytest.approx(0.7)
