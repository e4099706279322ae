"""How large images are cut into tiles that overlap."""

from __future__ import annotations

from typing import NamedTuple

from piip.errors import ConfigError


class Tile(NamedTuple):
    """A part of an image, in its pixels."""

    top: int
    left: int
    bottom: int
    right: int


class Tiling(NamedTuple):
    """How images are cut. tile: side of the tiles in pixels. overlap: share of a tile that the next one sees too."""

    tile: int
    overlap: float = 0.2

    def check(self) -> None:
        """Raises ConfigError for what is no tiling."""
        if self.tile < 1 or not 0 <= self.overlap <= 0.9:
            raise ConfigError(
                f"tiles of {self.tile} pixels with an overlap of {self.overlap:g}: give a side of at least 1, and an "
                "overlap from 0 to 0.9"
            )

    def cut(self, size: tuple[int, int]) -> list[Tile]:
        """The tiles of an image of size (h, w), row by row; those of its end are moved back into it."""
        stride = max(1, round(self.tile * (1 - self.overlap)))
        height, width = (min(self.tile, side) for side in size)
        rows, columns = (starts(side, min(self.tile, side), stride) for side in size)
        return [Tile(top, left, top + height, left + width) for top in rows for left in columns]


def starts(length: int, window: int, stride: int) -> list[int]:
    """Where windows start so that they cover `length` pixels."""
    steps = -(-max(length - window, 0) // stride)
    return [max(min(step * stride, length - window), 0) for step in range(steps + 1)]
