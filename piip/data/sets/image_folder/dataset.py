"""Images sorted into one folder per class, the layout of ImageNet."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from piip.data.class_names import distinct_names, read_folder_names
from piip.data.folders import IRREGULAR, UNREAD, list_folder, list_images
from piip.data.images import IMAGE_SUFFIXES, MAX_IMAGE_PIXELS, read_image
from piip.data.records import Records
from piip.data.report import Report
from piip.data.sets.base import ImageDataset
from piip.errors import DataError, first_few
from piip.metrics.accuracy import AccuracyMetric

logger = logging.getLogger(__name__)

_EMPTY = "class folder without images"


class ImageFolderDataset(ImageDataset):
    """Images labelled by the folder below `root` that they lie in, at any depth.

    Without a class-name file every folder is a class, in order of their names, as torchvision's ImageFolder has it.
    Links are followed. Names that begin with a dot, and files without an image's ending, are passed over; with a
    warning images of other formats, and what is no regular file.
    An empty folder keeps its label, with a warning: a small validation set need not have every class.
    class_names: text file with 'folder name' a line, in label order, such as 'n01440764 tench'; a line of one word is
    folder and name in one. Folders that it does not list are left out. 'imagenet' stands for the file of ImageNet-1k.
    Raises DataError for a missing root, folders missing from it, bad lines, links in a circle, and no image at all.
    """

    provides = frozenset({"label"})

    def __init__(
        self,
        *,
        root: Path,
        class_names: Path | Literal["imagenet"] | None = None,
        max_image_pixels: int = MAX_IMAGE_PIXELS,
    ) -> None:
        self.source, self.max_image_pixels, self.report = root, max_image_pixels, Report(str(root))
        found, loose, _ = list_folder(root, IMAGE_SUFFIXES)
        hint = "; images lie directly in it, but need a folder per class" if loose else ""
        if not found:
            raise DataError(f"no class folders in {root}{hint}")
        names = {folder: folder for folder in found} if class_names is None else read_folder_names(class_names)
        missing = [folder for folder in names if folder not in found]
        if missing:
            raise DataError(
                f"{len(missing)} of the {len(names)} class folders that {class_names} lists are missing from {root}: "
                f"{first_few(missing)}; add them, or correct the file"
            )
        for folder in found:
            if folder not in names:
                self.report.add(f"folder left out, not listed in {class_names}", folder)
        self.folders, self.class_names = list(names), distinct_names(names)
        self._labels_by_folder = {folder: label for label, folder in enumerate(self.folders)}
        self._files = Records(self._list())
        if not len(self._files):
            raise DataError(f"no images in the {len(names)} class folders of {root}{hint}")
        # Every image comes out square, so none has another shape than the next.
        self.aspect_ratios = np.ones(len(self._files))
        if self.report.counts:
            level = logging.WARNING if {_EMPTY, IRREGULAR, UNREAD} & self.report.counts.keys() else logging.INFO
            logger.log(level, "%s", self.report)

    def _list(self) -> Iterator[str]:
        """The files of one class after the other, relative to the root."""
        for folder in self.folders:
            files = list(list_images(self.source, self.report, folder))
            if not files:
                self.report.add(_EMPTY, folder)
            yield from files

    def __len__(self) -> int:
        return len(self._files)

    def image_id(self, index: int) -> str:
        """The file's path relative to the root."""
        return self._files[index]

    def label_of(self, image_id: str) -> int:
        """The label of an image by its id."""
        return self._labels_by_folder[image_id.partition("/")[0]]

    def image(self, index: int) -> Tensor:
        """The image, uint8 RGB (3, H, W), upright. Raises DataError when it is damaged."""
        return read_image(self.source / self._files[index], self.max_image_pixels)

    def target(self, index: int) -> dict[str, Tensor]:
        """label: int64 ()."""
        return {"label": torch.tensor(self.label_of(self._files[index]))}

    def metric(self, *, backend: Literal["faster", "pycocotools"] = "faster") -> AccuracyMetric:
        """Top-1 and top-5 accuracy."""
        return AccuracyMetric(self.class_names, self.label_of)
