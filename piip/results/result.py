"""What was found on one image."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from torch import Tensor

from piip.errors import DataError
from piip.results.base import ResultWriter


class Result(dict[str, Tensor]):
    """The tensors of a result by name, in torchvision's conventions, and the names of its classes.

    writer: says how the model's results are drawn, and what its classes are called.
    """

    def __init__(self, tensors: Mapping[str, Tensor], writer: ResultWriter) -> None:
        super().__init__(tensors)
        self.writer = writer

    @property
    def class_names(self) -> list[str]:
        """The name of each of the `labels`; of a label map, and where there are no labels, the names of all classes."""
        names, labels = self.writer.class_names, self.get("labels")
        return names if labels is None or labels.dim() != 1 else [names[label] for label in labels.tolist()]

    def arrays(self) -> dict[str, Any]:
        """Boxes as arrays under the names of `supervision.Detections`, which takes them: `Detections(**arrays())`.

        xyxy (n, 4), confidence (n,), class_id (n,), mask (n, H, W) bool or None, and the class_name of each in `data`.
        Raises DataError where the results are no boxes.
        """
        if "boxes" not in self:
            raise DataError("only detections have boxes to convert; this result has " + ", ".join(self))
        masks = self.get("masks")
        return {
            "xyxy": self["boxes"].cpu().numpy(),
            "confidence": self["scores"].cpu().numpy(),
            "class_id": self["labels"].cpu().numpy(),
            "mask": None if masks is None else masks.cpu().numpy(),
            "data": {"class_name": np.array(self.class_names, dtype=str)},
        }

    def __missing__(self, key: str) -> list[str]:
        # Beside the labels, where one looks for them, but not among the keys, whose values are all tensors.
        if key == "class_names":
            return self.class_names
        raise KeyError(key)
