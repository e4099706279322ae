"""Large images in tiles that overlap, and one result for the image from those of its tiles."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torchvision.ops import box_iou

from piip.errors import ConfigError
from piip.run_lengths import Rle, encode_placed

# A box that ends this close to a side of its tile, in pixels, is cut there.
MARGIN = 2.0
# Boxes of two tiles are the same object where they overlap by this IoU in the part of the image that both tiles see.
SAME = 0.5
# Masks of tiles with longer sides, which is the whole image, are made of squares of several pixels.
MOST_MASK_SIDE = 4096


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


class TileMerger(ABC):
    """Takes the results of the tiles of one image, row by row, and makes its result of them."""

    # Whether the whole image, made smaller, is looked at too, for what is larger than a tile.
    sees_whole = False

    @abstractmethod
    def add(self, tile: Tile, outputs: Any, image_size: tuple[int, int]) -> None:
        """outputs: of `Head.detect` for the tile alone, whose valid (h, w) in the batch was image_size."""

    @abstractmethod
    def result(self, *, encoded: bool) -> dict[str, Any]:
        """The result of the image as `Head.restore` has it, or `Head.restore_encoded`."""


class Object:
    """A detection: its tile, box (4,) xyxy in the image, score, label, and the part of its mask that is in its box.

    mask: (h, w) bool of the tile, each of its pixels zoom x zoom of those of the image.
    """

    def __init__(
        self, tile: Tile, box: Tensor, score: float, label: int, mask: Tensor | None = None, zoom: int = 1
    ) -> None:
        self.tile, self.box, self.score, self.label = tile, box, score, label
        self.parts: list[tuple[int, int, NDArray[np.bool_]]] = []
        if mask is not None:
            corners = (box - torch.tensor([tile.left, tile.top] * 2)) / zoom
            left, top = (int(side) for side in corners[:2].floor().clamp(min=0))
            right, bottom = (int(side) for side in corners[2:].ceil())
            part = mask[top:bottom, left:right].cpu().numpy().repeat(zoom, axis=0).repeat(zoom, axis=1)
            top, left = tile.top + top * zoom, tile.left + left * zoom
            self.parts.append((top, left, part[: tile.bottom - top, : tile.right - left]))

    def is_cut(self, size: tuple[int, int]) -> bool:
        """Whether a side of its tile that is no side of the image of size (h, w) cuts it."""
        left, top, right, bottom = self.box.tolist()
        tile = self.tile
        return (
            (tile.left > 0 and left < tile.left + MARGIN)
            or (tile.top > 0 and top < tile.top + MARGIN)
            or (tile.right < size[1] and right > tile.right - MARGIN)
            or (tile.bottom < size[0] and bottom > tile.bottom - MARGIN)
        )

    def join(self, others: list[Object]) -> None:
        """Becomes the smallest box around all, with the pixels of all masks."""
        boxes = torch.stack([self.box, *(other.box for other in others)])
        self.box = torch.cat([boxes[:, :2].amin(0), boxes[:, 2:].amax(0)])
        self.parts += [part for other in others for part in other.parts]

    def mask(self) -> tuple[int, int, NDArray[np.bool_]]:
        """Top, left, and the pixels of all parts together."""
        top, left = min(part[0] for part in self.parts), min(part[1] for part in self.parts)
        bottom = max(part[0] + part[2].shape[0] for part in self.parts)
        right = max(part[1] + part[2].shape[1] for part in self.parts)
        pixels = np.zeros((bottom - top, right - left), dtype=bool)
        for y, x, part in self.parts:
            pixels[y - top : y - top + part.shape[0], x - left : x - left + part.shape[1]] |= part
        return top, left, pixels


def merge(tiles: list[list[Object]], size: tuple[int, int]) -> list[Object]:
    """One of the detections of every object, best first, from those of each tile of an image of size (h, w).

    Detections of one class from two tiles are the same object where their boxes overlap by an IoU of SAME within what
    both tiles see. Of those that no tile cuts the best stands for all; where every one is cut, they are joined.
    """
    objects = [found for tile in tiles for found in tile]
    neighbours: list[set[int]] = [set() for _ in objects]
    ends = np.cumsum([0, *map(len, tiles)]).tolist()
    boxes = [torch.stack([found.box for found in tile]) if tile else torch.empty(0, 4) for tile in tiles]
    labels = [torch.tensor([found.label for found in tile]) for tile in tiles]
    seen = [index for index, tile in enumerate(tiles) if tile]
    parts = torch.tensor([[t.left, t.top, t.right, t.bottom] for t in (tiles[index][0].tile for index in seen)])
    if seen:
        for one, other in (box_iou(parts, parts) > 0).triu(1).nonzero().tolist():
            first, second = seen[one], seen[other]
            shared = torch.cat([parts[[one, other], :2].amax(0), parts[[one, other], 2:].amin(0)])
            low, high = shared[:2].repeat(2), shared[2:].repeat(2)
            overlap = box_iou(boxes[first].clamp(low, high), boxes[second].clamp(low, high))
            same = (overlap >= SAME) & (labels[first][:, None] == labels[second])
            for i, j in same.nonzero().tolist():
                neighbours[ends[first] + i].add(ends[second] + j)
                neighbours[ends[second] + j].add(ends[first] + i)
    cut = [found.is_cut(size) for found in objects]
    order = sorted(range(len(objects)), key=lambda index: (cut[index], -objects[index].score))
    taken, kept = set[int](), []
    for index in order:
        if index in taken:
            continue
        group, new = {index}, {index}
        while new:
            new = {other for member in new for other in neighbours[member]} - group - taken
            group |= new
            if not cut[index]:
                break
        taken |= group
        if cut[index]:
            objects[index].join([objects[other] for other in group - {index}])
        kept.append(objects[index])
    return sorted(kept, key=lambda found: -found.score)


def dense_masks(objects: list[Object], size: tuple[int, int]) -> Tensor:
    """Masks (n, h, w) bool."""
    masks = torch.zeros(len(objects), *size, dtype=torch.bool)
    for mask, found in zip(masks, objects):
        top, left, pixels = found.mask()
        mask[top : top + pixels.shape[0], left : left + pixels.shape[1]] = torch.from_numpy(pixels)
    return masks


def encoded_masks(objects: list[Object], size: tuple[int, int]) -> list[Rle]:
    """The same as compressed run lengths, whatever the size."""
    masks = [found.mask() for found in objects]
    padded = [np.pad(pixels, ((0, 1), (0, 0))) for _, _, pixels in masks]
    sides = np.array([pixels.shape for pixels in padded], dtype=np.int64).reshape(-1, 2)
    places = np.array([(top, left) for top, left, _ in masks], dtype=np.int64).reshape(-1, 2)
    return encode_placed(
        np.concatenate([pixels.T.ravel() for pixels in padded]) if padded else np.empty(0, dtype=bool),
        left=places[:, 1],
        top=places[:, 0],
        widths=sides[:, 1],
        heights=sides[:, 0],
        size=size,
    )


class DetectionTiles(TileMerger):
    """Merges what detectors find, see `merge`. restore: `Head.restore`; size: (h, w) of the image."""

    sees_whole = True

    def __init__(self, restore: Any, size: tuple[int, int]) -> None:
        self._restore, self._size = restore, size
        self._tiles: list[list[Object]] = []
        self._has_masks = False

    def add(self, tile: Tile, outputs: Any, image_size: tuple[int, int]) -> None:
        size = (tile.bottom - tile.top, tile.right - tile.left)
        # Masks of a whole large image are as fine as the network saw it.
        zoom = max(1, math.ceil(max(size) / MOST_MASK_SIDE))
        (found,) = self._restore([outputs], [image_size], [(-(-size[0] // zoom), -(-size[1] // zoom))])
        offset = torch.tensor([tile.left, tile.top] * 2)
        limits = torch.tensor([tile.right, tile.bottom] * 2)
        boxes, masks = torch.minimum(found["boxes"].cpu() * zoom + offset, limits), found.get("masks")
        self._has_masks |= masks is not None
        self._tiles.append(
            [
                Object(tile, box, score, label, None if masks is None else masks[index], zoom)
                for index, (box, score, label) in enumerate(
                    zip(boxes, found["scores"].tolist(), found["labels"].tolist(), strict=True)
                )
            ]
        )

    def result(self, *, encoded: bool) -> dict[str, Any]:
        objects = merge(self._tiles, self._size)
        found: dict[str, Any] = {
            "boxes": torch.stack([found.box for found in objects]) if objects else torch.empty(0, 4),
            "scores": torch.tensor([found.score for found in objects]),
            "labels": torch.tensor([found.label for found in objects], dtype=torch.int64),
        }
        if self._has_masks and encoded:
            found["rles"] = encoded_masks(objects, self._size)
        elif self._has_masks:
            found["masks"] = dense_masks(objects, self._size)
        return found


class SegmentationTiles(TileMerger):
    """Blends logits: each tile counts less towards its sides. Only the rows that a later tile still adds to are kept.

    size: (h, w) of the image.
    """

    def __init__(self, size: tuple[int, int]) -> None:
        self._size = size
        self._top = 0
        self._total: Tensor | None = None  # (classes, rows, w), from row _top on
        self._weight = torch.empty(0)
        self._labels: list[Tensor] = []
        self._scores: list[Tensor] = []

    def add(self, tile: Tile, outputs: Tensor, image_size: tuple[int, int]) -> None:
        """outputs: logits (classes, h, w) of the batch."""
        logits = torch.nn.functional.interpolate(
            outputs[None, :, : image_size[0], : image_size[1]].float(),
            size=(tile.bottom - tile.top, tile.right - tile.left),
            mode="bilinear",
            align_corners=False,
        )[0]
        if self._total is None:
            self._total = logits.new_zeros(len(logits), logits.shape[1], self._size[1])
            self._weight = logits.new_zeros(logits.shape[1], self._size[1])
        if tile.top > self._top:
            self._finish(tile.top - self._top)
        rows, columns = (
            torch.minimum(torch.arange(1, n + 1), torch.arange(n, 0, -1)).to(logits) for n in logits.shape[1:]
        )
        weight = rows[:, None] * columns
        place = slice(tile.left, tile.right)
        self._total[:, :, place] += logits * weight
        self._weight[:, place] += weight

    def result(self, *, encoded: bool) -> dict[str, Any]:
        self._finish(self._size[0] - self._top)
        return {"labels": torch.cat(self._labels), "scores": torch.cat(self._scores)}

    def _finish(self, rows: int) -> None:
        """Decides the first rows, and makes room for as many behind the others."""
        assert self._total is not None
        scores, labels = (self._total[:, :rows] / self._weight[:rows]).softmax(0).max(0)
        self._labels.append((labels.byte() if len(self._total) <= 256 else labels).cpu())
        self._scores.append(scores.cpu())
        for kept in (self._total, self._weight[None]):
            kept[:, :-rows] = kept[:, rows:].clone()
            kept[:, -rows:] = 0
        self._top += rows
