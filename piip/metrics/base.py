"""What the engine knows of a metric."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Generic, TypeVar

import torch.distributed as dist

# What messages and results know an image by: its number in an annotation file, or its own file.
ImageId = int | str

Found = TypeVar("Found")


class Metric(ABC, Generic[Found]):
    """Scores results, in original pixels, over one process or several.

    Found: what is kept of an image, picklable. An image that comes again, or to several ranks, counts once.
    """

    def __init__(self) -> None:
        self._found: dict[ImageId, Found] = {}

    @abstractmethod
    def update(self, results: Sequence[Any], image_ids: Sequence[ImageId]) -> None:
        """Takes the results of a batch, one an image, on any device."""

    def synchronize(self) -> None:
        """Merges what all ranks have found into every rank. All ranks must call it; any may have seen nothing."""
        if dist.is_available() and dist.is_initialized():
            parts: list[Any] = [None] * dist.get_world_size()
            dist.all_gather_object(parts, self._found)
            self._found = {image_id: found for part in parts for image_id, found in part.items()}

    @abstractmethod
    def compute(self) -> Mapping[str, float | None]:
        """The figures by name, the main one, which is better the higher it is, first; None where there is none."""

    @abstractmethod
    def table(self) -> list[dict[str, Any]]:
        """Per class a row; all have the same keys, the first of them `class`."""

    def draw(self, folder: Path) -> list[Path]:
        """Writes pictures of the result into a folder and returns their files; none where a table says it all."""
        return []
