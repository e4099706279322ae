"""The generated shapes as single objects, in one folder per class: the same pictures, each cut to one object."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from piip.data.sets.shapes.config import CLASS_NAMES, ShapesData
from piip.data.sets.shapes.instances import draw_image, save_image, shape_generator

# Side of the picture an object is cut from, as a multiple of that of the crop; the crop is then enlarged a little.
_SCENE = 2
# Side of the crop as a multiple of the object's longer one.
_MARGIN = (1.05, 1.4)


def write(config: ShapesData, folder: Path) -> None:
    """Draws one crop per image of the set, in a folder for every class."""
    for name in CLASS_NAMES:
        (folder / name).mkdir()
    for number in range(config.images):
        picture, label = draw_crop(config.size, shape_generator(config, number))
        save_image(picture, folder / CLASS_NAMES[label] / f"{number + 1:06d}.jpg")


def draw_crop(size: int, rng: np.random.Generator) -> tuple[Image.Image, int]:
    """A square of size x size pixels around one object, and its label; parts of others may show beside it."""
    scene, objects = draw_image(_SCENE * size, rng)
    # The frontmost, which no other hides.
    label, visible = objects[-1]
    return scene.crop(_square(visible, rng)).resize((size, size), Image.Resampling.BICUBIC), label


def _square(visible: NDArray[np.bool_], rng: np.random.Generator) -> tuple[int, int, int, int]:
    """Left, top, right and bottom of a square within the picture that holds the mask, which is not in its middle."""
    spans = [np.flatnonzero(visible.any(axis=axis))[[0, -1]] + (0, 1) for axis in (0, 1)]
    longest = max(int(stop - start) for start, stop in spans)
    side = min(math.ceil(longest * rng.uniform(*_MARGIN)), len(visible))
    corner = [
        int(rng.integers(max(0, stop - side), min(start, len(visible) - side) + 1)) for start, stop in spans
    ]  # fmt: skip
    return corner[0], corner[1], corner[0] + side, corner[1] + side
