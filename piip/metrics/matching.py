"""Which detection finds which object of an image, at IoU 0.5, as COCO's evaluation decides it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from pycocotools import mask as mask_utils

from piip.run_lengths import Rle

# From this IoU on a detection finds an object.
IOU = 0.5
# COCO looks at so many detections per image and class.
_MOST = 100

Regions = NDArray[np.float64] | list[Rle]


class Matches(NamedTuple):
    """The n detections of an image by falling score, and its m objects.

    scores, labels (n,): of the detections. objects (m,): labels of the objects. ious (n, m): of all pairs. found (n,):
    the object that a detection finds, or -1. Crowds, and detections that find nothing but a crowd, are left out.
    """

    scores: NDArray[np.float64]
    labels: NDArray[np.int64]
    objects: NDArray[np.int64]
    ious: NDArray[np.float64]
    found: NDArray[np.int64]

    def above(self, threshold: float) -> Matches:
        """Without the detections of a lower score, on which those of the others do not depend."""
        kept = self.scores >= threshold
        return self._replace(
            scores=self.scores[kept], labels=self.labels[kept], ious=self.ious[kept], found=self.found[kept]
        )

    @property
    def missed(self) -> NDArray[np.bool_]:
        """The objects (m,) that no detection finds."""
        return ~np.isin(np.arange(len(self.objects)), self.found)


def match(
    found: Regions,
    scores: NDArray[np.float64],
    labels: NDArray[np.int64],
    objects: Regions,
    object_labels: NDArray[np.int64],
    crowd: NDArray[np.bool_],
) -> Matches:
    """Matches detections with the objects of their image. found, objects: boxes (n, 4) xywh or n run-length masks."""
    pairs: Any = mask_utils.iou(found, objects, crowd.tolist()) if len(found) and len(objects) else []
    ious = np.asarray(pairs, dtype=np.float64).reshape(len(found), len(objects))
    order = np.argsort(-scores, kind="stable")
    ranks = np.tril(labels[order][:, None] == labels[order]).sum(axis=1)
    order = order[ranks <= _MOST]
    scores, labels, ious = scores[order], labels[order], ious[order]
    enough = (labels[:, None] == object_labels) & (ious >= IOU)
    partners, free, counts = np.full(len(order), -1), ~crowd, np.ones(len(order), dtype=bool)
    for index in np.flatnonzero(enough.any(axis=1)):
        # COCO takes the last of equals.
        candidates = np.flatnonzero(enough[index] & free)[::-1]
        if candidates.size:
            partners[index] = candidates[ious[index, candidates].argmax()]
            free[partners[index]] = False
        else:
            counts[index] = not (enough[index] & crowd).any()
    # Objects are numbered without the crowds from here on.
    numbers = np.append(np.cumsum(~crowd) - 1, -1)
    return Matches(
        scores[counts], labels[counts], object_labels[~crowd], ious[counts][:, ~crowd], numbers[partners][counts]
    )


def best_threshold(images: Sequence[Matches]) -> float:
    """The score from which detections, of all classes together, have the best F1.

    It lies halfway to the next lower score; 1 without any detection.
    """
    scores = np.concatenate([np.zeros(0), *(image.scores for image in images)])
    hits = np.concatenate([np.zeros(0, bool), *(image.found >= 0 for image in images)])
    if not scores.size:
        return 1.0
    order = np.argsort(-scores, kind="stable")
    scores, next_scores = scores[order], np.append(scores[order][1:], scores[order[-1]])
    # F1 is 2 hits / (detections + objects).
    f1 = hits[order].cumsum() / (np.arange(1, len(order) + 1) + sum(len(image.objects) for image in images))
    # No threshold comes between equal scores.
    f1[:-1][scores[:-1] == scores[1:]] = -1
    best = int(f1.argmax())
    return float(scores[best] + next_scores[best]) / 2


def confusion(images: Sequence[Matches], classes: int) -> NDArray[np.int64]:
    """Objects (classes + 1, classes + 1) by their class and by that of the detection on them; the last is background.

    Hits come first; the other detections and objects are paired across classes, from the highest IoU to 0.5.
    """
    counts = np.zeros((classes + 1, classes + 1), dtype=np.int64)
    for image in images:
        partners, free = image.found.copy(), image.missed
        rest = np.where((partners < 0)[:, None] & free, image.ious, 0)
        pairs = np.argsort(-rest, axis=None, kind="stable")[: int((rest >= IOU).sum())]
        for row, column in zip(*np.unravel_index(pairs, rest.shape), strict=True):
            if partners[row] < 0 and free[column]:
                partners[row], free[column] = column, False
        np.add.at(counts, (np.append(image.objects, classes)[partners], image.labels), 1)
        np.add.at(counts, (image.objects[free], classes), 1)
    return counts


def record(image: Matches, class_names: Sequence[str]) -> dict[str, Any]:
    """Counts of an image, with its `badness`: objects missed, false alarms, and what the IoUs of hits lack."""
    hits = image.found >= 0
    ious = image.ious[hits, image.found[hits]]
    wrong = np.append(image.labels[~hits], image.objects[image.missed])
    worst = np.bincount(wrong).argmax() if wrong.size else None
    return {
        "badness": len(wrong) + float((1 - ious).sum()),
        "hits": int(hits.sum()),
        "misses": int(image.missed.sum()),
        "false_alarms": int((~hits).sum()),
        "mean_iou": float(ious.mean()) if ious.size else None,
        "worst_class": None if worst is None else class_names[worst],
    }
