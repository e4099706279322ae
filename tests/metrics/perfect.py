"""COCO's figures for a data set whose own objects are taken for results."""

from __future__ import annotations

from typing import Any

import torch

from piip.data.sets.base import ImageDataset
from piip.metrics.config import CocoMetricConfig


def perfect_result(truth: dict[str, Any]) -> dict[str, Any]:
    """What a perfect detector finds in an image: every object that counts, with a score of 1."""
    xywh, objects = torch.from_numpy(truth["xywh"]), torch.from_numpy(~truth["crowd"])
    result: dict[str, Any] = {
        "boxes": torch.cat([xywh[:, :2], xywh[:, :2] + xywh[:, 2:]], dim=1)[objects].float(),
        "scores": torch.ones(int(objects.sum())),
        "labels": torch.from_numpy(truth["labels"])[objects],
    }
    if "rles" in truth:
        result["rles"] = [rle for rle, counts in zip(truth["rles"], objects.tolist(), strict=True) if counts]
    return result


def score_of_truth(dataset: ImageDataset, **settings: Any) -> dict[str, float | None]:
    metric = CocoMetricConfig(**settings).build(dataset.class_names)
    for index in range(len(dataset)):
        truth = dataset.truth(index)
        metric.update([perfect_result(truth)], [truth], [dataset.image_id(index)])
    return dict(metric.compute())
