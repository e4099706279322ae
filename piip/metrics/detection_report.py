"""What detections are worth: per image, by kind of error, by their scores, and as pictures."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from piip.conventions import ImageId
from piip.metrics.calibration import calibrate, draw_calibration
from piip.metrics.errors import Costs, error_costs
from piip.metrics.matching import IOU, Matches


class DetectionReport:
    """Built from the matches of all images, for boxes and perhaps masks: kind -> image -> matches.

    threshold: the score from which boxes of all classes together have the best F1, halfway to the next lower score.
    calibration: of the scores of boxes.
    """

    def __init__(self, matches: Mapping[str, Mapping[ImageId, Matches]], class_names: Sequence[str]) -> None:
        self._matches, self._class_names = matches, list(class_names)
        boxes = matches["box"].values()
        scores = np.concatenate([image.scores for image in boxes])
        hits = np.concatenate([image.found >= 0 for image in boxes])
        self.threshold = _best_threshold(scores, hits, sum(len(image.objects) for image in boxes))
        self.calibration = calibrate(scores, hits)
        self._boxes = {image_id: image.above(self.threshold) for image_id, image in matches["box"].items()}

    @cached_property
    def costs(self) -> dict[str, Costs]:
        """What errors cost, per kind."""
        classes = len(self._class_names)
        return {kind: error_costs(list(images.values()), classes) for kind, images in self._matches.items()}

    def records(self) -> dict[ImageId, dict[str, Any]]:
        """See `CocoMetric.records`."""
        return {image_id: self._record(image) for image_id, image in self._boxes.items()}

    def _record(self, image: Matches) -> dict[str, Any]:
        hits = image.found >= 0
        ious = image.ious[hits, image.found[hits]]
        wrong = np.append(image.labels[~hits], image.objects[image.missed])
        return {
            "badness": len(wrong) + float((1 - ious).sum()),
            "hits": int(hits.sum()),
            "misses": int(image.missed.sum()),
            "false_alarms": int((~hits).sum()),
            "mean_iou": float(ious.mean()) if ious.size else None,
            "worst_class": self._class_names[np.bincount(wrong).argmax()] if wrong.size else None,
            "score_threshold": self.threshold,
        }

    def confusion(self) -> NDArray[np.int64]:
        """Objects (classes + 1, classes + 1) by their class and by that of the box on them; the last is background.

        Hits come first; other boxes and objects are paired across classes, from the highest IoU down to 0.5.
        """
        classes = len(self._class_names)
        counts = np.zeros((classes + 1, classes + 1), dtype=np.int64)
        for image in self._boxes.values():
            partners, free = image.found.copy(), image.missed
            rest = np.where((partners < 0)[:, None] & free, image.ious, 0)
            pairs = np.argsort(-rest, axis=None, kind="stable")[: int((rest >= IOU).sum())]
            for row, column in zip(*np.unravel_index(pairs, rest.shape), strict=True):
                if partners[row] < 0 and free[column]:
                    partners[row], free[column] = column, False
            np.add.at(counts, (np.append(image.objects, classes)[partners], image.labels), 1)
            np.add.at(counts[:, classes], image.objects[free], 1)
        return counts

    def draw(self, precisions: Mapping[str, NDArray[np.float64]], folder: Path) -> list[Path]:
        """Writes the pictures. precisions: see `draw_precision_recall`."""
        # Loads matplotlib, which is slow.
        from piip.metrics.confusion_chart import draw_confusion
        from piip.metrics.detection_charts import draw_errors, draw_precision_recall

        counts = self.confusion()
        found, others = np.trace(counts), counts[:-1, :-1].sum() - np.trace(counts)
        title = (
            f"{found} of {counts[:-1].sum()} objects found, {others} in a wrong class, {counts[-1].sum()} boxes on none"
            f"\n(IoU 0.5, scores from {self.threshold:.2f}, where F1 is best)"
        )
        names, labels = [*self._class_names, "background"], ("object", "found as")
        return [
            draw_precision_recall(precisions, self._class_names, folder / "precision_recall.png"),
            draw_errors(self.costs, folder / "errors.png"),
            draw_confusion(counts, names, folder / "confusion.png", title=title, axis_labels=labels),
            draw_calibration(self.calibration, "boxes, right at IoU 0.5", folder / "calibration.png"),
        ]


def _best_threshold(scores: NDArray[np.float64], hits: NDArray[np.bool_], objects: int) -> float:
    """1 where there is no detection."""
    if not scores.size:
        return 1.0
    order = np.argsort(-scores, kind="stable")
    scores, lower = scores[order], np.append(scores[order][1:], scores[order[-1]])
    # F1 is twice this; no threshold comes between equal scores.
    f1 = hits[order].cumsum() / (np.arange(1, len(order) + 1) + objects)
    f1[:-1][scores[:-1] == scores[1:]] = -1
    return float(scores[f1.argmax()] + lower[f1.argmax()]) / 2
