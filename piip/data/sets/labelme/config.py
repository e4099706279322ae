"""The settings of images with a JSON file each, as labelme writes them."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Literal

from pydantic import Field

from piip.data.sets.instances.config import InstanceData

if TYPE_CHECKING:
    from piip.data.sets.instances.records import Instances


class LabelmeData(InstanceData):
    """Images and labelme's JSON files beside them, or in a folder of their own."""

    type: Literal["labelme"] = "labelme"
    root: Path
    class_names: tuple[str, ...] | None = Field(None, description="in label order; null: those of all files, sorted")

    def read(self) -> Instances:
        from piip.data.sets.labelme.reader import read_labelme

        return read_labelme(self.root, class_names=self.class_names)
