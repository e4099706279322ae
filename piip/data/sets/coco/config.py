"""The settings of instances in COCO format."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, Literal

from pydantic import Field

from piip.data.sets.instances.config import InstanceData

if TYPE_CHECKING:
    from piip.data.find import FoundData, Tree
    from piip.data.sets.instances.records import Instances


class CocoData(InstanceData):
    """Images and instance annotations in COCO format, or what tools export as such."""

    find_rank: ClassVar = 1
    type: Literal["coco"] = "coco"
    images: Path
    annotations: Path
    crowds: Literal["auto", "objects", "regions"] = Field(
        "auto",
        description="annotations with iscrowd 1: objects like others, or regions as COCO has them; auto takes them for "
        "objects where no other has a segmentation, as in exports of brush and SAM masks",
    )

    @classmethod
    def find(cls, tree: Tree) -> FoundData | None:
        from piip.data.sets.coco.find import find_coco

        return find_coco(tree)

    @classmethod
    def of_file(cls, file: Path, images: Path | None) -> CocoData | None:
        from piip.data.sets.coco.find import coco_of_file

        if file.suffix.lower() != ".json":
            return None
        return coco_of_file(file) if images is None else cls(images=images, annotations=file)

    def read(self) -> Instances:
        from piip.data.sets.coco.annotations import read_annotations

        return read_annotations(self.annotations, self.images, masks=self.masks, crowds=self.crowds)
