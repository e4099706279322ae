"""Mean intersection over union and pixel accuracy of label maps, over one process or several."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from piip.conventions import NO_LABEL, ImageId
from piip.errors import PiipError
from piip.metrics.base import Metric
from piip.metrics.iou_chart import draw_ious

# The cells of the counts that are not 0, by their number, and their counts: of one image most are 0.
_Cells = tuple[NDArray[np.int32], NDArray[np.int32]]


class MIoUMetric(Metric[_Cells]):
    """mIoU, aAcc and mAcc from one confusion matrix over all pixels that have a label, as mmsegmentation counts them.

    class_names: in label order. A truth holds `label_map`, the true labels (H, W) uint8, 255 for no label. The pixels
    of an image that could not be read count as not found.
    A class that is neither in the data nor in the results has no IoU, one that is not in the data no accuracy; means
    leave it out.
    """

    badness: ClassVar = "what the mean IoU of the image's classes lacks"

    def __init__(self, class_names: Sequence[str]) -> None:
        super().__init__()
        self._class_names = list(class_names)

    def update(
        self, results: Sequence[dict[str, Tensor]], truths: Sequence[Mapping[str, Any]], image_ids: Sequence[ImageId]
    ) -> None:
        """results: labels (H, W) per image in its pixels, on any device, for which it waits once.

        Raises PiipError for a result of another size than the true labels, or with a label that is no class.
        """
        classes = len(self._class_names)
        maps = [result["labels"] for result in results]
        pixels = torch.cat([labels.flatten() for labels in maps]).cpu().split([labels.numel() for labels in maps])
        for labels, part, truth, image_id in zip(maps, pixels, truths, image_ids, strict=True):
            true, found = np.asarray(truth["label_map"]), part.view(labels.shape).numpy()
            if true.shape != found.shape:
                sizes = " and ".join(f"{shape[1]} x {shape[0]}" for shape in (found.shape, true.shape))
                raise PiipError(f"image {image_id}: result and label map differ in size, {sizes} pixels")
            labelled = true != NO_LABEL
            found = found[labelled].astype(np.int64)
            if found.size and not 0 <= found.min() <= found.max() < classes:
                raise PiipError(
                    f"image {image_id}: results with label {found.max()}, but the data have {classes} classes"
                )
            self._keep(image_id, true[labelled].astype(np.int64) * classes + found)

    def miss(self, truth: Mapping[str, Any], image_id: ImageId) -> None:
        true = np.asarray(truth["label_map"])
        self._keep(image_id, len(self._class_names) ** 2 + true[true != NO_LABEL].astype(np.int64))

    def _keep(self, image_id: ImageId, cells: NDArray[np.int64]) -> None:
        """Keeps the counts of an image. cells: the number of the cell that each labelled pixel counts in."""
        counts = np.bincount(cells)
        (occurring,) = np.nonzero(counts)
        self._found[image_id] = occurring.astype(np.int32), counts[occurring].astype(np.int32)

    def _counts(self, parts: Iterable[_Cells] | None = None) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Pixels (classes, classes) by their true label and the one found, and (classes,) where none was found.

        They are those of all images unless parts are given. Cells are numbered in this order.
        """
        classes = len(self._class_names)
        counts = np.zeros(classes * classes + classes, dtype=np.int64)
        for cells, pixels in self._found.values() if parts is None else parts:
            counts[cells] += pixels
        return counts[: classes * classes].reshape(classes, classes), counts[classes * classes :]

    def confusion(self) -> NDArray[np.int64]:
        """Pixels (classes, classes) by their true label and the one found."""
        return self._counts()[0]

    def compute(self) -> dict[str, float]:
        """miou, aacc (of all pixels) and macc (mean over the classes), in [0, 1].

        Raises PiipError if no pixel had a label.
        """
        matrix, missed = self._counts()
        pixels = matrix.sum() + missed.sum()
        if not pixels:
            raise PiipError(f"none of the {len(self._found)} evaluated images has a pixel with a label")
        ious, accuracies = _per_class(matrix, missed)
        right = np.trace(matrix) / pixels
        return {"miou": float(np.nanmean(ious)), "aacc": float(right), "macc": float(np.nanmean(accuracies))}

    def table(self) -> list[dict[str, Any]]:
        """One row per class of class, iou, acc (None where there is none) and pixels, its share of all with a label."""
        matrix, missed = self._counts()
        totals = matrix.sum(axis=1) + missed
        shares = totals / max(int(totals.sum()), 1)
        columns = (part.tolist() for part in (*_per_class(matrix, missed), shares))
        return [
            {"class": name, "iou": None if iou != iou else iou, "acc": None if acc != acc else acc, "pixels": share}
            for name, iou, acc, share in zip(self._class_names, *columns, strict=True)
        ]

    def records(self) -> dict[ImageId, dict[str, Any]]:
        """miou, pixel_accuracy and worst_class of each image, None where no pixel has a label."""
        return {image_id: self._record(*self._counts([found])) for image_id, found in self._found.items()}

    def _record(self, matrix: NDArray[np.int64], missed: NDArray[np.int64]) -> dict[str, Any]:
        ious, pixels = _per_class(matrix, missed)[0], matrix.sum() + missed.sum()
        if not pixels:
            return {"badness": 0.0, "miou": None, "pixel_accuracy": None, "worst_class": None}
        mean, accuracy = float(np.nanmean(ious)), float(matrix.trace() / pixels)
        worst = self._class_names[np.nanargmin(ious)]
        return {"badness": 1 - mean, "miou": mean, "pixel_accuracy": accuracy, "worst_class": worst}

    def draw(self, folder: Path) -> list[Path]:
        """iou.png: the classes by their IoU."""
        return [draw_ious(self.table(), self.compute(), folder / "iou.png")]


def _per_class(matrix: NDArray[np.int64], missed: NDArray[np.int64]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """IoU and accuracy of every class, NaN where there is none."""
    right, true, found = matrix.diagonal(), matrix.sum(axis=1) + missed, matrix.sum(axis=0)
    with np.errstate(invalid="ignore"):
        return right / (true + found - right), right / true
