"""The settings of images in a folder per class."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, Literal

from pydantic import Field

from piip.data.sets.config import DatasetConfig
from piip.data.split import PART, Part
from piip.metrics.config import AccuracyConfig, MetricConfig

if TYPE_CHECKING:
    from piip.data.check import Split
    from piip.data.find import FoundData, Tree
    from piip.data.sets.image_folder.dataset import ImageFolderDataset


class ImageFolderData(DatasetConfig):
    """Images in one folder per class, named like it: the layout of ImageNet."""

    find_rank: ClassVar = 6
    type: Literal["image_folder"] = "image_folder"
    root: Path
    class_names: Path | Literal["imagenet"] | None = Field(
        None,
        description="text file with one 'folder name' per line, which also gives the order; imagenet: the 1000 synsets "
        "and their names; else folders in their order",
    )
    part: Part = Field("all", description=PART)

    @classmethod
    def find(cls, tree: Tree) -> FoundData | None:
        from piip.data.sets.image_folder.find import find_image_folders

        return find_image_folders(tree)

    def build(self, *, training: bool) -> ImageFolderDataset:
        from piip.data.sets.image_folder.dataset import ImageFolderDataset

        return ImageFolderDataset(self)

    def inspect(self, name: str) -> Split:
        from piip.data.sets.image_folder.find import inspect_image_folders

        return inspect_image_folders(self, name)

    def default_metrics(self) -> tuple[MetricConfig, ...]:
        return (AccuracyConfig(),)

    def known_class_names(self) -> list[str] | None:
        from piip.data.sets.image_folder.class_names import distinct_names, read_folder_names

        return distinct_names(read_folder_names("imagenet")) if self.class_names == "imagenet" else None
