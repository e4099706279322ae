"""What the settings of every data set are."""

from __future__ import annotations

import os
from abc import abstractmethod
from pathlib import Path
from typing import TYPE_CHECKING

from pydantic import Field

from piip.config.strict import Component
from piip.errors import DataError

if TYPE_CHECKING:
    from piip.data.sets.base import ImageDataset


class DatasetConfig(Component):
    """Images with what is known of them, and the format in which it is written down."""

    max_image_pixels: int = Field(100_000_000, gt=0, description="larger images are refused from their header")

    @abstractmethod
    def build(self, *, training: bool) -> ImageDataset:
        """The data set; a generated one is written first. Raises DataError naming file and entry at fault."""

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
