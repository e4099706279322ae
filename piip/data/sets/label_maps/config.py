"""The settings of images with label maps."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Literal

from pydantic import Field

from piip.data.sets.config import DatasetConfig
from piip.metrics.config import MetricConfig, MIoUConfig

if TYPE_CHECKING:
    from piip.data.sets.label_maps.dataset import LabelMapDataset


class LabelMapData(DatasetConfig):
    """Images and, in PNG files of the same stem, the label of every pixel."""

    type: Literal["label_maps"] = "label_maps"
    images: Path = Field(description="folder of the images, with subfolders or without")
    labels: Path = Field(description="folder of the label PNGs, laid out like that of the images")
    class_names: tuple[str, ...] | Path | Literal["ade20k"] = Field(
        description="the names in label order, or a text file with one per line; ade20k: the 150 names of ADE20K"
    )
    reduce_zero_label: bool = Field(
        False, description="0 in the files is no label and 1 the first one, as in ADE20K; 255 is never a label"
    )

    def build(self, *, training: bool) -> LabelMapDataset:
        from piip.data.sets.label_maps.dataset import LabelMapDataset

        return LabelMapDataset(self)

    def default_metrics(self) -> tuple[MetricConfig, ...]:
        return (MIoUConfig(),)

    def known_class_names(self) -> list[str] | None:
        from piip.data.sets.label_maps.class_names import read_class_names

        return None if isinstance(self.class_names, Path) else read_class_names(self.class_names)
