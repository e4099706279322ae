"""The generated set: the same everywhere, whole or absent, with masks of what can be seen."""

from __future__ import annotations

import json
import threading
from pathlib import Path

import numpy as np
import pytest
from pycocotools import mask as mask_utils

from piip.data.sets.instances.dataset import InstanceDataset
from piip.data.sets.shapes import drawing, writers
from piip.data.sets.shapes.config import CLASS_NAMES, ShapesData
from piip.data.sets.shapes.drawing import draw_image
from piip.data.sets.shapes.writers import write_once
from piip.data.transforms.sample import generator
from piip.errors import PiipError
from tests.metrics.perfect import score_of_truth


def config(root: Path, **changes: object) -> ShapesData:
    return ShapesData(**({"root": root, "images": 4, "size": 96} | changes))


def write_shapes(config: ShapesData) -> tuple[Path, Path]:
    write_once(config)
    return config.folder / "images", config.folder / "annotations.json"


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_the_same_seed_writes_the_same_bytes(tmp_path: Path) -> None:
    folders = [write_shapes(config(tmp_path / name))[0].parent for name in "ab"]
    first, second = map(contents, folders)
    assert first.keys() == {"annotations.json", *(f"images/{n:06d}.jpg" for n in range(1, 5))}
    assert first == second


def test_splits_and_seeds_share_no_image(tmp_path: Path) -> None:
    pictures = []
    for changes in ({"split": "train"}, {"split": "val"}, {"split": "train", "seed": 1}):
        images, _ = write_shapes(config(tmp_path, **changes))
        pictures += [path.read_bytes() for path in images.iterdir()]
    assert len(set(pictures)) == len(pictures) == 12


def test_an_image_does_not_depend_on_how_many_are_drawn(tmp_path: Path) -> None:
    few, many = (contents(write_shapes(config(tmp_path, images=n))[0]) for n in (2, 4))
    assert few.items() <= many.items()


def test_a_written_set_is_used_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    images, annotations = write_shapes(config(tmp_path))
    before = annotations.stat().st_mtime_ns
    monkeypatch.setattr(writers, "draw_image", None)  # drawing again would fail
    assert write_shapes(config(tmp_path)) == (images, annotations)
    assert annotations.stat().st_mtime_ns == before


def test_a_set_appears_whole_or_not_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    drawn = []

    def draw_two(size: int, rng: np.random.Generator) -> object:
        if len(drawn) == 2:
            raise OSError(28, "No space left on device")
        drawn.append(draw_image(size, rng))
        return drawn[-1]

    monkeypatch.setattr(writers, "draw_image", draw_two)
    with pytest.raises(PiipError, match=r"cannot write the generated images to .*train-4x96.*No space left on device"):
        write_shapes(config(tmp_path))
    assert len(drawn) == 2
    assert list(tmp_path.iterdir()) == []


def test_several_processes_may_ask_for_a_set_at_once(tmp_path: Path) -> None:
    results: list[tuple[Path, Path]] = []
    threads = [threading.Thread(target=lambda: results.append(write_shapes(config(tmp_path)))) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(set(results)) == 1
    assert len(results) == 3
    assert [path.name for path in tmp_path.iterdir()] == [results[0][0].parent.name]
    assert len(config(tmp_path).build(training=False)) == 4


def test_masks_are_the_visible_parts_and_boxes_bound_them(tmp_path: Path) -> None:
    _, annotations = write_shapes(config(tmp_path, images=12))
    data = json.loads(annotations.read_text())
    assert [category["name"] for category in data["categories"]] == CLASS_NAMES
    overlaps = 0
    for image in data["images"]:
        entries = [entry for entry in data["annotations"] if entry["image_id"] == image["id"]]
        assert 2 <= len(entries) <= 6
        masks = np.stack([mask_utils.decode(entry["segmentation"]) for entry in entries])
        assert masks.sum(axis=0).max() == 1  # no pixel has two owners
        for entry, mask in zip(entries, masks, strict=True):
            ys, xs = np.nonzero(mask)
            x, y, w, h = entry["bbox"]
            assert (x, y, x + w, y + h) == (xs.min(), ys.min(), xs.max() + 1, ys.max() + 1)
            assert entry["area"] == mask.sum() > 0
            assert max(w, h) <= 96 * 120 / 256 + 2
        boxes = np.array([entry["bbox"] for entry in entries])
        low = np.maximum(boxes[:, None, :2], boxes[None, :, :2])
        high = np.minimum((boxes[:, :2] + boxes[:, 2:])[:, None], (boxes[:, :2] + boxes[:, 2:])[None])
        overlaps += int(np.all(high > low, axis=2).sum()) - len(entries)
    assert overlaps > 0


def test_masks_lie_where_the_objects_are_painted(monkeypatch: pytest.MonkeyPatch) -> None:
    """The same scenes in flat colours, one per object: a colour shows all over its mask, but for the soft edge."""
    # No blend of two of these, as on a soft edge, is a third one.
    flat_colours = [(0, 1, 0), (1, 0, 0), (0, 0, 1), (1, 1, 0), (1, 0, 1), (0, 1, 1)]
    paint = drawing._paint
    painted: list[int] = []

    def paint_flat(canvas: np.ndarray, alpha: np.ndarray, label: int, rng: np.random.Generator) -> None:
        before = canvas.copy()
        paint(canvas, alpha, label, rng)  # draws its random numbers
        painted.append(len(painted))
        canvas[:] = before + alpha[..., None] * (np.float32(flat_colours[painted[-1]]) - before)

    for number in range(5):
        _, objects = draw_image(128, generator(number))
        painted.clear()
        with monkeypatch.context() as patch:
            patch.setattr(drawing, "_paint", paint_flat)
            picture, flat_objects = draw_image(128, generator(number))
        pixels = np.asarray(picture)
        assert len(objects) == len(flat_objects) == len(painted)
        for position, ((label, mask), (flat_label, flat_mask)) in enumerate(zip(objects, flat_objects, strict=True)):
            assert label == flat_label
            assert np.array_equal(mask, flat_mask)
            shown = np.all(pixels == 255 * np.array(flat_colours[position]), axis=2)
            assert not (shown & ~mask).any()
            edge = 4 * np.sqrt(mask.sum())
            assert shown.sum() > mask.sum() - 1.5 * edge


def test_ground_truth_as_prediction_gives_ap_1(tmp_path: Path) -> None:
    dataset = config(tmp_path, images=6).build(training=False)
    assert isinstance(dataset, InstanceDataset)
    assert dataset.report.counts == {}
    values = score_of_truth(dataset)
    assert values["box_ap"] == values["mask_ap"] == 1


def test_all_classes_and_sizes_occur(tmp_path: Path) -> None:
    _, annotations = write_shapes(config(tmp_path, images=40, size=64))
    entries = json.loads(annotations.read_text())["annotations"]
    assert {entry["category_id"] for entry in entries} == {1, 2, 3, 4, 5}
    sides = np.array([max(entry["bbox"][2:]) for entry in entries]) * 256 / 64
    assert sides.min() < 40
    assert sides.max() > 90
