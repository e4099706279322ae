"""Data sets, the released image recipe, and loaders."""

from __future__ import annotations

from piip.data.coco import CocoDataset, check_classes, check_masks, check_same_classes, self_test
from piip.data.images import read_image
from piip.data.loader import Batch, Loader, build_dataset, build_loader, explain_worker_death
from piip.data.transforms import prepare

__all__ = [
    "Batch",
    "CocoDataset",
    "Loader",
    "build_dataset",
    "build_loader",
    "check_classes",
    "check_masks",
    "check_same_classes",
    "explain_worker_death",
    "prepare",
    "read_image",
    "self_test",
]
