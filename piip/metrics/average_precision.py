"""COCO average precision of boxes and masks (Lin et al., 2014), over one process or several."""

from __future__ import annotations

import contextlib
import copy
import io
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import faster_coco_eval
import numpy as np
import torch
from pycocotools import mask as mask_utils
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from piip.errors import PiipError
from piip.metrics.base import ImageId, Metric
from piip.run_lengths import Rle, encode

if TYPE_CHECKING:
    from piip.data.sets.coco.dataset import CocoDataset

_KINDS = {"box": "bbox", "mask": "segm"}
# The order of the metrics: suffix, index of the IoU threshold (None: mean over 0.50 to 0.95), index of the area range.
_FIGURES = (("", None, 0), ("50", 0, 0), ("75", 5, 0), ("_small", None, 1), ("_medium", None, 2), ("_large", None, 3))


class _Detections(NamedTuple):
    """Of one image: boxes (n, 4) xywh, scores (n,), labels (n,), and n run-length masks or None."""

    boxes: np.ndarray[Any, Any]
    scores: np.ndarray[Any, Any]
    labels: np.ndarray[Any, Any]
    masks: list[Rle] | None


class CocoMetric(Metric[_Detections]):
    """COCO AP over a data set.

    update() takes results in original pixels; masks are run-length encoded at once, so that memory stays small.
    compute() returns box_ap, box_ap50, box_ap75, box_ap_small, box_ap_medium, box_ap_large, and the same for mask where
    data and results have masks. A figure without ground truth (no small object, say) is None, for which COCO has -1.
    Images for which no result came count as images without detections. Images and classes are numbered from 1 for
    COCO's code, which holds ids in 64 bits or in floating point: those of the file may be of any size.
    backend: "faster" (faster-coco-eval) or "pycocotools"; both give the same figures.
    """

    def __init__(self, dataset: CocoDataset, *, backend: Literal["faster", "pycocotools"] = "faster") -> None:
        super().__init__()
        self._dataset, self._backend = dataset, backend
        self._precision: dict[str, np.ndarray[Any, Any]] | None = None

    def update(self, results: Sequence[dict[str, Any]], image_ids: Sequence[ImageId]) -> None:
        """results: per image boxes (n, 4) xyxy, scores (n,), labels (n,), on any device, and perhaps masks.

        These are compressed run lengths, `rles`, or pixels, `masks` (n, H, W) bool.
        """
        for result, image_id, numbers in zip(results, image_ids, _to_host(results), strict=True):
            corners, scores, labels = numbers[:, :4], numbers[:, 4], numbers[:, 5].astype(np.int64)
            boxes = np.concatenate([corners[:, :2], corners[:, 2:] - corners[:, :2]], axis=1)
            rles = encode(result["masks"]) if "masks" in result else result.get("rles")
            self._found[image_id] = _Detections(boxes, scores, labels, rles)
        self._precision = None

    def synchronize(self) -> None:
        super().synchronize()
        self._precision = None

    def compute(self) -> dict[str, float | None]:
        """The figures in [0, 1] by name, the main one first."""
        figures: dict[str, float | None] = {}
        for kind, precision in self._evaluate().items():
            for suffix, iou, area in _FIGURES:
                figures[f"{kind}_ap{suffix}"] = _mean(precision[slice(None) if iou is None else iou, :, :, area, -1])
        return figures

    def table(self) -> list[dict[str, Any]]:
        """Per class a row of class, objects (crowds not counted), and box and mask AP and AP50."""
        counts = [0] * len(self._dataset.class_names)
        for index in range(len(self._dataset)):
            for annotation in self._dataset.record(index).annotations:
                counts[annotation.label] += not annotation.crowd
        rows: list[dict[str, Any]] = [
            {"class": name, "objects": count} for name, count in zip(self._dataset.class_names, counts, strict=True)
        ]  # fmt: skip
        for kind, precision in self._evaluate().items():
            for label, row in enumerate(rows):
                row[f"{kind}_ap"] = _mean(precision[:, :, label, 0, -1])
                row[f"{kind}_ap50"] = _mean(precision[0, :, label, 0, -1])
        return rows

    def _evaluate(self) -> dict[str, np.ndarray[Any, Any]]:
        """Per kind the precision (IoU thresholds, recall thresholds, labels, area ranges, detection limits)."""
        if self._precision is None:
            truth, numbers = self._numbered_truth()
            kinds = ["box"]
            with_masks = [found.masks is not None for found in self._found.values()]
            if self._dataset.has_masks and all(with_masks):
                kinds.append("mask")
            self._precision = {kind: self._evaluate_kind(kind, copy.deepcopy(truth), numbers) for kind in kinds}
        return self._precision

    def _numbered_truth(self) -> tuple[dict[str, Any], dict[ImageId, int]]:
        """The ground truth with images and classes numbered from 1, and the number of every image by its id."""
        truth = self._dataset.ground_truth()
        numbers = {image["id"]: number for number, image in enumerate(truth["images"], 1)}
        classes = {id_: number for number, id_ in enumerate(self._dataset.category_ids, 1)}
        for image in truth["images"]:
            image["id"] = numbers[image["id"]]
        for category in truth["categories"]:
            category["id"] = classes[category["id"]]
        for entry in truth["annotations"]:
            entry |= {"image_id": numbers[entry["image_id"]], "category_id": classes[entry["category_id"]]}
        return truth, numbers

    def _evaluate_kind(self, kind: str, truth: dict[str, Any], numbers: dict[ImageId, int]) -> np.ndarray[Any, Any]:
        found = dict(truth, annotations=self._as_annotations(kind, numbers))
        if self._backend == "faster":
            truth_index, found_index = (
                faster_coco_eval.COCO(data, print_function=_say_nothing) for data in (truth, found)
            )
            evaluation = faster_coco_eval.COCOeval_faster(
                truth_index, found_index, _KINDS[kind], print_function=_say_nothing, extra_calc=False
            )
            evaluation.evaluate()
            evaluation.accumulate()
        else:
            with contextlib.redirect_stdout(io.StringIO()):
                indexes = COCO(), COCO()
                for index, data in zip(indexes, (truth, found), strict=True):
                    index.dataset = data
                    index.createIndex()
                evaluation = COCOeval(*indexes, _KINDS[kind])
                evaluation.evaluate()
                evaluation.accumulate()
        return np.asarray(evaluation.eval["precision"])

    def _as_annotations(self, kind: str, numbers: dict[ImageId, int]) -> list[dict[str, Any]]:
        """The detections in COCO's form, numbered from 1. The area decides the size range: of the mask for masks."""
        annotations: list[dict[str, Any]] = []
        classes = len(self._dataset.class_names)
        for image_id in self._found:
            if image_id not in numbers:
                raise PiipError(f"results for image {image_id}, which {self._dataset.source} does not list")
        for image_id in sorted(self._found, key=numbers.__getitem__):
            boxes, scores, labels, masks = self._found[image_id]
            for i in range(len(scores)):
                if not 0 <= labels[i] < classes:
                    raise PiipError(f"results with label {labels[i]}, but {self._dataset.source} has {classes} classes")
                entry = {
                    "id": len(annotations) + 1,
                    "image_id": numbers[image_id],
                    "category_id": int(labels[i]) + 1,
                    "score": float(scores[i]),
                    "bbox": boxes[i].tolist(),
                    "area": float(boxes[i, 2] * boxes[i, 3]),
                    "iscrowd": 0,
                }
                if kind == "mask" and masks is not None:
                    entry |= {"segmentation": masks[i], "area": float(mask_utils.area(masks[i]))}
                annotations.append(entry)
        return annotations


def _to_host(results: Sequence[dict[str, Any]]) -> list[np.ndarray[Any, Any]]:
    """Per image its boxes, scores and labels (n, 6) float64, in one copy from the device."""
    if not results:
        return []
    rows = [torch.column_stack([result[name].double() for name in ("boxes", "scores", "labels")]) for result in results]
    counts = [len(part) for part in rows]
    return np.split(torch.cat(rows).detach().cpu().numpy(), np.cumsum(counts)[:-1])


def _say_nothing(*_: object) -> None: ...


def _mean(precision: np.ndarray[Any, Any]) -> float | None:
    """Mean over the cells that have ground truth; None when none has, where COCO has -1."""
    defined = precision[precision > -1]
    return float(defined.mean()) if defined.size else None
