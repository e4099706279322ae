"""Generated crops: one object each, in one folder per class, the same everywhere, whole or absent."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from piip.data.sets.image_folder.dataset import ImageFolderDataset
from piip.data.sets.shapes import writers
from piip.data.sets.shapes.config import CLASS_NAMES, ShapesData
from piip.data.sets.shapes.drawing import draw_crop, draw_image
from piip.data.sets.shapes.writers import write_once
from piip.data.transforms.sample import generator
from piip.errors import PiipError


def config(root: Path, **changes: object) -> ShapesData:
    return ShapesData(**({"root": root, "form": "crops", "images": 12, "size": 64} | changes))


def write_crops(config: ShapesData) -> Path:
    write_once(config)
    return config.folder


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*.jpg")}


def test_a_config_gives_labelled_square_images_of_all_classes(tmp_path: Path) -> None:
    dataset = config(tmp_path).build(training=True)
    assert isinstance(dataset, ImageFolderDataset)
    assert dataset.class_names == sorted(CLASS_NAMES)
    assert len(dataset) == 12
    for index in range(12):
        assert dataset.image(index).shape == (3, 64, 64)
        folder = dataset.image_id(index).partition("/")[0]
        assert dataset.class_names[dataset.target(index)["label"]] == folder


def test_the_same_seed_writes_the_same_bytes_and_more_of_them_the_same_first(tmp_path: Path) -> None:
    first, second = (contents(write_crops(config(tmp_path / name))) for name in "ab")
    assert first == second
    assert len(first) == 12
    assert contents(write_crops(config(tmp_path, images=5))).items() <= first.items()


def test_splits_and_seeds_share_no_image(tmp_path: Path) -> None:
    changes = ({"split": "train"}, {"split": "val"}, {"split": "train", "seed": 1})
    pictures = [data for change in changes for data in contents(write_crops(config(tmp_path, **change))).values()]
    assert len(set(pictures)) == len(pictures) == 36


@pytest.mark.parametrize("seed", range(8))
def test_a_crop_is_a_square_in_the_picture_with_the_whole_frontmost_object(
    seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    taken: list[tuple[int, int, int, int]] = []
    crop = Image.Image.crop
    monkeypatch.setattr(Image.Image, "crop", lambda self, box: taken.append(box) or crop(self, box))
    _, label = draw_crop(64, generator(0, 0, seed))
    ((left, top, right, bottom),) = taken
    _, objects = draw_image(128, generator(0, 0, seed))
    assert label == objects[-1][0]
    mask = objects[-1][1]
    assert mask[top:bottom, left:right].sum() == mask.sum()
    longest = max(np.ptp(places) + 1 for places in np.nonzero(mask))
    side = right - left
    assert side == bottom - top
    assert longest <= side <= 1.4 * longest + 1
    assert min(left, top) >= 0
    assert max(right, bottom) <= 128


def test_a_written_set_is_used_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = write_crops(config(tmp_path))
    monkeypatch.setattr(writers, "draw_crop", None)  # drawing again would fail
    assert write_crops(config(tmp_path)) == folder


def test_a_set_appears_whole_or_not_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    drawn: list[Image.Image] = []

    def draw_two(size: int, rng: np.random.Generator) -> tuple[Image.Image, int]:
        if len(drawn) == 2:
            raise OSError(28, "No space left on device")
        picture, label = draw_crop(size, rng)
        drawn.append(picture)
        return picture, label

    monkeypatch.setattr(writers, "draw_crop", draw_two)
    with pytest.raises(PiipError, match=r"cannot write the generated images to .*crops-train-12x64.*No space left"):
        write_crops(config(tmp_path))
    assert len(drawn) == 2
    assert list(tmp_path.iterdir()) == []
