"""Textured shapes that overlap on textured backgrounds, drawn from a random stream.

Objects are 24 to 120 pixels at an image side of 256 and scale with it; masks are the visible parts, decided pixel by
pixel.
"""

from __future__ import annotations

import colorsys
import math

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFilter

from piip.data.sets.shapes.config import CLASS_NAMES

_SMALLEST, _LARGEST = 28 / 256, 120 / 256
_OBJECTS = (2, 6)
_SUPERSAMPLING = 4
# Like most things in photographs, shapes stand more or less upright and classes have typical colours: from outlines
# alone, a network that starts from nothing learns too slowly for a demonstration on a CPU.
_MOST_TURN = math.radians(20)
_HUE_SPREAD = 50 / 360
_LEAST_VISIBLE = 0.5
# Side of the picture that a crop is cut from, as a multiple of that of the crop, which is then enlarged a little.
_SCENE = 2
# Side of what is cut out as a multiple of the object's longer one.
_MARGIN = (1.05, 1.4)

Floats = NDArray[np.float32]
Points = NDArray[np.float64]


def draw_image(size: int, rng: np.random.Generator) -> tuple[Image.Image, list[tuple[int, NDArray[np.bool_]]]]:
    """One image of size x size pixels and its objects from back to front: (label, visible mask (size, size))."""
    background = rng.uniform(0.12, 0.95, 3).astype(np.float32)  # neither black nor white
    canvas = _texture(size, size, rng, background, contrast=0.5)
    owner = np.full((size, size), -1, dtype=np.int16)  # which object a pixel belongs to
    labels: list[int] = []
    areas: list[int] = []
    for _ in range(int(rng.integers(_OBJECTS[0], _OBJECTS[1] + 1))):
        for _ in range(20):  # tries to find a place that hides no other object too much
            label = int(rng.integers(len(CLASS_NAMES)))
            side = size * math.exp(rng.uniform(math.log(_SMALLEST), math.log(_LARGEST)))
            alpha, left, top = _place(label, side, size, rng)
            box = np.s_[top : top + alpha.shape[0], left : left + alpha.shape[1]]
            inside = alpha >= 0.5
            covered = owner[box][inside]
            hidden = np.bincount(covered[covered >= 0], minlength=len(labels))
            kept = np.array([(owner == i).sum() for i in range(len(labels))]) - hidden
            if inside.any() and np.all(kept >= _LEAST_VISIBLE * np.array(areas)):
                break
        else:
            continue
        owner[box][inside] = len(labels)
        labels.append(label)
        areas.append(int(inside.sum()))
        _paint(canvas[box], alpha, label, rng)
    picture = Image.fromarray(np.clip(canvas * 255 + 0.5, 0, 255).astype(np.uint8))
    return picture, [(label, owner == i) for i, label in enumerate(labels)]


def _place(label: int, side: float, size: int, rng: np.random.Generator) -> tuple[Floats, int, int]:
    """The coverage (h, w) in [0, 1] of a turned shape about `side` pixels across, and its left and top in the image."""
    outline = _outline(label, rng) * side / 2
    angle = rng.uniform(-_MOST_TURN, _MOST_TURN)
    turn = np.array([[math.cos(angle), math.sin(angle)], [-math.sin(angle), math.cos(angle)]])
    outline = outline @ turn
    extent = np.ptp(outline, axis=0)
    # Up to an eighth of the shape may leave the image.
    centre = rng.uniform(extent * 0.375, np.maximum(size - extent * 0.375, extent * 0.375))
    outline = outline - (outline.min(axis=0) + outline.max(axis=0)) / 2 + centre
    left, top = (int(v) for v in np.clip(np.floor(outline.min(axis=0)), 0, size - 1))
    right, bottom = (int(v) for v in np.clip(np.ceil(outline.max(axis=0)), 1, size))
    width, height = max(right - left, 1), max(bottom - top, 1)
    fine = Image.new("L", (width * _SUPERSAMPLING, height * _SUPERSAMPLING))
    corners = (outline - (left, top)) * _SUPERSAMPLING - 0.5
    ImageDraw.Draw(fine).polygon([(float(x), float(y)) for x, y in corners], fill=255)
    coverage = np.asarray(fine.resize((width, height), Image.Resampling.BOX), dtype=np.float32)
    return coverage / np.float32(255), left, top


