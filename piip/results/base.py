"""What prediction knows of a task's results."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

JPEG_QUALITY = 92


class ResultWriter(ABC):
    """Takes the results of one image after the other.

    class_names: one a class, in label order. document: what has been taken so far, as JSON can hold it.
    """

    document: dict[str, Any]

    def __init__(self, class_names: Sequence[str], *, score_threshold: float) -> None:
        self.class_names, self.score_threshold = list(class_names), score_threshold

    @abstractmethod
    def add(self, file: Path, image: Tensor, result: Any, stem: Path) -> dict[str, float]:
        """Adds the result of an image to the document, and writes the picture `stem`.jpg.

        file: the image, uint8 (3, H, W) RGB. result: what `Model.predict` returned for it. Files that are written
        besides the picture start with `stem` too. Returns what was found: class name -> see `describe`.
        """

    @abstractmethod
    def describe(self, found: dict[str, float]) -> str:
        """In a few words what `add` returned."""
