"""The generated shapes as label maps: the same pictures, and the label of every pixel in a PNG of the same stem."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

from piip.data.sets.shapes.config import ShapesData
from piip.data.sets.shapes.instances import draw_image, save_image, shape_generator


def write(config: ShapesData, folder: Path) -> None:
    """Draws the set into the folders images and labels; 0 is the background."""
    (folder / "images").mkdir()
    (folder / "labels").mkdir()
    for number in range(config.images):
        picture, objects = draw_image(config.size, shape_generator(config, number))
        labels = np.zeros((config.size, config.size), dtype=np.uint8)
        for label, visible in objects:
            labels[visible] = 1 + label
        save_image(picture, folder / "images" / f"{number + 1:06d}.jpg")
        save_image(Image.fromarray(labels), folder / "labels" / f"{number + 1:06d}.png")
