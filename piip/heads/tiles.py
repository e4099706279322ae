"""One result for an image from those of its tiles, which overlap."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torchvision.ops import box_iou

from piip.run_lengths import Rle, encode_placed
from piip.tiling import Tile

# A box that ends this close to a side of its tile, in pixels, is cut there.
MARGIN = 2.0
# Boxes of two tiles are the same object where they overlap by this IoU in the part of the image that both tiles see.
SAME = 0.5
# Masks of tiles with longer sides, which is the whole image, are made of squares of several pixels.
MOST_MASK_SIDE = 2048


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
        self.parts: list[tuple[int, int, int, NDArray[np.bool_]]] = []
        if mask is not None:
            corners = (box - torch.tensor([tile.left, tile.top] * 2)) / zoom
            left, top = (int(side) for side in corners[:2].floor().clamp(min=0))
            right, bottom = (int(side) for side in corners[2:].ceil())
            part = mask[top:bottom, left:right].cpu().numpy().copy()
            self.parts.append((tile.top + top * zoom, tile.left + left * zoom, zoom, part))

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

    def mask(self, size: tuple[int, int]) -> tuple[int, int, NDArray[np.bool_]]:
        """Top, left, and the pixels of all parts together, within an image of size (h, w)."""
        parts = [(top, left, part.repeat(zoom, axis=0).repeat(zoom, axis=1)) for top, left, zoom, part in self.parts]
        top, left = min(part[0] for part in parts), min(part[1] for part in parts)
        bottom = max(part[0] + part[2].shape[0] for part in parts)
        right = max(part[1] + part[2].shape[1] for part in parts)
        pixels = np.zeros((bottom - top, right - left), dtype=bool)
        for y, x, part in parts:
            pixels[y - top : y - top + part.shape[0], x - left : x - left + part.shape[1]] |= part
        return top, left, pixels[: size[0] - top, : size[1] - left]


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
        top, left, pixels = found.mask(size)
        mask[top : top + pixels.shape[0], left : left + pixels.shape[1]] = torch.from_numpy(pixels)
    return masks


def encoded_masks(objects: list[Object], size: tuple[int, int]) -> list[Rle]:
    """The same as compressed run lengths, one after the other: the pixels of all may be many."""
    return [_encode(*found.mask(size), size) for found in objects]


def _encode(top: int, left: int, pixels: NDArray[np.bool_], size: tuple[int, int]) -> Rle:
    columns = np.pad(pixels, ((0, 1), (0, 0))).T
    width, height = columns.shape
    one = {"left": left, "top": top, "widths": width, "heights": height}
    (rle,) = encode_placed(columns.ravel(), size=size, **{name: np.array([value]) for name, value in one.items()})
    return rle


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
