"""A label map drawn over its image, with the names of the classes on it and a legend below."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont
from scipy.ndimage import distance_transform_edt, maximum_position
from torch import Tensor

from piip.results.drawing import MIN_SIDE, class_colour, enlarged, zoom_to

_OPACITY = 0.55
_PAPER, _INK = (255, 255, 255), (43, 43, 51)


def share_in_words(share: float) -> str:
    """A share of 1 in whole percent."""
    return f"{100 * share:.0f} %" if share >= 0.01 else "<1 %"


def draw_label_map(
    image: Tensor, labels: Tensor, shares: Mapping[int, float], class_names: Sequence[str]
) -> Image.Image:
    """The image in the colours of its labels, names where they have room, and the classes by their shares below.

    image: uint8 (3, H, W) RGB; labels: int64 (H, W); those of no class leave the image as it is. shares: of the
    pixels by label, in the order of the legend. Small images are enlarged by a whole factor.
    """
    zoom = zoom_to(MIN_SIDE, image)
    pixels = enlarged(image.permute(1, 2, 0).cpu().numpy(), zoom).astype(np.float32)
    indices = enlarged(labels.cpu().numpy(), zoom)
    colours = np.array([class_colour(label) for label in range(len(class_names))], dtype=np.float32)
    known = indices < len(class_names)
    pixels[known] += _OPACITY * (colours[indices[known]] - pixels[known])
    pixels[_edges(indices, max(1, round(max(indices.shape) / 700)))] *= 0.25
    picture = Image.fromarray(pixels.round().astype(np.uint8))
    size = max(14, round(max(picture.size) / 50))
    _write_names(picture, indices, shares, class_names, size)
    legend = _legend(shares, class_names, picture.width, size)
    sheet = Image.new("RGB", (picture.width, picture.height + legend.height), _PAPER)
    sheet.paste(picture, (0, 0))
    sheet.paste(legend, (0, picture.height))
    return sheet


def _edges(labels: NDArray[np.int64], width: int) -> NDArray[np.bool_]:
    """Pixels whose label differs from that of a pixel `width` to the right or below."""
    edges = np.zeros(labels.shape, dtype=bool)
    edges[:-width] |= labels[:-width] != labels[width:]
    edges[:, :-width] |= labels[:, :-width] != labels[:, width:]
    return edges


def _write_names(
    picture: Image.Image, indices: NDArray[np.int64], shares: Iterable[int], class_names: Sequence[str], size: int
) -> None:
    """Writes the name of each class at its pixel furthest from any edge, if there is room for a letter."""
    pen, font = ImageDraw.Draw(picture), ImageFont.load_default(size=size)
    coarse = indices[:: size // 4, :: size // 4]
    depths = distance_transform_edt(np.pad(~_edges(coarse, 1), 1))[1:-1, 1:-1] * (size // 4)
    for label, (row, column) in zip(shares, maximum_position(depths, coarse, list(shares)), strict=True):
        if coarse[row, column] != label or depths[row, column] < size:
            continue
        name = class_names[label]
        half = font.getlength(name) / 2 + size / 4
        x = min(max(column * (size // 4), half), max(picture.width - half, half))
        place = (x, row * (size // 4))
        pen.text(place, name, fill=_PAPER, font=font, anchor="mm", stroke_width=max(1, size // 10), stroke_fill=_INK)


def _legend(shares: Mapping[int, float], class_names: Sequence[str], width: int, size: int) -> Image.Image:
    """Coloured squares, names and shares in as many columns as fit, read downwards. size: of the letters, in pixels."""
    font = ImageFont.load_default(size=size)
    texts = {label: f"{class_names[label]}  {share_in_words(share)}" for label, share in shares.items()}
    cell = math.ceil(max((font.getlength(text) for text in texts.values()), default=0)) + 3 * size
    columns = max(1, min((width - size) // cell, len(texts)))
    rows = math.ceil(len(texts) / columns)
    line = round(1.6 * size)
    sheet = Image.new("RGB", (width, rows * line + size), _PAPER)
    pen = ImageDraw.Draw(sheet)
    for place, (label, text) in enumerate(texts.items()):
        column, row = divmod(place, rows)
        x, y = size + column * cell, size // 2 + row * line
        pen.rectangle((x, y + 0.3 * size, x + size, y + 1.3 * size), fill=class_colour(label), outline=_INK)
        pen.text((x + 1.5 * size, y + 0.8 * size), text, fill=_INK, font=font, anchor="lm")
    return sheet
