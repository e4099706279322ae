"""Detections in COCO's form, and drawn over their image."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from itertools import compress
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from pycocotools import mask as mask_utils
from torch import Tensor
from torchvision.ops import box_convert

from piip.results.base import ResultWriter
from piip.results.drawing import draw_detections
from piip.run_lengths import Rle, encode


class DetectionWriter(ResultWriter):
    """Boxes and masks above the score threshold.

    The document holds images, categories and annotations in COCO's form: bbox [x, y, width, height] in pixels of the
    upright image, segmentation as compressed run lengths, score, and the label as category_id.
    """

    def __init__(self, class_names: Sequence[str], *, score_threshold: float) -> None:
        super().__init__(class_names, score_threshold=score_threshold)
        categories = [{"id": label, "name": name} for label, name in enumerate(class_names)]
        self.document = {"images": [], "categories": categories, "annotations": []}

    def add(self, file: Path, image: Tensor, result: dict[str, Any], picture: Path) -> dict[str, float]:
        """Returns how many objects of each class were found."""
        return self.add_smaller(file, image, result, picture, size=(image.shape[1], image.shape[2]))

    def add_smaller(
        self, file: Path, image: Tensor, result: dict[str, Any], picture: Path, *, size: tuple[int, int]
    ) -> dict[str, float]:
        """On a smaller copy no masks are drawn."""
        result = self._keep(result)
        self._add(file, size, result)
        drawn = result
        if size != tuple(image.shape[1:]):
            scale = torch.tensor([image.shape[2] / size[1], image.shape[1] / size[0]] * 2)
            drawn = {"boxes": result["boxes"] * scale, "labels": result["labels"], "scores": result["scores"]}
        self.save(self.draw(image, drawn), picture)
        return dict(Counter(self.class_names[label] for label in result["labels"].tolist()))

    def describe(self, found: dict[str, float]) -> str:
        """Counts by class, the commonest first."""
        by_count = sorted(found.items(), key=lambda item: -item[1])
        return ", ".join(f"{count} {name}" for name, count in by_count) or "nothing above the threshold"

    def table(self, result: dict[str, Any]) -> tuple[list[str], list[list[Any]]]:
        kept = self._keep(result)
        rows = zip(kept["labels"].tolist(), kept["scores"].tolist(), kept["boxes"].tolist(), strict=True)
        return ["class", "score", "left", "top", "right", "bottom"], [
            [self.class_names[label], round(score, 3), *(round(side, 1) for side in box)] for label, score, box in rows
        ]

    def draw(self, image: Tensor, result: Mapping[str, Tensor]) -> Image.Image:
        result = self._keep(result)
        if result.get("rles"):
            masks = np.stack([mask_utils.decode(rle) for rle in result["rles"]])
            result["masks"] = torch.from_numpy(masks).bool()
        return draw_detections(image, result, self.class_names)

    def draw_truth(self, image: Tensor, truth: Mapping[str, Any]) -> Image.Image:
        xywh = truth.get("xywh")
        boxes = torch.as_tensor(truth["boxes"]) if xywh is None else box_convert(torch.as_tensor(xywh), "xywh", "xyxy")
        objects = {"boxes": boxes, "labels": torch.as_tensor(truth["labels"])}
        if truth.get("rles"):
            nothing = np.zeros(image.shape[1:], dtype=np.uint8)
            masks = [nothing if rle is None else mask_utils.decode(rle) for rle in truth["rles"]]
            objects["masks"] = torch.from_numpy(np.stack(masks)).bool()
        elif "masks" in truth:
            objects["masks"] = torch.as_tensor(truth["masks"]).bool()
        return draw_detections(image, objects, self.class_names)

    def _keep(self, result: Mapping[str, Any]) -> dict[str, Any]:
        kept = result["scores"] >= self.score_threshold
        tensors = {name: value[kept].cpu() for name, value in result.items() if isinstance(value, Tensor)}
        return tensors if "rles" not in result else tensors | {"rles": list(compress(result["rles"], kept.tolist()))}

    def _add(self, file: Path, size: tuple[int, int], result: dict[str, Any]) -> None:
        document = self.document
        image_id = len(document["images"]) + 1
        height, width = size
        document["images"].append({"id": image_id, "file_name": str(file), "width": width, "height": height})
        rles: Sequence[Rle | None] = result.get("rles") or [None] * len(result["scores"])
        if "masks" in result:
            rles = encode(result["masks"])
        for box, score, label, rle in zip(
            result["boxes"].tolist(), result["scores"].tolist(), result["labels"].tolist(), rles
        ):
            entry: dict[str, Any] = {
                "id": len(document["annotations"]) + 1,
                "image_id": image_id,
                "category_id": label,
                "bbox": [box[0], box[1], box[2] - box[0], box[3] - box[1]],
                "score": score,
            }
            if rle is not None:
                entry |= {
                    "area": float(mask_utils.area(rle)),
                    "segmentation": {"size": list(rle["size"]), "counts": rle["counts"].decode()},
                }
            document["annotations"].append(entry)
