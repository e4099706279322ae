"""Kinds of detection errors, and how much AP50 each of them costs (after TIDE, Bolya et al., 2020)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from piip.metrics.matching import IOU, Matches

# Below this IoU a detection is on the background.
_BACKGROUND = 0.1
_CLASS, _PLACE, _BOTH, _DUPLICATE, _ELSEWHERE = range(5)
KINDS = ("class", "localisation", "class and localisation", "duplicate", "background", "missed")


class Costs(NamedTuple):
    """AP50, and by kind of error how many there are and what AP50 gains when they alone are mended."""

    ap50: float
    counts: dict[str, int]
    costs: dict[str, float]


def error_costs(images: Sequence[Matches], classes: int) -> Costs:
    """Sorts every detection that finds no object, and every object that nothing points to, into a kind of error.

    localisation: its best IoU with an object of its class is 0.1 to 0.5. class: IoU of 0.5 with an object of another
    class. duplicate: IoU of 0.5 with an object of its class that another detection found. background: no IoU of 0.1.
    class and localisation: all others. missed: objects that are not found and that no detection with an error of class
    or localisation would find.
    To mend an error of class or localisation makes the detection a hit on that object, if this was not found and no
    other error of the kind with a higher score is on it; otherwise, and for the other kinds, the detection is left out.
    Missed objects are left out when they are mended.
    """
    parts = [_sort(image) for image in images]
    scores = np.concatenate([image.scores for image in images])
    labels = np.concatenate([image.labels for image in images])
    kinds, mended, missed_labels = (np.concatenate(column) for column in zip(*parts, strict=True))
    objects = np.bincount(np.concatenate([image.objects for image in images]), minlength=classes)
    missed = np.bincount(missed_labels, minlength=classes)
    hits, present = kinds < 0, np.flatnonzero(objects)

    def mean_ap(labels: NDArray[np.int64], hits: NDArray[np.bool_], left: NDArray[np.int64]) -> float:
        aps = (_ap(scores[labels == label], hits[labels == label], left[label]) for label in present)
        return sum(aps) / max(len(present), 1)

    ap50, chosen = mean_ap(labels, hits, objects), [kinds == kind for kind in range(len(KINDS) - 1)]
    costs = [mean_ap(np.where(these, mended, labels), hits | these, objects) - ap50 for these in chosen]
    costs.append(mean_ap(labels, hits, objects - missed) - ap50)
    counts = [*(int(these.sum()) for these in chosen), len(missed_labels)]
    return Costs(ap50, dict(zip(KINDS, counts, strict=True)), dict(zip(KINDS, costs, strict=True)))


def _sort(image: Matches) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
    """The kind of each detection (-1 for a hit), its label once mended (-1: left out), and labels of missed objects."""
    same = image.labels[:, None] == image.objects
    # A column of zeros stands for no object.
    own, other = (np.pad(np.where(which, image.ious, 0), ((0, 0), (0, 1))) for which in (same, ~same))
    closest, closest_other = own.max(axis=1), other.max(axis=1)
    kinds = np.select(
        [
            image.found >= 0,
            (closest >= _BACKGROUND) & (closest < IOU),
            closest_other >= IOU,
            closest >= IOU,
            closest_other < _BACKGROUND,
        ],
        [-1, _PLACE, _CLASS, _DUPLICATE, _ELSEWHERE],
        _BOTH,
    )
    missed, mended = image.missed, np.full(len(kinds), -1)
    reached = np.zeros_like(missed)
    for kind, ious in ((_PLACE, own), (_CLASS, other)):
        free = image.missed
        for index in np.flatnonzero(kinds == kind):
            target = ious[index].argmax()
            if free[target]:
                mended[index], free[target], reached[target] = image.objects[target], False, True
    return kinds, mended, image.objects[missed & ~reached]


def _ap(scores: NDArray[np.float64], hits: NDArray[np.bool_], objects: int) -> float:
    """COCO's average precision of a class: the mean precision at 101 recalls."""
    if not objects:
        return float(not scores.size)  # its objects were all left out
    found = hits[np.argsort(-scores, kind="stable")].cumsum()
    precision = np.maximum.accumulate((found / np.arange(1, len(found) + 1))[::-1])[::-1]
    places = np.searchsorted(found / objects, np.linspace(0, 1, 101), side="left")
    return float(np.append(precision, 0)[places].mean())
