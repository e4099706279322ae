"""The settings that every data set has."""

from __future__ import annotations

import os
from abc import abstractmethod
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from pydantic import Field

from piip.config.strict import Component
from piip.conventions import MAX_IMAGE_PIXELS
from piip.errors import DataError

if TYPE_CHECKING:
    from piip.data.check import Split
    from piip.data.find import FoundData, Tree
    from piip.data.sets.base import ImageDataset
    from piip.metrics.config import MetricConfig


class DatasetConfig(Component):
    """Images with their labels, boxes or masks, and the format in which these are written down.

    find_rank: data sets with a lower one are asked first what a folder holds.
    """

    find_rank: ClassVar[int] = 0
    max_image_pixels: int = Field(MAX_IMAGE_PIXELS, gt=0, description="larger images are refused from their header")

    @abstractmethod
    def build(self, *, training: bool) -> ImageDataset:
        """The data set; a generated one is written first. Raises DataError naming file and entry at fault."""

    @classmethod
    def find(cls, tree: Tree) -> FoundData | None:
        """What a folder holds, where it is data of this kind (see `piip.data.find`). Raises DataError for faults."""
        return None

    @classmethod
    def of_file(cls, file: Path, images: Path | None) -> DatasetConfig | None:
        """The data that one file describes, where it is of this kind. images: their folder, if it is known."""
        return None

    def settings(self) -> dict[str, Any]:
        """What a YAML says of the data: its type and what is not as by default."""
        return {"type": self.type} | self.model_dump(mode="json", exclude_defaults=True)

    def inspect(self, name: str) -> Split:
        """What is said of the data, and what is wrong with it, for `piip data check`. name: of the split."""
        raise DataError(f"data of type {self.type} cannot be checked; `DatasetConfig.inspect` says how")

    def default_metrics(self) -> tuple[MetricConfig, ...]:
        """What results on this data are measured by where the experiment names no metrics."""
        return ()

    def known_class_names(self) -> list[str] | None:
        """The names of a public data set's classes, in label order, where the config says which it is."""
        return None

    def check_files(self, key: str) -> None:
        """Raises DataError for a file or folder that is not there. key: of this data set, for the message."""
        for name in type(self).model_fields:
            path = getattr(self, name)
            if isinstance(path, Path) and not os.path.exists(path):
                beside = "" if path.is_absolute() else f" (relative to the current directory {Path.cwd()})"
                raise DataError(f"{key}.{name}: there is no {path}{beside}")
