"""Images of which parts are read: those in memory, and TIFF files far larger than it."""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from piip.data.transforms.resize import resize_image
from piip.errors import DataError, first_line

TIFF_SUFFIXES = (".tif", ".tiff")


class Pixels(Protocol):
    """An image (3, h, w) uint8 RGB that is read in parts."""

    size: tuple[int, int]

    def part(self, top: int, left: int, bottom: int, right: int) -> Tensor:
        """Its pixels (3, bottom - top, right - left)."""

    def reduced(self, longest: int) -> Tensor:
        """The whole image with sides of at most `longest` pixels."""


class InMemory:
    """An image that is there, pixels (3, h, w) uint8."""

    def __init__(self, pixels: Tensor) -> None:
        self.pixels = pixels
        self.size = (pixels.shape[1], pixels.shape[2])

    def part(self, top: int, left: int, bottom: int, right: int) -> Tensor:
        return self.pixels[:, top:bottom, left:right]

    def reduced(self, longest: int) -> Tensor:
        size = reduced_size(self.size, longest)
        return self.pixels if size == self.size else resize_image(self.pixels, size)


class TiffFile:
    """A TIFF file whose blocks are read where they are wanted, by rasterio.

    One band is repeated, of more the first three are RGB; of 16 bits the upper byte is kept, as in other files. The
    orientation of such files is not read. Raises DataError for a file that cannot be read, and without rasterio.
    """

    def __init__(self, path: Path) -> None:
        try:
            import rasterio
        except ImportError:
            raise DataError(f"{path}: to read parts of a large TIFF, pip install 'piip[large]'") from None
        self._path, self._rasterio = path, rasterio
        with self._open() as file:
            self.size = (file.height, file.width)
            kinds = {str(kind) for kind in file.dtypes}
            if not kinds <= {"uint8", "uint16"}:
                raise DataError(f"{path} holds {', '.join(sorted(kinds))}; parts are read of 8 and 16 bits")

    def part(self, top: int, left: int, bottom: int, right: int) -> Tensor:
        from rasterio.windows import Window

        return self._read(window=Window(left, top, right - left, bottom - top))

    def reduced(self, longest: int) -> Tensor:
        from rasterio.enums import Resampling

        height, width = reduced_size(self.size, longest)
        return self._read(size=(height, width), resampling=Resampling.average)

    def _read(self, *, size: tuple[int, int] | None = None, **how: Any) -> Tensor:
        with self._open() as file:
            bands = [1, 2, 3] if file.count >= 3 else [1]
            pixels = file.read(bands, out_shape=None if size is None else (len(bands), *size), **how)
        if pixels.dtype == "uint16":
            pixels = (pixels >> 8).astype("uint8")
        return torch.from_numpy(pixels).expand(3, -1, -1)

    @contextmanager
    def _open(self) -> Iterator[Any]:
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", self._rasterio.errors.NotGeoreferencedWarning)
                # Its cache of blocks would grow to a twentieth of the memory of the machine.
                with self._rasterio.Env(GDAL_CACHEMAX=128), self._rasterio.open(os.fspath(self._path)) as file:
                    yield file
        except self._rasterio.errors.RasterioError as error:
            raise DataError(f"cannot read {self._path}: {first_line(error)}") from None


def reduced_size(size: tuple[int, int], longest: int) -> tuple[int, int]:
    """A size (h, w) brought to sides of at most `longest`, its shape kept."""
    share = min(1.0, longest / max(size))
    return max(1, round(size[0] * share)), max(1, round(size[1] * share))
