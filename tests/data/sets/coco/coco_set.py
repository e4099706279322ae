"""A small COCO-format set, written by hand so that every test can damage its own part of it."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from piip.data.sets.coco.config import CocoData
from piip.data.sets.instances.dataset import InstanceDataset

SIZES = {7: (40, 60), 3: (50, 36), 12: (64, 64)}  # image id -> (height, width)

RECORDS: dict[str, Any] = {
    "images": [
        {"id": id_, "file_name": f"{id_}.png", "height": height, "width": width}
        for id_, (height, width) in SIZES.items()
    ],
    # Ids with gaps, out of order.
    "categories": [{"id": 90, "name": "zebra"}, {"id": 4, "name": "apple"}, {"id": 17, "name": "cat"}],
    "annotations": [
        {
            "id": 1,
            "image_id": 7,
            "category_id": 17,
            "bbox": [10, 5, 20, 30],
            "area": 600,
            "iscrowd": 0,
            "segmentation": [[10, 5, 30, 5, 30, 35, 10, 35]],
        },
        {
            "id": 2,
            "image_id": 7,
            "category_id": 90,
            "bbox": [40, 10, 10, 10],
            "area": 50,
            "iscrowd": 0,
            "segmentation": [[40, 10, 50, 10, 40, 20]],
        },
        {
            "id": 3,
            "image_id": 3,
            "category_id": 4,
            "bbox": [0, 0, 4, 50],
            "area": 200,
            "iscrowd": 0,
            "segmentation": {"size": [50, 36], "counts": [0, 200, 1600]},
        },
        {
            "id": 5,
            "image_id": 3,
            "category_id": 4,
            "bbox": [10, 0, 10, 50],
            "area": 500,
            "iscrowd": 1,
            "segmentation": {"size": [50, 36], "counts": [500, 500, 800]},
        },
    ],
}


class Coco:
    """The set on disk: change `data`, then `load()`."""

    def __init__(self, root: Path) -> None:
        self.images, self.file = root / "images", root / "instances.json"
        self.images.mkdir()
        self.data = copy.deepcopy(RECORDS)
        rng = np.random.default_rng(0)
        for id_, (height, width) in SIZES.items():
            pixels = rng.integers(0, 256, (height, width, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(self.images / f"{id_}.png")

    def write(self) -> None:
        self.file.write_text(json.dumps(self.data))

    def load(self, *, training: bool = True, keep_empty: bool = False, min_side: int = 1) -> InstanceDataset:
        self.write()
        config = CocoData(images=self.images, annotations=self.file, keep_empty=keep_empty, min_side=min_side)
        return config.build(training=training)

    def annotation(self, id_: int) -> dict[str, Any]:
        return next(entry for entry in self.data["annotations"] if entry["id"] == id_)

    def annotate(self, changes: dict[str, Any]) -> None:
        """Adds annotation 100: a whole object on image 12, but for the changes."""
        entry = {"id": 100, "image_id": 12, "category_id": 4, "bbox": [8, 8, 16, 16], "area": 256, "iscrowd": 0}
        entry["segmentation"] = [[8, 8, 24, 8, 24, 24, 8, 24]]
        self.data["annotations"].append(entry | changes)
