"""Matching, AP50 and the AP50 that kinds of errors cost: against pycocotools, and on detections made by hand."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from piip.metrics.errors import KINDS, Costs, error_costs
from piip.metrics.matching import Matches, match
from tests.metrics.test_coco_metric import crowded_scene, guesses, metric_of, raw_pycocotools, update, write_set

Thing = tuple[int, list[float]]
LEFT, RIGHT = [0.0, 0.0, 10.0, 10.0], [100.0, 0.0, 10.0, 10.0]
# IoU with LEFT: 0.6, 0.3, 0.05 and 0.
NEAR, OFF, BARELY, FAR = [0.0, 0.0, 10.0, 6.0], [0.0, 0.0, 10.0, 3.0], [0.0, 0.0, 10.0, 0.5], [300.0, 300.0, 10.0, 10.0]


def image(objects: list[Thing], detections: list[tuple[int, list[float], float]]) -> Matches:
    boxes = [np.array([thing[1] for thing in things], dtype=float).reshape(-1, 4) for things in (detections, objects)]
    labels = [np.array([thing[0] for thing in things], dtype=np.int64) for things in (detections, objects)]
    scores = np.array([detection[2] for detection in detections])
    return match(boxes[0], scores, labels[0], boxes[1], labels[1], np.zeros(len(objects), dtype=bool))


@pytest.mark.parametrize("seed", [0, 3, 8])
def test_ap50_of_the_matches_is_pycocotools(tmp_path: Path, seed: int) -> None:
    annotations = crowded_scene(seed)
    results = guesses(annotations, seed + 10)
    dataset = write_set(tmp_path, annotations)
    metric = metric_of(dataset)
    update(metric, dataset, results)
    expected = raw_pycocotools(tmp_path / "instances.json", results)
    for kind in ("box", "mask"):
        found = metric.report.costs[kind]
        assert found.ap50 == pytest.approx(expected[f"{kind}_ap50"], abs=1e-12)
        assert list(found.costs) == list(found.counts) == list(KINDS)
        assert sum(found.costs.values()) > 0.1


def alone(kind: str, found: Costs, count: int = 1) -> None:
    """This kind of error is the only one, and costs all the AP50 that is lost."""
    assert found.counts == {name: count if name == kind else 0 for name in KINDS}
    assert found.ap50 < 0.99
    assert found.costs[kind] == pytest.approx(1 - found.ap50)
    assert all(cost == pytest.approx(0) for name, cost in found.costs.items() if name != kind)


HIT = (0, RIGHT, 0.5)
OBJECTS: list[Thing] = [(0, LEFT), (0, RIGHT)]


@pytest.mark.parametrize(
    ("kind", "detections"),
    [
        ("class", [HIT, (1, LEFT, 0.9)]),
        ("class", [HIT, (1, NEAR, 0.9)]),
        ("localisation", [HIT, (0, OFF, 0.9)]),
        ("duplicate", [(0, LEFT, 0.95), (0, NEAR, 0.9), HIT]),
        ("background", [(0, LEFT, 0.95), (0, FAR, 0.9), HIT]),
        ("background", [(0, LEFT, 0.95), (0, BARELY, 0.9), HIT]),
        ("missed", [HIT]),
        ("missed", []),
    ],
)
def test_one_kind_of_error_alone_costs_all_the_ap50_that_is_lost(
    kind: str, detections: list[tuple[int, list[float], float]]
) -> None:
    missing = 2 if not detections else 1
    alone(kind, error_costs([image(OBJECTS, detections)], classes=2), missing)


def test_a_wrong_class_in_a_wrong_place_is_an_error_of_both() -> None:
    # An object of class 1 elsewhere is found, so that class 1 counts; the other is on an object of class 0 by a third.
    objects: list[Thing] = [(0, LEFT), (1, RIGHT)]
    found = error_costs([image(objects, [(0, LEFT, 0.5), (1, OFF, 0.9), (1, RIGHT, 0.5)])], classes=2)
    alone("class and localisation", found)


def test_a_mended_detection_finds_each_object_once() -> None:
    """Two boxes beside the same object: mending makes the surer one a hit and leaves out the other."""
    found = error_costs([image(OBJECTS, [HIT, (0, OFF, 0.9), (0, OFF, 0.8)])], classes=1)
    alone("localisation", found, 2)
    # One beside an object that was found is not needed: it goes.
    found = error_costs([image(OBJECTS, [(0, LEFT, 0.6), HIT, (0, OFF, 0.9)])], classes=1)
    alone("localisation", found)


def test_costs_are_means_over_the_classes_that_occur() -> None:
    objects: list[Thing] = [(0, LEFT), (2, RIGHT)]
    found = error_costs([image(objects, [(0, LEFT, 0.9)]), image([], [])], classes=4)
    assert (found.ap50, found.costs["missed"]) == (pytest.approx(0.5), pytest.approx(0.5))


def test_crowds_and_what_lies_on_them_are_left_out() -> None:
    crowd = np.array([False, True])
    boxes, objects = np.array([LEFT, FAR, RIGHT]), np.array([LEFT, [250.0, 250.0, 100.0, 100.0]])
    found = match(boxes, np.array([0.5, 0.9, 0.8]), np.zeros(3, int), objects, np.zeros(2, int), crowd)
    assert found.scores.tolist() == [0.8, 0.5]
    assert found.found.tolist() == [-1, 0]
    assert found.ious.shape == (2, 1)
    assert found.missed.tolist() == [False]
    assert found.above(0.6).missed.tolist() == [True]


def test_an_object_is_found_by_one_mended_detection_and_the_others_go() -> None:
    objects: list[Thing] = [(0, LEFT), (0, RIGHT), (0, FAR)]
    found = error_costs([image(objects, [(0, OFF, 0.9), (0, OFF, 0.8), (0, RIGHT, 0.5)])], classes=1)
    # One of three is found, with precision 1 / 3; mended, two of three with precision 1, at 67 of 101 recalls.
    assert found.ap50 == pytest.approx(34 / 101 / 3)
    assert found.ap50 + found.costs["localisation"] == pytest.approx(67 / 101)


def test_the_hundred_surest_detections_of_a_class_count_in_an_image() -> None:
    wrong = [(0, FAR, 0.9)] * 99
    for extra, hits in ((0, 1), (1, 0)):
        found = image([(0, LEFT), (1, RIGHT)], [*wrong, *[(0, FAR, 0.9)] * extra, (0, LEFT, 0.5), (1, RIGHT, 0.1)])
        assert len(found.scores) == 101
        assert int((found.found == 0).sum()) == hits
        assert int((found.found == 1).sum()) == 1
