"""What the engine knows of a metric."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import Any

# What messages and results know an image by: its number in an annotation file, or its own file.
ImageId = int | str


class Metric(ABC):
    """Scores results, in original pixels, over one process or several."""

    @abstractmethod
    def update(self, results: Sequence[Any], image_ids: Sequence[ImageId]) -> None:
        """Takes the results of a batch, one an image, on any device."""

    @abstractmethod
    def synchronize(self) -> None:
        """Merges what all ranks have seen. All ranks must call it; any may have seen nothing."""

    @abstractmethod
    def compute(self) -> dict[str, float]:
        """The figures by name, the main one, which is better the higher it is, first."""

    @abstractmethod
    def table(self) -> list[dict[str, Any]]:
        """Per class a row; all have the same keys, the first of them `class`."""

    def draw(self, folder: Path) -> list[Path]:
        """Writes pictures of the result into a folder and returns their files; none where a table says it all."""
        return []
