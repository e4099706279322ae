"""The settings of images with an XML file each, as Pascal VOC has them."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Literal

from pydantic import Field

from piip.data.sets.instances.config import InstanceData

if TYPE_CHECKING:
    from piip.data.sets.instances.records import Instances


class VocData(InstanceData):
    """Images and XML files in Pascal VOC's format, in one folder or in Annotations, JPEGImages and ImageSets."""

    type: Literal["voc"] = "voc"
    root: Path
    split: str | None = Field(None, description="only the images that ImageSets/Main/SPLIT.txt lists")
    class_names: tuple[str, ...] | None = Field(None, description="in label order; null: those of all files, sorted")

    def read(self) -> Instances:
        from piip.data.sets.voc.reader import read_voc

        return read_voc(self.root, split=self.split, class_names=self.class_names)
