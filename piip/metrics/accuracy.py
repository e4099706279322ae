"""How often the right class is named first, or among the first five; over one process or several."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from piip.errors import PiipError
from piip.metrics.base import ImageId, Metric

_TOP = 5


class AccuracyMetric(Metric[tuple[int, ...]]):
    """Top-1 accuracy and, where there are more than five classes, top-5 accuracy, over all images that came.

    class_names: in label order. label_of: the right label of an image by its id.
    """

    def __init__(self, class_names: Sequence[str], label_of: Callable[[Any], int]) -> None:
        super().__init__()
        self._class_names, self._label_of = list(class_names), label_of

    def update(self, results: Sequence[dict[str, Tensor]], image_ids: Sequence[ImageId]) -> None:
        """results: per image labels (k,), the likeliest first, on any device, for which it waits once."""
        first = [result["labels"][:_TOP] for result in results]
        parts = torch.cat(first).cpu().split([len(labels) for labels in first])
        for part, image_id in zip(parts, image_ids, strict=True):
            labels = tuple(part.tolist())
            if not all(0 <= label < len(self._class_names) for label in labels):
                raise PiipError(f"results with label {max(labels)}, but the data have {len(self._class_names)} classes")
            self._found[image_id] = labels

    def compute(self) -> dict[str, float]:
        """top1 and perhaps top5, in [0, 1]."""
        truth = [self._label_of(image_id) for image_id in self._found]
        pairs = list(zip(truth, self._found.values(), strict=True))
        figures = {"top1": sum(label == labels[0] for label, labels in pairs) / len(pairs)}
        if len(self._class_names) > _TOP:
            figures["top5"] = sum(label in labels for label, labels in pairs) / len(pairs)
        return figures

    def table(self) -> list[dict[str, Any]]:
        """Per class a row of class, images, top1, and the class its images are most often taken for by mistake.

        What cannot be said (top1 of a class without images, a mistake where there was none) is None.
        """
        rows = []
        counts = self.confusion()
        for label, (name, row) in enumerate(zip(self._class_names, counts, strict=True)):
            images, right = int(row.sum()), int(row[label])
            wrong = row.copy()
            wrong[label] = 0
            other = self._class_names[int(wrong.argmax())] if wrong.any() else None
            top1 = right / images if images else None
            rows.append({"class": name, "images": images, "top1": top1, "most_confused_with": other})
        return rows

    def confusion(self) -> NDArray[np.int64]:
        """Images (classes, classes) by their right label and by the one named first."""
        counts = np.zeros((len(self._class_names),) * 2, dtype=np.int64)
        for image_id, labels in self._found.items():
            counts[self._label_of(image_id), labels[0]] += 1
        return counts

    def draw(self, folder: Path) -> list[Path]:
        """confusion.png: which classes are taken for which."""
        # Loads matplotlib, which is slow.
        from piip.metrics.confusion_chart import draw_confusion

        return [draw_confusion(self.confusion(), self._class_names, folder / "confusion.png")]
