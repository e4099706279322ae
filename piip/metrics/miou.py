"""Mean intersection over union and pixel accuracy of label maps, over one process or several."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from piip.errors import PiipError
from piip.features import NO_LABEL
from piip.metrics.base import ImageId, Metric
from piip.metrics.iou_chart import draw_ious

# The cells of a confusion matrix that are not 0, by their number in it, and their counts: of one image most are 0.
_Cells = tuple[NDArray[np.int32], NDArray[np.int32]]


class MIoUMetric(Metric[_Cells]):
    """mIoU, aAcc and mAcc from one confusion matrix over all pixels that have a label, as mmsegmentation counts them.

    class_names: in label order. label_map_of: the true labels (H, W) uint8 of an image by its id, 255 for none.
    A class that is neither in the data nor in the results has no IoU, one that is not in the data no accuracy; means
    leave it out.
    """

    def __init__(self, class_names: Sequence[str], label_map_of: Callable[[Any], Tensor]) -> None:
        super().__init__()
        self._class_names, self._label_map_of = list(class_names), label_map_of

    def update(self, results: Sequence[dict[str, Tensor]], image_ids: Sequence[ImageId]) -> None:
        """results: per image labels (H, W) in the image's pixels, on any device, for which it waits once.

        Raises PiipError for a result of another size than the true labels, or with a label that is no class.
        """
        classes = len(self._class_names)
        maps = [result["labels"] for result in results]
        pixels = torch.cat([labels.flatten() for labels in maps]).cpu().split([labels.numel() for labels in maps])
        for labels, part, image_id in zip(maps, pixels, image_ids, strict=True):
            truth, found = self._label_map_of(image_id), part.view(labels.shape)
            if truth.shape != found.shape:
                sizes = " and ".join(f"{shape[1]} x {shape[0]}" for shape in (found.shape, truth.shape))
                raise PiipError(f"image {image_id}: result and label map differ in size, {sizes} pixels")
            labelled = truth != NO_LABEL
            truth, found = truth[labelled].long(), found[labelled].long()
            if found.numel() and not 0 <= found.min() <= found.max() < classes:
                raise PiipError(
                    f"image {image_id}: results with label {found.max()}, but the data have {classes} classes"
                )
            counts = torch.bincount(truth * classes + found, minlength=classes * classes).numpy()
            (cells,) = np.nonzero(counts)
            self._found[image_id] = cells.astype(np.int32), counts[cells].astype(np.int32)

    def confusion(self) -> NDArray[np.int64]:
        """Pixels (classes, classes) by their true label and the one found."""
        classes = len(self._class_names)
        matrix = np.zeros(classes * classes, dtype=np.int64)
        for cells, counts in self._found.values():
            matrix[cells] += counts
        return matrix.reshape(classes, classes)

    def compute(self) -> dict[str, float]:
        """miou, aacc (of all pixels) and macc (mean over the classes), in [0, 1].

        Raises PiipError if no pixel had a label.
        """
        matrix = self.confusion()
        if not matrix.any():
            raise PiipError(f"none of the {len(self._found)} evaluated images has a pixel with a label")
        ious, accuracies = _per_class(matrix)
        right = np.trace(matrix) / matrix.sum()
        return {"miou": float(np.nanmean(ious)), "aacc": float(right), "macc": float(np.nanmean(accuracies))}

    def table(self) -> list[dict[str, Any]]:
        """Per class a row of class, iou, acc (None where there is none) and pixels, its share of those with a label."""
        matrix = self.confusion()
        shares = matrix.sum(axis=1) / max(int(matrix.sum()), 1)
        columns = zip(self._class_names, *(part.tolist() for part in (*_per_class(matrix), shares)), strict=True)
        return [
            {"class": name, "iou": None if iou != iou else iou, "acc": None if acc != acc else acc, "pixels": share}
            for name, iou, acc, share in columns
        ]

    def draw(self, folder: Path) -> list[Path]:
        """iou.png: the classes by their IoU."""
        return [draw_ious(self.table(), self.compute(), folder / "iou.png")]


def _per_class(matrix: NDArray[np.int64]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """IoU and accuracy of every class, NaN where there is none."""
    right, true, found = matrix.diagonal(), matrix.sum(axis=1), matrix.sum(axis=0)
    with np.errstate(invalid="ignore"):
        return right / (true + found - right), right / true
