"""COCO average precision of boxes and masks (Lin et al., 2014), over one process or several."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Iterator, Mapping, Sequence
from operator import itemgetter
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import faster_coco_eval
import numpy as np
import torch
from numpy.typing import NDArray
from pycocotools import mask as mask_utils
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from piip.conventions import ImageId
from piip.errors import PiipError
from piip.metrics.base import Metric
from piip.metrics.config import CocoMetricConfig
from piip.metrics.detection_report import DetectionReport
from piip.metrics.matching import Matches, match
from piip.run_lengths import Rle, encode

_KINDS = {"box": "bbox", "mask": "segm"}
# The order of the metrics: suffix, index of the IoU threshold (None: mean over 0.50 to 0.95), index of the area range.
_FIGURES = (("", None, 0), ("50", 0, 0), ("75", 5, 0), ("_small", None, 1), ("_medium", None, 2), ("_large", None, 3))


class _Objects(NamedTuple):
    """What is in an image: boxes (n, 4) xywh, labels, areas and crowd (n,), and n run-length masks, if there are any.

    The mask of an object that has none is None.
    """

    boxes: NDArray[np.float64]
    labels: NDArray[np.int64]
    areas: NDArray[np.float64]
    crowd: NDArray[np.bool_]
    masks: list[Rle | None] | None

    @classmethod
    def read(cls, truth: Mapping[str, Any]) -> _Objects:
        masks: list[Rle | None] | None = truth.get("rles")
        if masks is None and "masks" in truth:
            masks = [*encode(torch.from_numpy(truth["masks"]).bool())]
        boxes = truth["xywh"] if "xywh" in truth else _to_xywh(np.asarray(truth["boxes"], dtype=np.float64))
        areas = truth.get("areas")
        if areas is None:
            areas = boxes[:, 2] * boxes[:, 3] if masks is None else np.array(list(map(mask_utils.area, masks)), float)
        return cls(boxes, np.asarray(truth["labels"]), areas, truth.get("crowd", np.zeros(len(boxes), bool)), masks)


class _Detections(NamedTuple):
    """The result of an image: boxes (n, 4) xywh, scores (n,), labels (n,), and n run-length masks or None."""

    boxes: NDArray[np.float64]
    scores: NDArray[np.float64]
    labels: NDArray[np.int64]
    masks: list[Rle] | None


class CocoMetric(Metric[tuple[_Objects, _Detections]]):
    """COCO AP of the images that came.

    A truth holds the n objects of an image as targets do: `boxes` (n, 4) xyxy, `labels` (n,) and perhaps `masks`
    (n, H, W). Instead of boxes and masks it may have `xywh` (n, 4) float64 and `rles`, n compressed run lengths, with
    the very numbers of an annotation file, or None for objects that mask AP does not count; besides, `areas` (n,),
    which otherwise are those of the masks or boxes, and `crowd` (n,) bool for regions of many objects. All masks are
    kept as run lengths, so that memory stays small. An image that could not be read counts as one without detections.
    compute() returns box_ap, box_ap50, box_ap75, box_ap_small, box_ap_medium, box_ap_large, and the same for mask where
    data and results have masks. A figure without ground truth (no small object, say) is None, for which COCO has -1.
    Equal scores are ranked by the ids of their images, in whatever order these came. Images and classes are numbered
    from 1 for COCO's code, which holds ids in 64 bits or in floating point: those of the data may be of any size.
    """

    badness: ClassVar = "objects missed + false alarms + what the IoUs of hits lack"

    def __init__(self, config: CocoMetricConfig, class_names: Sequence[str]) -> None:
        super().__init__()
        self._backend, self._class_names = config.backend, list(class_names)
        self._precision: dict[str, NDArray[Any]] | None = None
        self._report: DetectionReport | None = None

    def update(
        self, results: Sequence[dict[str, Any]], truths: Sequence[Mapping[str, Any]], image_ids: Sequence[ImageId]
    ) -> None:
        """results: per image boxes (n, 4) xyxy, scores (n,), labels (n,), on any device, and perhaps masks.

        These are compressed run lengths, `rles`, or pixels, `masks` (n, H, W) bool. Raises PiipError for a label that
        is no class.
        """
        for result, truth, image_id, numbers in zip(results, truths, image_ids, _to_host(results), strict=True):
            corners, scores, labels = numbers[:, :4], numbers[:, 4], numbers[:, 5].astype(np.int64)
            if len(labels) and not 0 <= labels.min() <= labels.max() < len(self._class_names):
                wrong = next(label for label in labels if not 0 <= label < len(self._class_names))
                raise PiipError(f"results with label {wrong}, but the data have {len(self._class_names)} classes")
            rles = encode(result["masks"]) if "masks" in result else result.get("rles")
            self._found[image_id] = _Objects.read(truth), _Detections(_to_xywh(corners), scores, labels, rles)
        self._forget()

    def miss(self, truth: Mapping[str, Any], image_id: ImageId) -> None:
        nothing = _Detections(np.zeros((0, 4)), np.zeros(0), np.zeros(0, np.int64), [])
        self._found[image_id] = _Objects.read(truth), nothing
        self._forget()

    def synchronize(self) -> None:
        super().synchronize()
        self._forget()

    def _forget(self) -> None:
        self._precision = self._report = None

    def compute(self) -> dict[str, float | None]:
        """The figures in [0, 1] by name, the main one first."""
        figures: dict[str, float | None] = {}
        for kind, precision in self._evaluate().items():
            for suffix, iou, area in _FIGURES:
                figures[f"{kind}_ap{suffix}"] = _mean(precision[slice(None) if iou is None else iou, :, :, area, -1])
        return figures

    def table(self) -> list[dict[str, Any]]:
        """One row per class of class, objects (crowds not counted), and box and mask AP and AP50."""
        counts = np.zeros(len(self._class_names), dtype=np.int64)
        for truth, _ in self._found.values():
            np.add.at(counts, truth.labels[~truth.crowd], 1)
        rows: list[dict[str, Any]] = [
            {"class": name, "objects": count} for name, count in zip(self._class_names, counts.tolist(), strict=True)
        ]  # fmt: skip
        for kind, precision in self._evaluate().items():
            for label, row in enumerate(rows):
                row[f"{kind}_ap"] = _mean(precision[:, :, label, 0, -1])
                row[f"{kind}_ap50"] = _mean(precision[0, :, label, 0, -1])
        return rows

    def records(self) -> dict[ImageId, dict[str, Any]]:
        """Per image hits, misses, false_alarms, mean_iou of the hits and worst_class, which has the most errors.

        They are those of boxes at IoU 0.5, from the score on that has the best F1, `score_threshold`.
        """
        return self.report.records()

    def details(self) -> dict[str, Any]:
        """The score threshold of `records`, the calibration error of boxes, and the AP50 that kinds of errors cost."""
        figures = {"score_threshold": self.report.threshold, "calibration_error": self.report.calibration.error}
        return figures | {f"{kind}_ap50_lost": found.costs for kind, found in self.report.costs.items()}

    def draw(self, folder: Path) -> list[Path]:
        """precision_recall.png, errors.png, confusion.png with the background, and calibration.png."""
        return self.report.draw({kind: found[0, :, :, 0, -1] for kind, found in self._evaluate().items()}, folder)

    @property
    def report(self) -> DetectionReport:
        """What else there is to say of the results so far."""
        if self._report is None:
            ordered = sorted(self._found.items(), key=itemgetter(0))
            matches = {kind: {image_id: _match(*found, kind) for image_id, found in ordered} for kind in self._kinds}
            self._report = DetectionReport(matches, self._class_names)
        return self._report

    def _evaluate(self) -> dict[str, NDArray[Any]]:
        """Per kind the precision (IoU thresholds, recall thresholds, labels, area ranges, detection limits)."""
        if self._precision is None:
            self._precision = {kind: self._evaluate_kind(kind) for kind in self._kinds}
        return self._precision

    @property
    def _kinds(self) -> tuple[str, ...]:
        masks = all(part.masks is not None for pair in self._found.values() for part in pair)
        return ("box", "mask") if masks else ("box",)

    def _evaluate_kind(self, kind: str) -> NDArray[Any]:
        truth, found = self._as_coco(kind)
        if self._backend == "faster":
            indexes = [faster_coco_eval.COCO(data, print_function=_say_nothing) for data in (truth, found)]
            evaluation = faster_coco_eval.COCOeval_faster(
                *indexes, _KINDS[kind], print_function=_say_nothing, extra_calc=False
            )
            evaluation.evaluate()
            evaluation.accumulate()
        else:
            with contextlib.redirect_stdout(io.StringIO()):
                indexes = [COCO(), COCO()]
                for index, data in zip(indexes, (truth, found), strict=True):
                    index.dataset = data
                    index.createIndex()
                evaluation = COCOeval(*indexes, _KINDS[kind])
                evaluation.evaluate()
                evaluation.accumulate()
        return np.asarray(evaluation.eval["precision"])

    def _as_coco(self, kind: str) -> tuple[dict[str, Any], dict[str, Any]]:
        """Ground truth and detections as COCO dictionaries."""
        # Their order decides between equal scores.
        ordered = sorted(self._found.items(), key=itemgetter(0))
        # COCO's code asks for sizes, but uses them for polygons only.
        shared: dict[str, Any] = {
            "images": [{"id": number, "height": 0, "width": 0} for number in range(1, len(ordered) + 1)],
            "categories": [{"id": label, "name": name} for label, name in enumerate(self._class_names, 1)],
        }
        truths: list[dict[str, Any]] = []
        detections: list[dict[str, Any]] = []
        for number, (_, (truth, found)) in enumerate(ordered, 1):
            for entry, area, crowd in zip(
                _entries(number, truth, kind),
                truth.areas.tolist(),
                truth.crowd.tolist(),
                strict=True,
            ):
                if kind == "mask" and entry["segmentation"] is None:
                    continue
                # Numbered from 1: COCO's matching takes the id 0 for "no match".
                truths.append(entry | {"id": len(truths) + 1, "area": area, "iscrowd": int(crowd)})
            for entry, score in zip(_entries(number, found, kind), found.scores.tolist(), strict=True):
                # The area decides the size range: of the mask for masks.
                width, height = entry["bbox"][2:]
                area = float(mask_utils.area(entry["segmentation"])) if kind == "mask" else width * height
                detections.append(entry | {"id": len(detections) + 1, "score": score, "area": area, "iscrowd": 0})
        return {**shared, "annotations": truths}, {**shared, "annotations": detections}


def _match(truth: _Objects, found: _Detections, kind: str) -> Matches:
    """The objects that count for a kind, matched with the detections."""
    if kind == "box":
        return match(found.boxes, found.scores, found.labels, truth.boxes, truth.labels, truth.crowd)
    assert found.masks is not None
    assert truth.masks is not None
    known = np.array([mask is not None for mask in truth.masks], dtype=bool)
    masks = [mask for mask in truth.masks if mask is not None]
    return match(found.masks, found.scores, found.labels, masks, truth.labels[known], truth.crowd[known])


def _entries(number: int, found: _Objects | _Detections, kind: str) -> Iterator[dict[str, Any]]:
    """The entries of COCO's dictionaries that objects and detections share, for the image of a number."""
    for index, (box, label) in enumerate(zip(found.boxes.tolist(), found.labels.tolist(), strict=True)):
        entry = {"image_id": number, "category_id": label + 1, "bbox": box}
        yield entry if kind == "box" or found.masks is None else entry | {"segmentation": found.masks[index]}


def _to_xywh(corners: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.concatenate([corners[:, :2], corners[:, 2:] - corners[:, :2]], axis=1)


def _to_host(results: Sequence[dict[str, Any]]) -> list[NDArray[np.float64]]:
    """Boxes, scores and labels (n, 6) float64 per image, in one copy from the device."""
    if not results:
        return []
    rows = [torch.column_stack([result[name].double() for name in ("boxes", "scores", "labels")]) for result in results]
    counts = [len(part) for part in rows]
    return np.split(torch.cat(rows).detach().cpu().numpy(), np.cumsum(counts)[:-1])


def _say_nothing(*_: object) -> None: ...


def _mean(precision: NDArray[Any]) -> float | None:
    """Mean over the cells that have ground truth; None when none has, where COCO has -1."""
    defined = precision[precision > -1]
    return float(defined.mean()) if defined.size else None
