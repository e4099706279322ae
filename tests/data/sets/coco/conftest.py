"""The small COCO-format set, and its images by their ids."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from piip.data.sets.instances.dataset import InstanceDataset
from tests.data.sets.coco.coco_set import Coco


@pytest.fixture
def coco(tmp_path: Path) -> Coco:
    return Coco(tmp_path)


@pytest.fixture
def index_of() -> Callable[[InstanceDataset, int], int]:
    def find(dataset: InstanceDataset, image_id: int) -> int:
        return next(index for index in range(len(dataset)) if dataset.record(index).id == image_id)

    return find
