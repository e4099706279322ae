"""The generated label maps: of the same pictures as the instances, and agreeing with them pixel by pixel."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from piip.data.sets.instances.dataset import InstanceDataset
from piip.data.sets.label_maps.dataset import LabelMapDataset
from piip.data.sets.shapes.config import CLASS_NAMES, ShapesData


def config(root: Path, **changes: object) -> ShapesData:
    return ShapesData(**({"root": root, "images": 5, "size": 96} | changes))


def test_maps_show_the_visible_part_of_every_instance_on_a_background_class(tmp_path: Path) -> None:
    instances = config(tmp_path).build(training=False)
    maps = config(tmp_path, form="label_maps").build(training=False)
    assert isinstance(instances, InstanceDataset)
    assert isinstance(maps, LabelMapDataset)
    assert maps.class_names == ["background", *CLASS_NAMES]
    assert len(maps) == len(instances) == 5
    for index in range(5):
        assert torch.equal(maps.image(index), instances.image(index))
        target = instances.target(index)
        expected = (target["masks"] * (1 + target["labels"])[:, None, None]).sum(0)
        assert torch.equal(maps.target(index)["label_map"].long(), expected)


def test_a_set_is_written_once_and_the_same_everywhere(tmp_path: Path) -> None:
    contents = []
    for root in (tmp_path / "a", tmp_path / "b"):
        config(root, form="label_maps").build(training=True)
        files = {path.relative_to(root): path for path in root.rglob("*") if path.is_file()}
        contents.append({name: path.read_bytes() for name, path in files.items()})
        before = {name: path.stat().st_mtime_ns for name, path in files.items()}
        config(root, form="label_maps").build(training=True)
        assert {name: path.stat().st_mtime_ns for name, path in files.items()} == before
    assert contents[0] == contents[1]
    assert len(contents[0]) == 10


def test_all_classes_occur(tmp_path: Path) -> None:
    dataset = config(tmp_path, form="label_maps", images=20, size=64).build(training=True)
    found = np.unique(np.stack([dataset.target(index)["label_map"] for index in range(len(dataset))]))
    assert found.tolist() == [0, 1, 2, 3, 4, 5]
