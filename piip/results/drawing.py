"""Detections drawn over their image: masks, boxes, class names and scores, legible at any image size."""

from __future__ import annotations

import colorsys
from collections.abc import Mapping, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor
from torch.nn import functional as F

# Smaller images are enlarged to this longer side, so that text has room.
MIN_SIDE = 960
_MASK_OPACITY = 0.42
_GOLDEN_RATIO = 0.61803398875

Rectangle = tuple[float, float, float, float]


def class_colour(label: int) -> tuple[int, int, int]:
    """The RGB colour of a class: always the same, and far from those of neighbouring labels."""
    hue = (0.58 + label * _GOLDEN_RATIO) % 1.0
    saturation, value = ((0.85, 1.0), (0.55, 1.0), (0.95, 0.8))[label // 8 % 3]
    red, green, blue = colorsys.hsv_to_rgb(hue, saturation, value)
    return round(red * 255), round(green * 255), round(blue * 255)


def zoom_to(side: int, image: Tensor) -> int:
    """The least whole factor that brings the longer side of an image (3, H, W) to at least `side` pixels."""
    return max(1, -(-side // max(image.shape[1:])))


def enlarged(array: NDArray, factor: int) -> NDArray:
    """(H, W, ...) -> (H * factor, W * factor, ...), every pixel a square of factor x factor."""
    return array.repeat(factor, axis=0).repeat(factor, axis=1)


def draw_detections(image: Tensor, result: Mapping[str, Tensor], class_names: Sequence[str]) -> Image.Image:
    """The image with its detections on it.

    image: uint8 (3, H, W) RGB. result: boxes (n, 4) xyxy in its pixels, labels (n,), and perhaps scores (n,) and masks
    (n, H, W) bool. Labels beyond class_names are shown as numbers. Small images are enlarged by a whole factor.
    """
    zoom = zoom_to(MIN_SIDE, image)
    pixels = enlarged(image.permute(1, 2, 0).cpu().numpy(), zoom).astype(np.float32)
    side = max(pixels.shape[:2])
    line = max(2, round(side / 500))
    boxes = result["boxes"].cpu() * zoom
    labels, scores = result["labels"].tolist(), result["scores"].tolist() if "scores" in result else None
    # Large ones first, so that small ones lie on top.
    order = ((boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])).argsort(descending=True).tolist()
    if "masks" in result:
        for index in order:
            mask = enlarged(result["masks"][index].cpu().numpy(), zoom)
            _blend(pixels, mask, class_colour(labels[index]), line)
    canvas = Image.fromarray(pixels.round().clip(0, 255).astype(np.uint8))
    pen = ImageDraw.Draw(canvas)
    for index in order:
        pen.rectangle(_inside(boxes[index].tolist(), canvas.size), outline=class_colour(labels[index]), width=line)
    font = ImageFont.load_default(size=max(13, round(side / 62)))
    taken: list[Rectangle] = []
    for index in order if scores is None else sorted(order, key=lambda index: -scores[index]):
        label = labels[index]
        name = class_names[label] if label < len(class_names) else str(label)
        tag = name if scores is None else f"{name} {scores[index]:.2f}"
        _write_tag(pen, tag, boxes[index].tolist(), class_colour(label), font, canvas.size, taken)
    return canvas


def _blend(pixels: NDArray[np.float32], mask: NDArray[np.bool_], colour: tuple[int, int, int], line: int) -> None:
    """Tints the mask and outlines it, in place."""
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    if rows.size == 0:
        return
    # Most objects cover a small part of the image: work on that part, and a margin for the outline.
    top, left = max(0, rows[0] - line), max(0, columns[0] - line)
    part = slice(top, rows[-1] + line + 1), slice(left, columns[-1] + line + 1)
    mask, pixels = mask[part], pixels[part]
    tint = np.asarray(colour, dtype=np.float32)
    outside = torch.from_numpy(~mask)[None, None].float()
    spread = F.max_pool2d(outside, kernel_size=(2 * line + 1, 1), stride=1, padding=(line, 0))
    spread = F.max_pool2d(spread, kernel_size=(1, 2 * line + 1), stride=1, padding=(0, line))
    edge = spread[0, 0].bool().numpy() & mask
    pixels[mask] = (1 - _MASK_OPACITY) * pixels[mask] + _MASK_OPACITY * tint
    pixels[edge] = 0.25 * pixels[edge] + 0.75 * tint


def _write_tag(
    pen: ImageDraw.ImageDraw,
    text: str,
    box: list[float],
    colour: tuple[int, int, int],
    font: ImageFont.ImageFont | ImageFont.FreeTypeFont,
    size: tuple[int, int],
    taken: list[Rectangle],
) -> None:
    """Writes `text` on a plate at the box, where it covers no earlier plate if there is such a place."""
    left, top, right, bottom = pen.textbbox((0, 0), text, font=font)
    pad = max(2.0, (bottom - top) * 0.22)
    width, height = right - left + 2 * pad, bottom - top + 2 * pad
    x1, y1, x2, y2 = box
    corners = [(x1, y1 - height), (x1, y1), (x1, y2), (x2 - width, y1 - height), (x2 - width, y2 - height)]
    corners += [(x1, y2 - height), *((x1, y1 + row * height) for row in range(1, 6))]
    plates = [_shift_inside(x, y, width, height, size) for x, y in corners]
    plate = next((plate for plate in plates if not any(_overlap(plate, other) for other in taken)), plates[0])
    taken.append(plate)
    pen.rectangle(plate, fill=colour)
    red, green, blue = colour
    ink = (0, 0, 0) if 0.299 * red + 0.587 * green + 0.114 * blue > 140 else (255, 255, 255)
    pen.text((plate[0] + pad - left, plate[1] + pad - top), text, fill=ink, font=font)


def _shift_inside(x: float, y: float, width: float, height: float, size: tuple[int, int]) -> Rectangle:
    x, y = max(0.0, min(x, size[0] - width)), max(0.0, min(y, size[1] - height))
    return x, y, x + width, y + height


def _overlap(a: Rectangle, b: Rectangle) -> bool:
    return a[0] < b[2] and b[0] < a[2] and a[1] < b[3] and b[1] < a[3]


def _inside(box: list[float], size: tuple[int, int]) -> Rectangle:
    """The box within the image, with its corners in order."""
    x1, y1 = min(max(box[0], 0.0), size[0] - 1.0), min(max(box[1], 0.0), size[1] - 1.0)
    return x1, y1, min(max(box[2] - 1, x1), size[0] - 1.0), min(max(box[3] - 1, y1), size[1] - 1.0)
