"""Large images, seen in tiles: each tile as if it were an image."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor

from piip.data.transforms.batch import prepare
from piip.data.transforms.config import TransformsConfig
from piip.data.windowed import Pixels
from piip.heads.tiles import TileMerger
from piip.tiling import Tile, Tiling


def see_in_tiles(
    look: Callable[[Tensor, list[tuple[int, int]]], Any],
    image: Pixels,
    tiling: Tiling,
    merger: TileMerger,
    transforms: TransformsConfig,
    *,
    together: int,
) -> None:
    """Shows a network all tiles of an image, and the whole where the merger wants it, and gives the merger the outputs.

    look: takes a batch and its valid sizes, as `prepare` makes them, and returns an output for each. together: how many
    tiles it gets at a time. Raises ConfigError for what is no tiling.
    """
    tiling.check()
    tiles = tiling.cut(image.size)

    def show(seen: list[tuple[Tile, Tensor]]) -> None:
        batch, image_sizes = prepare([pixels for _, pixels in seen], transforms)
        for (tile, _), found, size in zip(seen, look(batch, image_sizes), image_sizes, strict=True):
            merger.add(tile, found, size)

    if len(tiles) > 1 and merger.sees_whole:
        whole = image.reduced(max(tiling.tile, transforms.long_side))
        show([(Tile(0, 0, *image.size), whole)])
    for start in range(0, len(tiles), together):
        show([(tile, image.part(*tile)) for tile in tiles[start : start + together]])
