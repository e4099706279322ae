"""Writes predictions as pictures and JSON: what every task's writer has."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from PIL import Image
from torch import Tensor

from piip.conventions import JPEG_QUALITY
from piip.errors import DataError
from piip.files import replacing


class ResultWriter(ABC):
    """Takes the results of one image after the other.

    class_names: one per class, in label order. document: the results so far, as JSON can hold them.
    """

    document: dict[str, Any]
    # The folder that names of further files in the document are relative to; None: that of their picture.
    root: Path | None = None

    def __init__(self, class_names: Sequence[str], *, score_threshold: float) -> None:
        self.class_names, self.score_threshold = list(class_names), score_threshold

    @abstractmethod
    def add(self, file: Path, image: Tensor, result: Any, picture: Path) -> dict[str, float]:
        """Adds the result of an image to the document, and draws it.

        file: where the image came from. image: uint8 (3, H, W) RGB. result: what `Model.predict` returned for it.
        picture: the JPEG file to write; further files of a writer differ from it in their ending. Returns what was
        found: class name -> a number that `describe` explains.
        """

    def add_smaller(
        self, file: Path, image: Tensor, result: Any, picture: Path, *, size: tuple[int, int]
    ) -> dict[str, float]:
        """As `add`, of an image of size (h, w) that is too large to be drawn; `image` is a smaller copy of it."""
        raise DataError(
            f"{file} is too large to be drawn as a whole, and its results cannot be drawn on a smaller copy"
        )

    @abstractmethod
    def describe(self, found: dict[str, float]) -> str:
        """In a few words what `add` returned."""

    def table(self, result: Any) -> tuple[list[str], list[list[Any]]]:
        """The names of columns, and the rows, of what a result holds, most important first; none by default."""
        return [], []

    def draw(self, image: Tensor, result: Any) -> Image.Image:
        """The image (3, H, W) uint8 RGB with its result on it, as `add` draws it; by default the image alone."""
        return Image.fromarray(image.permute(1, 2, 0).cpu().numpy())

    def draw_truth(self, image: Tensor, truth: Mapping[str, Any]) -> Image.Image:
        """The same with what the data set says of the image (`ImageDataset.truth`); by default the image alone."""
        return self.draw(image, None)

    def save(self, drawing: Image.Image, picture: Path) -> None:
        """Writes a drawing as the JPEG file `picture`, whole or not at all. Raises OSError."""
        with replacing(picture) as stream:
            drawing.save(stream, "JPEG", quality=JPEG_QUALITY)
