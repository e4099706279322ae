"""Label maps as PNG files, and drawn over their image."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from piip.errors import first_few
from piip.files import replacing
from piip.results.base import ResultWriter
from piip.results.drawing import class_colour
from piip.results.label_overlay import draw_label_map, share_in_words

_NAMED = 6
_PALETTE_SIZE = 256


class LabelMapWriter(ResultWriter):
    """The label of every pixel; the score threshold plays no part.

    A PNG file beside the picture holds the labels themselves: with a palette of the classes' colours, or 16-bit grey
    for more than 256 classes. The document holds the classes, and for every image its size, its label map's file and
    the classes in it, the largest first: id, name, share of the pixels, and mean score (probability).
    """

    def __init__(self, class_names: Sequence[str], *, score_threshold: float) -> None:
        super().__init__(class_names, score_threshold=score_threshold)
        classes = [{"id": label, "name": name} for label, name in enumerate(class_names)]
        self.document = {"classes": classes, "images": []}

    def add(self, file: Path, image: Tensor, result: dict[str, Any], picture: Path) -> dict[str, float]:
        """Returns the share of the pixels of each class that was found."""
        labels, scores = result["labels"].cpu().long(), result["scores"].cpu().flatten()
        sums = torch.bincount(labels.flatten(), weights=scores.double(), minlength=len(self.class_names))
        found: list[dict[str, Any]] = [
            {
                "id": label,
                "name": self.class_names[label],
                "share": pixels / labels.numel(),
                "score": float(sums[label] / pixels),
            }
            for label, pixels in self._pixels(labels).items()
        ]
        label_file = picture.with_suffix(".png")
        with replacing(label_file) as stream:
            self._indexed(labels).save(stream, "PNG")
        self.save(self.draw(image, result), picture)
        height, width = labels.shape
        name = label_file.relative_to(self.root or picture.parent).as_posix()
        entry = {"file_name": str(file), "width": width, "height": height, "label_map": name}
        self.document["images"].append(entry | {"classes": found})
        return {entry["name"]: entry["share"] for entry in found}

    def table(self, result: dict[str, Any]) -> tuple[list[str], list[list[Any]]]:
        labels = result["labels"].cpu().long()
        shares = {label: pixels / labels.numel() for label, pixels in self._pixels(labels).items()}
        return ["class", "share of the pixels"], [[self.class_names[k], round(v, 4)] for k, v in shares.items()]

    def draw(self, image: Tensor, result: Mapping[str, Tensor]) -> Image.Image:
        labels = result["labels"].cpu().long()
        shares = {label: pixels / labels.numel() for label, pixels in self._pixels(labels).items()}
        return draw_label_map(image, labels, shares, self.class_names)

    def draw_truth(self, image: Tensor, truth: Mapping[str, Any]) -> Image.Image:
        return self.draw(image, {"labels": torch.as_tensor(truth["label_map"])})

    def describe(self, found: dict[str, float]) -> str:
        """The largest shares."""
        parts = [f"{share_in_words(share)} {name}" for name, share in found.items()]
        return first_few(parts, _NAMED)

    def _pixels(self, labels: Tensor) -> dict[int, int]:
        """How many pixels have each label that is found and is one of a class, the commonest first."""
        pixels = torch.bincount(labels[labels < len(self.class_names)], minlength=len(self.class_names))
        order = pixels.argsort(descending=True, stable=True).tolist()
        return {label: int(pixels[label]) for label in order if pixels[label]}

    def _indexed(self, labels: Tensor) -> Image.Image:
        if len(self.class_names) > _PALETTE_SIZE:
            return Image.fromarray(labels.numpy().astype(np.uint16))
        indexed = Image.fromarray(labels.numpy().astype(np.uint8), mode="P")
        indexed.putpalette([channel for label in range(_PALETTE_SIZE) for channel in class_colour(label)])
        return indexed
