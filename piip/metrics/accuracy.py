"""How often the right class is named first, or among the first five; over one process or several."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from piip.conventions import ImageId
from piip.errors import PiipError
from piip.metrics.base import Metric
from piip.metrics.calibration import Calibration, calibrate, draw_calibration

_TOP = 5


class _Answer(NamedTuple):
    """The right label of an image, and the labels that were found, the likeliest first; none for an unread image.

    scores: the probabilities of those labels. probability: that of the right label.
    """

    label: int
    found: tuple[int, ...] = ()
    scores: tuple[float, ...] = ()
    probability: float = 0.0


class AccuracyMetric(Metric[_Answer]):
    """Top-1 accuracy and, where there are more than five classes, top-5 accuracy, over all images.

    class_names: in label order. A truth holds `label`, the right label of the image. An image that could not be read
    counts as answered wrongly.
    """

    badness: ClassVar = "what the probability of the right class lacks"

    def __init__(self, class_names: Sequence[str]) -> None:
        super().__init__()
        self._class_names = list(class_names)

    def update(
        self, results: Sequence[dict[str, Tensor]], truths: Sequence[Mapping[str, Any]], image_ids: Sequence[ImageId]
    ) -> None:
        """results: labels (k,) per image, the likeliest first, and scores, on any device, for which it waits once."""
        parts = []
        for result, truth in zip(results, truths, strict=True):
            names, scores = result["labels"], result["scores"].double()
            parts += [names[:_TOP].double(), scores[:_TOP], (scores * (names == int(truth["label"]))).sum()[None]]
        values = torch.cat(parts).cpu().split([len(part) for part in parts])
        for place, (truth, image_id) in enumerate(zip(truths, image_ids, strict=True)):
            first, scores, probability = values[3 * place : 3 * place + 3]
            labels = tuple(first.long().tolist())
            if not all(0 <= label < len(self._class_names) for label in labels):
                raise PiipError(f"results with label {max(labels)}, but the data have {len(self._class_names)} classes")
            self._found[image_id] = _Answer(int(truth["label"]), labels, tuple(scores.tolist()), probability.item())

    def miss(self, truth: Mapping[str, Any], image_id: ImageId) -> None:
        self._found[image_id] = _Answer(int(truth["label"]))

    def compute(self) -> dict[str, float]:
        """top1 and perhaps top5, in [0, 1]."""
        answers = self._found.values()
        figures = {"top1": sum(label in found[:1] for label, found, *_ in answers) / len(answers)}
        if len(self._class_names) > _TOP:
            figures["top5"] = sum(label in found for label, found, *_ in answers) / len(answers)
        return figures

    def table(self) -> list[dict[str, Any]]:
        """One row per class of class, images, top1, and the class its images are most often taken for by mistake.

        What cannot be said (top1 of a class without images, a mistake where there was none) is None.
        """
        rows = []
        totals = np.bincount([label for label, *_ in self._found.values()], minlength=len(self._class_names)).tolist()
        counts = self.confusion()
        for label, (name, images, row) in enumerate(zip(self._class_names, totals, counts, strict=True)):
            wrong = row.copy()
            wrong[label] = 0
            other = self._class_names[int(wrong.argmax())] if wrong.any() else None
            top1 = int(row[label]) / images if images else None
            rows.append({"class": name, "images": images, "top1": top1, "most_confused_with": other})
        return rows

    def confusion(self) -> NDArray[np.int64]:
        """Images (classes, classes) by their right label and by the one named first, without those not read."""
        counts = np.zeros((len(self._class_names),) * 2, dtype=np.int64)
        for label, found, *_ in self._found.values():
            for first in found[:1]:
                counts[label, first] += 1
        return counts

    def records(self) -> dict[ImageId, dict[str, Any]]:
        """label, top5 (names and their probabilities) and probability, that of the right class, of each image."""
        return {image_id: self._record(answer) for image_id, answer in self._found.items()}

    def _record(self, answer: _Answer) -> dict[str, Any]:
        top = {self._class_names[label]: score for label, score in zip(answer.found, answer.scores, strict=True)}
        label = self._class_names[answer.label]
        return {"badness": 1 - answer.probability, "label": label, "top5": top, "probability": answer.probability}

    def details(self) -> dict[str, Any]:
        """The expected calibration error of the class named first."""
        return {"calibration_error": self._calibration().error}

    def _calibration(self) -> Calibration:
        first = [(answer.scores[0], answer.found[0] == answer.label) for answer in self._found.values() if answer.found]
        return calibrate(np.array([score for score, _ in first]), np.array([right for _, right in first], dtype=bool))

    def draw(self, folder: Path) -> list[Path]:
        """confusion.png: which classes are taken for which; calibration.png: what probabilities are worth."""
        # Loads matplotlib, which is slow.
        from piip.metrics.confusion_chart import draw_confusion

        counts = self.confusion()
        title, labels = (
            f"{counts.trace()} of {counts.sum()} images named rightly",
            ("right class (images)", "named first"),
        )
        return [
            draw_confusion(counts, self._class_names, folder / "confusion.png", title=title, axis_labels=labels),
            draw_calibration(self._calibration(), "images", folder / "calibration.png"),
        ]
