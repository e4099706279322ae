"""The generated shapes as label maps: the same pictures, and the label of every pixel in a PNG of the same stem."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

from piip.data.sets.shapes.config import ShapesData
from piip.data.sets.shapes.generated import save_image, write_once
from piip.data.sets.shapes.instances import CLASS_NAMES, draw_image, shape_generator

# The background is a class, as `wall` or `sky` are in photographs.
MAP_CLASS_NAMES = ("background", *CLASS_NAMES)

# Part of the cache's name: raise it when the drawing changes.
_VERSION = 1


def write_shape_maps(config: ShapesData) -> tuple[Path, Path]:
    """Makes sure that the set exists below `config.root`, whole or not at all.

    Returns the folders of the images and of the label maps. Raises PiipError when the files cannot be written.
    """
    final = config.root / f"maps-{config.split}-{config.images}x{config.size}-seed{config.seed}-v{_VERSION}"
    write_once(final, lambda folder: _write(config, folder))
    return final / "images", final / "labels"


def _write(config: ShapesData, folder: Path) -> None:
    (folder / "images").mkdir()
    (folder / "labels").mkdir()
    for number in range(config.images):
        picture, objects = draw_image(config.size, shape_generator(config, number))
        labels = np.zeros((config.size, config.size), dtype=np.uint8)
        for label, visible in objects:
            labels[visible] = 1 + label
        save_image(picture, folder / "images" / f"{number + 1:06d}.jpg")
        save_image(Image.fromarray(labels), folder / "labels" / f"{number + 1:06d}.png")
