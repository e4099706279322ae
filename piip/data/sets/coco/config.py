"""The settings of instances in COCO format."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Literal

from pydantic import Field

from piip.data.sets.instances.config import InstanceData

if TYPE_CHECKING:
    from piip.data.sets.instances.records import Instances


class CocoData(InstanceData):
    """Images and instance annotations in COCO format, or what tools export as such."""

    type: Literal["coco"] = "coco"
    images: Path
    annotations: Path
    crowds: Literal["auto", "objects", "regions"] = Field(
        "auto",
        description="annotations with iscrowd 1: objects like others, or regions as COCO has them; auto takes them for "
        "objects where no other has a segmentation, as in exports of brush and SAM masks",
    )

    def read(self) -> Instances:
        from piip.data.sets.coco.annotations import read_annotations

        return read_annotations(self.annotations, self.images, masks=self.masks, crowds=self.crowds)
