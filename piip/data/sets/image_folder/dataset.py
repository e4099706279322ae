"""Images sorted into one folder per class, the layout of ImageNet."""

from __future__ import annotations

import logging

import numpy as np
import torch
from torch import Tensor

from piip.data.findings import Findings
from piip.data.folders import IRREGULAR, UNREAD, list_folder, list_images
from piip.data.images import IMAGE_SUFFIXES, read_image
from piip.data.records import Records
from piip.data.sets.base import ImageDataset
from piip.data.sets.image_folder.class_names import distinct_names, read_folder_names
from piip.data.sets.image_folder.config import ImageFolderData
from piip.data.split import names_in_part
from piip.errors import DataError, first_few

logger = logging.getLogger(__name__)

_EMPTY = "class folder without images"


class ImageFolderDataset(ImageDataset):
    """Images labelled by the folder below `config.root` that they lie in, at any depth.

    Without a class-name file every folder is a class, in order of their names, as torchvision's ImageFolder has it.
    With one, such as a line 'n01440764 tench' per class, folders that it does not list are left out.
    Which files count is said by `list_images`; what it passes over is in a warning. An empty folder keeps its
    label, with a warning: a small validation set need not have every class.
    Raises DataError for a missing root, folders missing from it, bad lines, links in a circle, and no image at all.
    """

    provides = frozenset({"label"})

    def __init__(self, config: ImageFolderData) -> None:
        root, listed = config.root, config.class_names
        self.source, self.max_image_pixels, self.report = root, config.max_image_pixels, Findings(str(root))
        found, loose, _ = list_folder(root, IMAGE_SUFFIXES)
        hint = "; images lie directly in it, but need a folder per class" if loose else ""
        if not found:
            raise DataError(f"no class folders in {root}{hint}")
        names = {folder: folder for folder in found} if listed is None else read_folder_names(listed)
        missing = [folder for folder in names if folder not in found]
        if missing:
            raise DataError(
                f"{len(missing)} of the {len(names)} class folders that {listed} lists are missing from {root}: "
                f"{first_few(missing)}; add them, or correct the file"
            )
        for folder in found:
            if folder not in names:
                self.report.add(f"folder left out, not listed in {listed}", folder)
        self.folders, self.class_names = list(names), distinct_names(names)
        self._labels_by_folder = {folder: label for label, folder in enumerate(self.folders)}
        files: list[str] = []
        for folder in self.folders:
            own = [*list_images(root, self.report, folder)]
            if not own:
                self.report.add(_EMPTY, folder)
            files += own
        kept = names_in_part(files, config.part)
        self._files = Records(file for file in files if file in kept)
        if not len(self._files):
            raise DataError(f"no images in the {len(names)} class folders of {root}{hint}")
        # Every image comes out square, so none has another shape than the next.
        self.aspect_ratios = np.ones(len(self._files))
        if self.report.counts:
            level = logging.WARNING if {_EMPTY, IRREGULAR, UNREAD} & self.report.counts.keys() else logging.INFO
            logger.log(level, "%s", self.report)

    def __len__(self) -> int:
        return len(self._files)

    def image_id(self, index: int) -> str:
        """The file's path relative to the root."""
        return self._files[index]

    def image(self, index: int) -> Tensor:
        """The image, uint8 RGB (3, H, W), upright. Raises DataError when it is damaged."""
        return read_image(self.source / self._files[index], self.max_image_pixels)

    def target(self, index: int) -> dict[str, Tensor]:
        """label: int64 ()."""
        return {"label": torch.tensor(self._labels_by_folder[self._files[index].partition("/")[0]])}