def _outline(label: int, rng: np.random.Generator) -> Points:
    """Corners (n, 2) of a class's shape within the unit circle."""
    name = CLASS_NAMES[label]
    if name == "circle":
        return _ring(64)
    if name == "rectangle":
        w, h = 1.0, rng.uniform(0.55, 1.0)
        return np.array([(-w, -h), (w, -h), (w, h), (-w, h)]) / math.hypot(w, h)
    if name == "triangle":
        return _ring(3)
    if name == "star":
        points = _ring(10)
        points[1::2] *= 0.42
        return points
    arm = 0.34
    cross = [(-arm, -1), (arm, -1), (arm, -arm), (1, -arm), (1, arm), (arm, arm), (arm, 1), (-arm, 1)]
    cross += [(-arm, arm), (-1, arm), (-1, -arm), (-arm, -arm)]
    return np.array(cross) / math.hypot(1, arm)


def _ring(corners: int) -> Points:
    angles = np.arange(corners) * (2 * math.pi / corners)
    return np.stack([np.sin(angles), -np.cos(angles)], axis=1)


def _paint(canvas: Floats, alpha: Floats, label: int, rng: np.random.Generator) -> None:
    """Blends a textured, slightly shaded shape into its part of the canvas, in a colour that stands out from it."""
    behind = canvas.mean(axis=(0, 1))
    colour = max((_class_colour(label, rng) for _ in range(6)), key=lambda c: float(np.abs(c - behind).sum()))
    height, width = alpha.shape
    fill = _texture(height, width, rng, colour, contrast=0.22)
    # Darker towards the edge, which keeps overlapping shapes of like colours apart.
    rim = Image.fromarray((alpha * 255).astype(np.uint8)).filter(ImageFilter.GaussianBlur(max(height, width) / 20))
    fill *= 0.62 + 0.38 * (np.asarray(rim, dtype=np.float32)[..., None] / 255)
    canvas += alpha[..., None] * (fill - canvas)


def _class_colour(label: int, rng: np.random.Generator) -> Floats:
    """A random RGB colour around a class's typical hue; the hues of neighbouring classes overlap."""
    hue = label / len(CLASS_NAMES) + rng.uniform(-_HUE_SPREAD, _HUE_SPREAD)
    return np.array(colorsys.hsv_to_rgb(hue % 1, rng.uniform(0.4, 1), rng.uniform(0.4, 1)), dtype=np.float32)


def _texture(height: int, width: int, rng: np.random.Generator, colour: Floats, contrast: float) -> Floats:
    """A textured surface (h, w, 3) around a colour: clouds, stripes or checks, and fine grain."""
    y, x = np.mgrid[:height, :width].astype(np.float32)
    angle, period = rng.uniform(0, math.pi), rng.uniform(6, 28)
    phase = (x * math.cos(angle) + y * math.sin(angle)) * (2 * math.pi / period)
    across = (y * math.cos(angle) - x * math.sin(angle)) * (2 * math.pi / period)
    kind = rng.integers(3)
    if kind == 0:
        pattern = _clouds(height, width, rng)
    elif kind == 1:
        pattern = np.sin(phase)
    else:
        pattern = np.sign(np.sin(phase) * np.sin(across))
    tint = rng.uniform(0.4, 1.0, 3).astype(np.float32)
    shade = contrast * (0.3 * pattern + 0.35 * _clouds(height, width, rng))
    grain = rng.normal(0, 0.02, (height, width, 1)).astype(np.float32)
    return np.clip(colour + shade[..., None] * tint + grain, 0, 1).astype(np.float32, copy=False)


def _clouds(height: int, width: int, rng: np.random.Generator) -> Floats:
    """Smooth noise (h, w) in about [-1, 1]: two octaves of random grids, enlarged."""
    clouds = np.zeros((height, width), dtype=np.float32)
    for cells, weight in ((3, 0.65), (8, 0.35)):
        grid = Image.fromarray(rng.uniform(-1, 1, (cells, cells)).astype(np.float32))
        clouds += weight * np.asarray(grid.resize((width, height), Image.Resampling.BICUBIC))
    return clouds


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
