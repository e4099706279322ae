"""What detections are worth: per image, by kind of error, by their scores, and as pictures."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from piip.conventions import ImageId
from piip.metrics.calibration import Calibration, calibrate, draw_calibration
from piip.metrics.errors import Costs, error_costs
from piip.metrics.matching import Matches, best_threshold, confusion, record


class DetectionReport:
    """Built from the matches of all images, for boxes and perhaps masks: kind -> image -> matches.

    threshold: the score from which boxes have the best F1 at IoU 0.5.
    """

    def __init__(self, matches: Mapping[str, Mapping[ImageId, Matches]], class_names: Sequence[str]) -> None:
        self._matches, self._class_names = matches, list(class_names)
        self._boxes = matches["box"]
        self.threshold = best_threshold(list(self._boxes.values()))

    def records(self) -> dict[ImageId, dict[str, Any]]:
        """Per image the record of its boxes from `threshold` on, and `score_threshold`."""
        shared = {"score_threshold": self.threshold}
        return {
            image_id: record(image.above(self.threshold), self._class_names) | shared
            for image_id, image in self._boxes.items()
        }

    def details(self) -> dict[str, Any]:
        """The threshold, the calibration error of boxes, and per kind the AP50 that each kind of error costs."""
        figures = {"score_threshold": self.threshold, "calibration_error": self.calibration.error}
        return figures | {f"{kind}_ap50_lost": found.costs for kind, found in self.costs.items()}

    @cached_property
    def costs(self) -> dict[str, Costs]:
        classes = len(self._class_names)
        return {kind: error_costs(list(images.values()), classes) for kind, images in self._matches.items()}

    @cached_property
    def calibration(self) -> Calibration:
        scores = np.concatenate([image.scores for image in self._boxes.values()])
        return calibrate(scores, np.concatenate([image.found >= 0 for image in self._boxes.values()]))

    def confusion(self) -> NDArray[np.int64]:
        """Objects (classes + 1, classes + 1) by their class and the one they are found as, the background last."""
        return confusion([image.above(self.threshold) for image in self._boxes.values()], len(self._class_names))

    def draw(self, precisions: Mapping[str, NDArray[np.float64]], folder: Path) -> list[Path]:
        """Writes the pictures. precisions: see `draw_precision_recall`."""
        # Loads matplotlib, which is slow.
        from piip.metrics.confusion_chart import draw_confusion
        from piip.metrics.detection_charts import draw_errors, draw_precision_recall

        counts = self.confusion()
        title = (
            f"{np.trace(counts)} of {counts[:-1].sum()} objects found, {counts[-1].sum()} false alarms\n"
            f"(boxes, IoU 0.5, scores from {self.threshold:.2f}, where F1 is best)"
        )
        names, labels = [*self._class_names, "background"], ("object", "found as")
        return [
            draw_precision_recall(precisions, self._class_names, folder / "precision_recall.png"),
            draw_errors(self.costs, folder / "errors.png"),
            draw_confusion(counts, names, folder / "confusion.png", title=title, axis_labels=labels),
            draw_calibration(self.calibration, "boxes, right at IoU 0.5", folder / "calibration.png"),
        ]
