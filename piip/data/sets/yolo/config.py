"""The settings of images with labels as YOLO trains on them."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, Literal

from pydantic import Field

from piip.data.sets.instances.config import InstanceData

if TYPE_CHECKING:
    from piip.data.find import FoundData, Tree
    from piip.data.sets.instances.records import Instances


class YoloData(InstanceData):
    """Images and text files of boxes or polygons in fractions of the image, with a data.yaml or classes.txt."""

    find_rank: ClassVar = 2
    type: Literal["yolo"] = "yolo"
    root: Path = Field(description="the data.yaml, or a folder that holds it, or one with classes.txt")
    split: str = Field("train", description="key of the data.yaml: train, val or test")

    @classmethod
    def find(cls, tree: Tree) -> FoundData | None:
        from piip.data.sets.yolo.find import find_yolo

        return find_yolo(tree)

    def read(self) -> Instances:
        from piip.data.sets.yolo.reader import read_yolo

        return read_yolo(self.root, self.split)
