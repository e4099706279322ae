"""Images with boxes and perhaps masks, from whatever format they were read."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from piip.data.images import read_sized_image
from piip.data.records import Records
from piip.data.sets.base import ImageDataset
from piip.data.sets.instances.config import InstanceData
from piip.data.sets.instances.masks import decode, to_rle
from piip.data.sets.instances.records import Annotation, ImageRecord, clip_box
from piip.data.sizes import check_sizes
from piip.errors import DataError

logger = logging.getLogger(__name__)


class InstanceDataset(ImageDataset):
    """Images, boxes, labels and masks of the records that a config reads.

    training: leave out what the released recipe does not train on: images without annotations (unless keep_empty) and
    images with a side below min_side pixels. Evaluation keeps every image.

    category_ids: id in the file per label. has_masks: whether any object has a mask. report: what was repaired or left
    out; one line of it is logged.
    Raises DataError naming the file and every entry at fault.
    """

    def __init__(self, config: InstanceData, *, training: bool) -> None:
        found = config.load()
        self.folder, self.source, self.report = found.folder, found.source, found.findings
        self.max_image_pixels = config.max_image_pixels
        self.class_names, self.category_ids = found.class_names, found.category_ids
        self.has_masks = found.has_masks and config.masks
        self.provides = frozenset({"boxes", "labels", "masks"} if self.has_masks else {"boxes", "labels"})
        sizes = [(found.folder / image.file_name, (image.height, image.width), found.source) for image in found.images]
        check_sizes(sizes, "image of another size than annotated", found.findings, config.max_image_pixels)
        found.findings.raise_errors(found.source)
        notable = bool(found.findings.of("repaired", "left out"))
        kept = [image for image in found.images if not training or self._trains_on(image, config)]
        annotations = [a for image in kept for a in image.annotations]
        if not training and all(a.crowd for a in annotations):
            raise DataError(
                f"{self.source}: its {len(found.images)} images have no object to evaluate on, so every figure would "
                f"be undefined; give annotations with objects{self._why(notable)}"
            )
        if not kept or (training and not config.keep_empty and not any(a.trainable for a in annotations)):
            raise DataError(
                f"{self.source}: none of the {len(found.images)} images can be trained on; they have no annotations "
                f"or a side below {config.min_side} pixels (data.train.keep_empty, data.train.min_side)"
                f"{self._why(notable)}"
            )
        if training and annotations and all(a.crowd or a.ignored or not a.trainable for a in annotations):
            raise DataError(f"{self.source}: no object is left to train on{self._why(notable)}")
        self._records = Records(kept)
        self.aspect_ratios = np.array([record.height / record.width for record in kept])
        if self.report.counts:
            logger.log(logging.WARNING if notable else logging.INFO, "%s", self.report)

    def _why(self, notable: bool) -> str:
        return f". {self.report}" if notable else ""

    def _trains_on(self, record: ImageRecord, config: InstanceData) -> bool:
        if min(record.height, record.width) < config.min_side:
            self.report.add("small image left out of training", record.file_name)
            return False
        if not record.annotations and not config.keep_empty:
            self.report.add("image without annotations left out of training", record.file_name)
            return False
        return True

    def __len__(self) -> int:
        return len(self._records)

    def record(self, index: int) -> ImageRecord:
        """What the files say of an image."""
        return self._records[index]

    def image_id(self, index: int) -> int | str:
        """The id in the annotation file, or the image's file."""
        return self.record(index).id

    def file_name(self, index: int) -> str:
        """The file in the folder of the images."""
        return self.record(index).file_name

    def image(self, index: int) -> Tensor:
        """The image, uint8 RGB (3, H, W), upright. Raises DataError when it is damaged or not of the annotated size."""
        record = self.record(index)
        return read_sized_image(
            self.folder / record.file_name,
            size=(record.height, record.width),
            source=self.source,
            max_pixels=self.max_image_pixels,
        )

    def target(self, index: int) -> dict[str, Tensor]:
        """The training target in pixels of the original image.

        boxes (n, 4) float32 xyxy, labels (n,) int64, crowd_boxes (m, 4); where the data has masks, masks (n, H, W)
        uint8, and, where objects of this image have none, has_mask (n,) bool.
        """
        record = self.record(index)
        ignored = [a for a in record.annotations if a.crowd or a.ignored]
        objects = [a for a in record.annotations if not (a.crowd or a.ignored) and a.trainable]
        target = {
            "boxes": _boxes(objects, record),
            "labels": torch.tensor([a.label for a in objects], dtype=torch.int64),
            "crowd_boxes": _boxes(ignored, record),
        }
        if self.has_masks:
            held = torch.tensor([a.segmentation is not None for a in objects], dtype=torch.bool)
            size = record.height, record.width
            masks = decode([to_rle(a.segmentation, *size) for a in objects if a.segmentation is not None], *size)
            target["masks"] = torch.from_numpy(masks)
            if not held.all():
                target["masks"] = torch.zeros(len(objects), *size, dtype=torch.uint8)
                target["masks"][held] = torch.from_numpy(masks)
                target["has_mask"] = held
        return target

    def truth(self, index: int) -> dict[str, Any]:
        """What evaluation counts, crowds included, with the numbers of the file: see `CocoMetric`.

        Of the run lengths, which are there if any object of the data has a mask, those of objects without are None.
        """
        record = self.record(index)
        annotations, size = record.annotations, (record.height, record.width)
        truth: dict[str, Any] = {
            "xywh": np.array([a.box for a in annotations], dtype=np.float64).reshape(-1, 4),
            "labels": np.array([a.label for a in annotations], dtype=np.int64),
            "crowd": np.array([a.crowd for a in annotations], dtype=bool),
            "areas": np.array([a.measure(*size) for a in annotations], dtype=np.float64),
        }
        if self.has_masks:
            truth["rles"] = [None if a.segmentation is None else to_rle(a.segmentation, *size) for a in annotations]
        return truth


def _boxes(annotations: Sequence[Annotation], record: ImageRecord) -> Tensor:
    boxes = [clip_box(a.box, record.height, record.width) for a in annotations]
    return torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4)
