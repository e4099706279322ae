"""The likeliest classes of an image, as a document and as bars under the image."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from piip.results.base import ResultWriter
from piip.results.drawing import class_colour, zoom_to

# Classes that are named per image.
_SHOWN = 5
# Smaller images are enlarged to this longer side, so that names have room.
_MIN_SIDE = 640
_INK, _PAPER, _RAIL = (43, 43, 51), (255, 255, 255), (232, 232, 238)


class ClassificationWriter(ResultWriter):
    """The five likeliest classes of each image, whatever their scores: those of all classes sum to 1.

    The document holds class_names and images, each with file_name, width, height, and its labels, names and scores,
    the likeliest first.
    """

    def __init__(self, class_names: Sequence[str], *, score_threshold: float) -> None:
        super().__init__(class_names, score_threshold=score_threshold)
        self.document = {"class_names": self.class_names, "images": []}

    def add(self, file: Path, image: Tensor, result: dict[str, Any], picture: Path) -> dict[str, float]:
        """Returns the scores of the classes, the likeliest first."""
        labels, names, scores = self._best(result)
        entry: dict[str, Any] = {"file_name": str(file), "width": image.shape[2], "height": image.shape[1]}
        self.document["images"].append(entry | {"labels": labels, "names": names, "scores": scores})
        self.save(self.draw(image, result), picture)
        return dict(zip(names, scores, strict=True))

    def table(self, result: dict[str, Any]) -> tuple[list[str], list[list[Any]]]:
        _, names, scores = self._best(result)
        return ["class", "score"], [[name, round(score, 3)] for name, score in zip(names, scores, strict=True)]

    def draw(self, image: Tensor, result: Mapping[str, Tensor]) -> Image.Image:
        return draw_classes(image, *self._best(result))

    def draw_truth(self, image: Tensor, truth: Mapping[str, Any]) -> Image.Image:
        return self.draw(image, {"labels": torch.tensor([int(truth["label"])]), "scores": torch.ones(1)})

    def describe(self, found: dict[str, float]) -> str:
        """Scores and names, the likeliest first; those that would be written 0.00 are left out."""
        return ", ".join(f"{score:.2f} {name}" for name, score in found.items() if score >= 0.005)

    def _best(self, result: Mapping[str, Tensor]) -> tuple[list[int], list[str], list[float]]:
        """Labels, names and scores of the likeliest classes."""
        labels, scores = (result[name][:_SHOWN].tolist() for name in ("labels", "scores"))
        return labels, [self.class_names[label] for label in labels], scores


def draw_classes(image: Tensor, labels: Sequence[int], names: Sequence[str], scores: Sequence[float]) -> Image.Image:
    """The image, and under it a bar for every class.

    image: uint8 (3, H, W) RGB. labels: of the classes, for their colours. scores: in [0, 1].
    """
    picture = Image.fromarray(image.permute(1, 2, 0).cpu().numpy())
    zoom = zoom_to(_MIN_SIDE, image)
    picture = picture.resize((picture.width * zoom, picture.height * zoom), Image.Resampling.BICUBIC)
    # Bars need some width, also under a tall image, which then stands in the middle.
    width = max(picture.width, max(picture.size) * 3 // 4)
    size = max(14, width // 34)
    font, line = ImageFont.load_default(size=size), round(size * 1.75)
    pad = line // 2
    canvas = Image.new("RGB", (width, picture.height + len(scores) * line + 2 * pad), _PAPER)
    canvas.paste(picture, ((width - picture.width) // 2, 0))
    pen = ImageDraw.Draw(canvas)
    figures = pen.textlength("0.00", font=font)
    longest = min(max(pen.textlength(name, font=font) for name in names), width * 0.45)
    left, right = 2 * pad + longest, width - 2 * pad - figures
    for row, (label, name, score) in enumerate(zip(labels, names, scores, strict=True)):
        middle = picture.height + pad + (row + 0.5) * line
        pen.text((pad, middle), _shorten(name, longest, pen, font), fill=_INK, font=font, anchor="lm")
        pen.text((width - pad, middle), f"{score:.2f}", fill=_INK, font=font, anchor="rm")
        top, bottom = middle - line * 0.28, middle + line * 0.28
        pen.rectangle((left, top, right, bottom), fill=_RAIL)
        if score * (right - left) >= 1:
            pen.rectangle((left, top, left + score * (right - left), bottom), fill=class_colour(label))
    return canvas


def _shorten(
    name: str, width: float, pen: ImageDraw.ImageDraw, font: ImageFont.ImageFont | ImageFont.FreeTypeFont
) -> str:
    """The name, or as much of it as fits."""
    if pen.textlength(name, font=font) <= width:
        return name
    while name and pen.textlength(f"{name}...", font=font) > width:
        name = name[:-1]
    return f"{name}..."
