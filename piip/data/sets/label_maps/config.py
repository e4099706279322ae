"""The settings of images with label maps."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, Literal

from pydantic import Field

from piip.data.sets.config import DatasetConfig
from piip.data.split import PART, Part
from piip.metrics.config import MetricConfig, MIoUConfig

if TYPE_CHECKING:
    from piip.data.check import Split
    from piip.data.find import FoundData, Tree
    from piip.data.sets.label_maps.dataset import LabelMapDataset


class LabelMapData(DatasetConfig):
    """Images and, in PNG files of the same stem, the label of every pixel."""

    find_rank: ClassVar = 5
    type: Literal["label_maps"] = "label_maps"
    images: Path = Field(description="folder of the images, with subfolders or without")
    labels: Path = Field(description="folder of the label PNGs, laid out like that of the images")
    class_names: tuple[str, ...] | Path | Literal["ade20k"] = Field(
        description="the names in label order, or a text file with one per line; ade20k: the 150 names of ADE20K"
    )
    reduce_zero_label: bool = Field(
        False, description="0 in the files is no label and 1 the first one, as in ADE20K; 255 is never a label"
    )
    image_suffix: str = Field("", description="what stands behind the common stem in names of images, as _leftImg8bit")
    label_suffix: str = Field("", description="the same in names of label maps, as _gtFine_labelTrainIds")
    part: Part = Field("all", description=PART)

    @classmethod
    def find(cls, tree: Tree) -> FoundData | None:
        from piip.data.sets.label_maps.find import find_label_maps

        return find_label_maps(tree)

    def build(self, *, training: bool) -> LabelMapDataset:
        from piip.data.sets.label_maps.dataset import LabelMapDataset

        return LabelMapDataset(self)

    def inspect(self, name: str) -> Split:
        from piip.data.sets.label_maps.pairs import inspect_pairs

        return inspect_pairs(self, name)

    def default_metrics(self) -> tuple[MetricConfig, ...]:
        return (MIoUConfig(),)

    def known_class_names(self) -> list[str] | None:
        from piip.data.sets.label_maps.class_names import read_class_names

        return None if isinstance(self.class_names, Path) else read_class_names(self.class_names)
