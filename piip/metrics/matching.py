"""Which detection finds which object of an image, at IoU 0.5, as COCO's evaluation decides it."""

from __future__ import annotations

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
        return Matches(self.scores[kept], self.labels[kept], self.objects, self.ious[kept], self.found[kept])

    @property
    def missed(self) -> NDArray[np.bool_]:
        """The objects (m,) that no detection finds."""
        return ~np.isin(np.arange(len(self.objects)), self.found)


def match(
    detections: Regions,
    scores: NDArray[np.float64],
    labels: NDArray[np.int64],
    objects: Regions,
    object_labels: NDArray[np.int64],
    crowd: NDArray[np.bool_],
) -> Matches:
    """Matches the detections of an image with its objects; both are boxes (n, 4) xywh or n run-length masks."""
    pairs: Any = mask_utils.iou(detections, objects, crowd.tolist()) if len(detections) and len(objects) else []
    order = np.argsort(-scores, kind="stable")
    order = order[np.tril(labels[order][:, None] == labels[order]).sum(axis=1) <= _MOST]
    ious = np.asarray(pairs, dtype=np.float64).reshape(len(scores), len(objects))[order]
    enough = (labels[order][:, None] == object_labels) & (ious >= IOU)
    partners, free, counts = np.full(len(order), -1), ~crowd, np.ones(len(order), dtype=bool)
    for index in np.flatnonzero(enough.any(axis=1)):
        # COCO takes the last of equals.
        candidates = np.flatnonzero(enough[index] & free)[::-1]
        if candidates.size:
            partners[index] = candidates[ious[index, candidates].argmax()]
            free[partners[index]] = False
        else:
            counts[index] = not (enough[index] & crowd).any()
    # From here on objects are numbered without the crowds.
    numbers = np.append(np.cumsum(~crowd) - 1, -1)[partners]
    order, ious = order[counts], ious[counts][:, ~crowd]
    return Matches(scores[order], labels[order], object_labels[~crowd], ious, numbers[counts])
