"""Instance data in COCO format: images, boxes, masks, and what a metric needs as ground truth."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from pycocotools import mask as mask_utils
from torch import Tensor

from piip.data.folders import check_image_files
from piip.data.images import MAX_IMAGE_PIXELS, read_sized_image
from piip.data.records import Records
from piip.data.sets.base import ImageDataset
from piip.data.sets.coco.annotations import Annotation, ImageRecord, clip_box, read_annotations
from piip.data.sets.coco.rle import Rle, decode, to_rle
from piip.errors import CheckError, DataError
from piip.metrics.average_precision import CocoMetric

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

    def objects(self, index: int) -> dict[str, Tensor]:
        """A perfect detector's result for an image: every object that evaluation counts, with a score of 1."""
        record = self.record(index)
        objects = [a for a in record.annotations if not a.crowd]
        corners = [(a.box[0], a.box[1], a.box[0] + a.box[2], a.box[1] + a.box[3]) for a in objects]
        result = {
            "boxes": torch.tensor(corners, dtype=torch.float32).reshape(-1, 4),
            "scores": torch.ones(len(objects)),
            "labels": torch.tensor([a.label for a in objects], dtype=torch.int64),
        }
        if self.has_masks:
            result["masks"] = decode(_rles(objects, record), record.height, record.width).bool()
        return result

    def ground_truth(self) -> dict[str, list[dict[str, Any]]]:
        """The cleaned annotations as a COCO dictionary, crowds included, every segmentation as compressed run lengths.

        Annotations are numbered from 1, whatever the file does: COCO's matching takes the id 0 for "no match".
        """
        images: list[dict[str, Any]] = []
        annotations: list[dict[str, Any]] = []
        for index in range(len(self)):
            record = self.record(index)
            images.append({"id": record.id, "height": record.height, "width": record.width})
            for a in record.annotations:
                entry = {
                    "id": len(annotations) + 1,
                    "image_id": record.id,
                    "category_id": self.category_ids[a.label],
                    "bbox": list(a.box),
                    "area": a.area,
                    "iscrowd": int(a.crowd),
                }
                if self.has_masks:
                    entry["segmentation"] = to_rle(a.segmentation, record.height, record.width)
                if a.area is None:
                    rle = entry.get("segmentation")
                    entry["area"] = float(mask_utils.area(rle)) if rle else a.box[2] * a.box[3]
                annotations.append(entry)
        categories = [
            {"id": id_, "name": name} for id_, name in zip(self.category_ids, self.class_names, strict=True)
        ]  # fmt: skip
        return {"images": images, "annotations": annotations, "categories": categories}

    def metric(self, *, backend: Literal["faster", "pycocotools"] = "faster") -> CocoMetric:
        """Box and, where the file has masks, mask AP over this ground truth."""
        return CocoMetric(self, backend=backend)


def _boxes(annotations: list[Annotation], record: ImageRecord) -> Tensor:
    boxes = [clip_box(a.box, record.height, record.width) for a in annotations]
    return torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4)


def _rles(annotations: list[Annotation], record: ImageRecord) -> list[Rle]:
    return [to_rle(a.segmentation, record.height, record.width) for a in annotations]


def self_test(dataset: CocoDataset, *, backend: Literal["faster", "pycocotools"] = "faster") -> dict[str, float | None]:
    """Evaluates the ground truth as if it were the prediction. Returns the metrics; every AP must be 1.

    Raises CheckError naming the classes below 0.99: the evaluation of this data could not be trusted.
    """
    metric = dataset.metric(backend=backend)
    for index in range(len(dataset)):
        metric.update([dataset.objects(index)], [dataset.record(index).id])
    values = metric.compute()
    names = ("box_ap", "mask_ap") if dataset.has_masks else ("box_ap",)
    rows = metric.table()
    bad = [
        f"{row['class']} {name} {row[name]:.3f}"
        for row in rows
        for name in names
        if row[name] is not None and row[name] < 0.99
    ]
    if bad:
        raise CheckError(f"{dataset.source}: ground truth as prediction does not give AP 1: {', '.join(bad)}")
    return values
