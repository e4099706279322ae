"""What was found on one image."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

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

    def __missing__(self, key: str) -> list[str]:
        # Beside the labels, where one looks for them, but not among the keys, whose values are all tensors.
        if key == "class_names":
            return self.class_names
        raise KeyError(key)
