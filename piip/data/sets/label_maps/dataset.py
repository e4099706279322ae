"""Images and, in PNG files of the same names, the label of every pixel: the layout of ADE20K and many others."""

from __future__ import annotations

import logging

import numpy as np
import torch
from torch import Tensor

from piip.conventions import NO_LABEL
from piip.data.findings import Findings
from piip.data.images import read_indices, read_sized_image
from piip.data.records import Records
from piip.data.sets.base import ImageDataset
from piip.data.sets.label_maps.class_names import read_class_names
from piip.data.sets.label_maps.config import LabelMapData
from piip.data.sets.label_maps.pairs import check_pairs, find_pairs, label_fault
from piip.errors import DataError

logger = logging.getLogger(__name__)


class LabelMapDataset(ImageDataset):
    """Images and label maps for semantic segmentation.

    The map of the image `a/b.jpg` is `a/b.png`: a grey or palette PNG of 1 to 16 bits whose stored numbers are the
    labels. Maps belong to upright pixels, as images are read. A map without an image is left out with a warning.

    Pairs and the headers of the maps are checked at once, the pixels of a file when it is read.
    Raises DataError for images without a map, two images with the same map, files that are not PNGs of one number per
    pixel, and links in a circle.
    """

    provides = frozenset({"label_map"})

    def __init__(self, config: LabelMapData) -> None:
        self.source, self.labels, self.report = config.images, config.labels, Findings(str(config.labels))
        self.class_names, self.max_image_pixels = read_class_names(config.class_names), config.max_image_pixels
        if not 0 < len(self.class_names) <= NO_LABEL:
            raise DataError(f"{len(self.class_names)} classes for {self.labels}; label maps may have 1 to {NO_LABEL}")
        self._first = int(config.reduce_zero_label)
        pairs = [*find_pairs(config, self.report)]
        findings = Findings(str(config.labels))
        check_pairs(config, pairs, len(self.class_names), findings)
        findings.raise_errors(config.labels)
        self._pairs = Records(pairs)
        self.aspect_ratios = np.array([pair.height / pair.width for pair in pairs])
        if self.report.counts:
            logger.warning("%s", self.report)

    def __len__(self) -> int:
        return len(self._pairs)

    def image_id(self, index: int) -> str:
        """The image's path relative to its folder."""
        return self._pairs[index].image

    def image(self, index: int) -> Tensor:
        """The image, uint8 RGB (3, H, W), upright. Raises DataError when it is damaged or not of its map's size."""
        pair = self._pairs[index]
        return read_sized_image(
            self.source / pair.image,
            size=(pair.height, pair.width),
            source=self.labels / pair.labels,
            max_pixels=self.max_image_pixels,
        )

    def target(self, index: int) -> dict[str, Tensor]:
        """label_map: uint8 (H, W), 255 for no label. Raises DataError for a damaged map and labels without a class."""
        path = self.labels / self._pairs[index].labels
        stored = read_indices(path, self.max_image_pixels)
        unlabelled = (stored == NO_LABEL) | (stored < self._first)
        labels = np.where(unlabelled, NO_LABEL, stored - self._first)
        fault = label_fault(path, stored, len(self.class_names), self._first)
        if fault:
            raise DataError(fault)
        return {"label_map": torch.from_numpy(labels.astype(np.uint8))}
