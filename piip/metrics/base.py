"""What the engine knows of a metric."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Generic, TypeVar

import torch.distributed as dist

from piip.conventions import ImageId

Found = TypeVar("Found")


class Metric(ABC, Generic[Found]):
    """Scores results against the truth, both in each image's original pixels, over one process or several.

    Found: what is kept per image, picklable. An image that comes again, or to several ranks, counts once.
    badness: what the number of this name in `records` counts, in words.
    """

    badness: ClassVar[str] = ""

    def __init__(self) -> None:
        self._found: dict[ImageId, Found] = {}

    @abstractmethod
    def update(self, results: Sequence[Any], truths: Sequence[Mapping[str, Any]], image_ids: Sequence[ImageId]) -> None:
        """Takes the results of a batch, one per image, on any device.

        truths: what the data set says of each image (`ImageDataset.truth`): arrays and plain values on the host.
        """

    def miss(self, truth: Mapping[str, Any], image_id: ImageId) -> None:
        """Counts an image that could not be read, of which nothing was found. A metric may leave it out instead."""

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
        """One row per class; all have the same keys, the first of them `class`."""

    def records(self) -> dict[ImageId, dict[str, Any]]:
        """What JSON can say of each image, with its `badness`, a number that is the higher the worse the results are.

        A `score_threshold` among it says which detections count. Empty for a metric that has nothing to say.
        """
        return {}

    def details(self) -> dict[str, Any]:
        """Figures beside those of `compute` that take longer, as JSON can hold them."""
        return {}

    def draw(self, folder: Path) -> list[Path]:
        """Writes pictures of the result into a folder and returns their files; none where a table says it all."""
        return []
