"""Data sets, the released image recipe, and loaders."""

from __future__ import annotations

from piip.data.batch import Batch
from piip.data.build import build_dataset, build_loader, known_class_names
from piip.data.coco import CocoDataset, self_test
from piip.data.dataset import ImageDataset, check_classes, check_same_classes, check_targets
from piip.data.image_folder import ImageFolderDataset
from piip.data.images import read_image
from piip.data.label_maps import LabelMapDataset
from piip.data.loader import Loader
from piip.data.prefetch import on_device
from piip.data.transforms import prepare
from piip.data.workers import explain_worker_death

__all__ = [
    "Batch",
    "CocoDataset",
    "ImageDataset",
    "ImageFolderDataset",
    "LabelMapDataset",
    "Loader",
    "build_dataset",
    "build_loader",
    "check_classes",
    "check_same_classes",
    "check_targets",
    "explain_worker_death",
    "known_class_names",
    "on_device",
    "prepare",
    "read_image",
    "self_test",
]
