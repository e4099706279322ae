"""The settings that every data set has."""

from __future__ import annotations

import os
from abc import abstractmethod
from pathlib import Path
from typing import TYPE_CHECKING

from pydantic import Field

from piip.config.strict import Component
from piip.conventions import MAX_IMAGE_PIXELS
from piip.errors import DataError

if TYPE_CHECKING:
    from piip.data.sets.base import ImageDataset
    from piip.metrics.config import MetricConfig


class DatasetConfig(Component):
    """Images with their labels, boxes or masks, and the format in which these are written down."""

    max_image_pixels: int = Field(MAX_IMAGE_PIXELS, gt=0, description="larger images are refused from their header")

    @abstractmethod
    def build(self, *, training: bool) -> ImageDataset:
        """The data set; a generated one is written first. Raises DataError naming file and entry at fault."""

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
