"""The settings of images with labels as YOLO trains on them."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Literal

from pydantic import Field

from piip.data.sets.instances.config import InstanceData

if TYPE_CHECKING:
    from piip.data.sets.instances.records import Instances


class YoloData(InstanceData):
    """Images and text files of boxes or polygons in fractions of the image, with a data.yaml or classes.txt."""

    type: Literal["yolo"] = "yolo"
    root: Path = Field(description="the data.yaml, or a folder that holds it, or one with classes.txt")
    split: str = Field("train", description="key of the data.yaml: train, val or test")

    def read(self) -> Instances:
        from piip.data.sets.yolo.reader import read_yolo

        return read_yolo(self.root, self.split)
