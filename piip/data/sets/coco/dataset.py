"""Instance data in COCO format: images, boxes, masks, and what metrics compare results with."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import numpy as np
import torch
from pycocotools import mask as mask_utils
from torch import Tensor

from piip.conventions import MAX_IMAGE_PIXELS
from piip.data.folders import check_image_files
from piip.data.images import read_sized_image
from piip.data.records import Records
from piip.data.sets.base import ImageDataset
from piip.data.sets.coco.annotations import Annotation, ImageRecord, clip_box, read_annotations
from piip.data.sets.coco.rle import Rle, decode, to_rle
from piip.errors import DataError

logger = logging.getLogger(__name__)


class CocoDataset(ImageDataset):
    """Images and instance annotations in COCO format.

    images: folder of the image files. annotations: the JSON file.
    training: leave out what the released recipe does not train on: images without annotations (unless keep_empty) and
    images with a side below min_side pixels. Evaluation keeps every image.
    max_image_pixels: larger images are refused from their header.
    masks: whether to read masks, where the file has any.

    category_ids: id in the file per label. has_masks: whether targets have masks. report: what was dropped or clipped,
    by the rules of piip/data/annotations.py; one line of it is logged.
    Raises DataError naming the file and entry at fault.
    """

    def __init__(
        self,
        *,
        images: Path,
        annotations: Path,
        training: bool,
        keep_empty: bool = False,
        min_side: int = 32,
        max_image_pixels: int = MAX_IMAGE_PIXELS,
        masks: bool = True,
    ) -> None:
        file = read_annotations(annotations)
        self.folder, self.source = images, annotations
        self.max_image_pixels = max_image_pixels
        self.class_names, self.category_ids = file.class_names, file.category_ids
        self.has_masks, self.report = file.has_masks and masks, file.report
        self.provides = frozenset({"boxes", "labels", "masks"} if self.has_masks else {"boxes", "labels"})
        check_image_files(images, [record.file_name for record in file.images], annotations)
        notable = bool(self.report.counts)
        if not training and all(a.crowd for record in file.images for a in record.annotations):
            raise DataError(
                f"{annotations}: its {len(file.images)} images have no object to evaluate on, so every figure would be "
                "undefined; give annotations with objects"
            )
        kept = [record for record in file.images if not training or self._trains_on(record, keep_empty, min_side)]
        if not kept:
            raise DataError(
                f"{annotations}: none of the {len(file.images)} images can be trained on; they have no annotations "
                f"or a side below {min_side} pixels (data.train.keep_empty, data.train.min_side)"
            )
        self._records = Records(kept)
        self.aspect_ratios = np.array([record.height / record.width for record in kept])
        if self.report.counts:
            logger.log(logging.WARNING if notable else logging.INFO, "%s", self.report)

    def _trains_on(self, record: ImageRecord, keep_empty: bool, min_side: int) -> bool:
        if min(record.height, record.width) < min_side:
            self.report.add("small image left out of training", record.file_name)
            return False
        if not record.annotations and not keep_empty:
            self.report.add("image without annotations left out of training", record.file_name)
            return False
        return True

    def __len__(self) -> int:
        return len(self._records)

    def record(self, index: int) -> ImageRecord:
        """What the annotation file says of an image."""
        return self._records[index]

    def image_id(self, index: int) -> int:
        """The id in the annotation file."""
        return self.record(index).id

    def file_name(self, index: int) -> str:
        """The name in the annotation file."""
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

        boxes (n, 4) float32 xyxy, labels (n,) int64, masks (n, H, W) uint8 where the file has any, crowd_boxes (m, 4).
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
            target["masks"] = decode(_rles(objects, record), record.height, record.width)
        return target

    def truth(self, index: int) -> dict[str, Any]:
        """What evaluation counts, crowds included, with the numbers of the file: see `CocoMetric`."""
        record = self.record(index)
        annotations = record.annotations
        truth: dict[str, Any] = {
            "xywh": np.array([a.box for a in annotations], dtype=np.float64).reshape(-1, 4),
            "labels": np.array([a.label for a in annotations], dtype=np.int64),
            "crowd": np.array([a.crowd for a in annotations], dtype=bool),
        }
        areas = [a.box[2] * a.box[3] for a in annotations]
        if self.has_masks:
            truth["rles"] = _rles(list(annotations), record)
            areas = [float(mask_utils.area(rle)) for rle in truth["rles"]]
        given = [area if a.area is None else a.area for a, area in zip(annotations, areas, strict=True)]
        return truth | {"areas": np.array(given, dtype=np.float64)}


def _boxes(annotations: list[Annotation], record: ImageRecord) -> Tensor:
    boxes = [clip_box(a.box, record.height, record.width) for a in annotations]
    return torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4)


def _rles(annotations: list[Annotation], record: ImageRecord) -> list[Rle]:
    return [to_rle(a.segmentation, record.height, record.width) for a in annotations]
