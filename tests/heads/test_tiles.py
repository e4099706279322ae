"""Tiles: where they lie, and one result from those of all tiles."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch
import torch.nn.functional as F
from pycocotools import mask as mask_utils
from torch import Tensor

from piip.errors import ConfigError
from piip.heads.tiles import DetectionTiles, Object, SegmentationTiles, merge
from piip.tiling import Tile, Tiling

SIZE = (100, 180)
LEFT, RIGHT = Tile(0, 0, 100, 100), Tile(0, 80, 100, 180)  # both see columns 80 to 100
WHOLE = Tile(0, 0, 100, 180)


def found(tile: Tile, *objects: tuple[list[float], float, int]) -> list[Object]:
    return [Object(tile, torch.tensor(box), score, label) for box, score, label in objects]


def boxes(objects: list[Object]) -> list[list[float]]:
    return [item.box.tolist() for item in objects]


@pytest.mark.parametrize(
    ("size", "tile", "overlap"), [((100, 180), 64, 0.2), ((50, 300), 64, 0.0), ((64, 64), 64, 0.5)]
)
def test_tiles_cover_the_image_and_overlap_as_asked(size, tile, overlap):
    seen = torch.zeros(size)
    tiles = Tiling(tile, overlap).cut(size)
    for top, left, bottom, right in tiles:
        assert (bottom - top, right - left) == (min(tile, size[0]), min(tile, size[1]))
        seen[top:bottom, left:right] += 1
    assert seen.min() == 1
    lefts = sorted({part.left for part in tiles})
    assert all(after - before <= round(tile * (1 - overlap)) for before, after in pairwise(lefts))


def test_what_is_no_tiling_is_refused():
    for tiling in (Tiling(0), Tiling(64, 1.0), Tiling(64, -0.1)):
        with pytest.raises(ConfigError, match="tiles of"):
            tiling.check()


def test_an_object_that_two_tiles_see_whole_is_the_better_one():
    box = [82.0, 10, 96, 30]
    kept = merge([found(LEFT, (box, 0.6, 1)), found(RIGHT, ([82.0, 11, 96, 30], 0.9, 1))], SIZE)
    assert (boxes(kept), kept[0].score) == ([[82.0, 11, 96, 30]], 0.9)


def test_a_cut_piece_gives_way_to_the_whole_however_high_its_score():
    kept = merge([found(LEFT, ([85.0, 10, 100, 30], 0.99, 1)), found(RIGHT, ([85.0, 10, 130, 30], 0.5, 1))], SIZE)
    assert boxes(kept) == [[85.0, 10, 130, 30]]


def test_pieces_that_are_all_cut_are_joined_over_any_number_of_tiles():
    middle = Tile(0, 40, 100, 140)
    pieces = [
        found(LEFT, ([20.0, 10, 100, 30], 0.7, 1)),
        found(middle, ([40.0, 10, 140, 30], 0.8, 1)),
        found(RIGHT, ([80.0, 10, 160, 31], 0.6, 1)),
    ]
    kept = merge(pieces, SIZE)
    assert (boxes(kept), kept[0].score) == ([[20.0, 10, 160, 31]], pytest.approx(0.8))
    whole = merge([found(WHOLE, ([20.0, 10, 161, 31], 0.3, 1)), *pieces], SIZE)
    assert boxes(whole) == [[20.0, 10, 161, 31]]


def test_other_classes_other_places_and_the_same_tile_are_other_objects():
    left = found(LEFT, ([82.0, 10, 96, 30], 0.9, 1), ([82.0, 10, 96, 30], 0.8, 2), ([83.0, 10, 97, 30], 0.7, 1))
    right = found(RIGHT, ([82.0, 60, 96, 80], 0.6, 1))
    assert [item.score for item in merge([left, right], SIZE)] == [0.9, 0.8, 0.7, 0.6]
    assert merge([[], []], SIZE) == []


def test_a_side_of_the_image_cuts_nothing():
    kept = merge([found(LEFT, ([0.0, 0, 30, 100], 0.5, 1)), found(RIGHT, ([150.0, 0, 180, 100], 0.4, 1))], SIZE)
    assert not any(item.is_cut(SIZE) for item in kept)


def restore(outputs: list[dict[str, Tensor]], image_sizes, original_sizes) -> list[dict[str, Tensor]]:
    """A head's that draws a mask over the whole of each box."""
    results = []
    for image, (height, width) in zip(outputs, original_sizes):
        y, x = torch.arange(height)[:, None] + 0.5, torch.arange(width) + 0.5
        inside = [(x > b[0]) & (x < b[2]) & (y > b[1]) & (y < b[3]) for b in image["boxes"]]
        masks = torch.stack(inside) if inside else torch.zeros(0, height, width, dtype=torch.bool)
        results.append(image | {"masks": masks})
    return results


def outputs(*rows: list[float]) -> dict[str, Tensor]:
    return {
        "boxes": torch.tensor(rows).reshape(-1, 4),
        "scores": torch.linspace(0.9, 0.5, len(rows)),
        "labels": torch.zeros(len(rows), dtype=torch.int64),
    }


@pytest.mark.parametrize("encoded", [False, True])
def test_masks_of_pieces_become_one_mask_in_the_image(encoded):
    tiles = DetectionTiles(restore, SIZE)
    tiles.add(LEFT, outputs([60.0, 10, 100, 30], [5.0, 5, 9, 100]), (64, 64))
    tiles.add(RIGHT, outputs([0.0, 10, 40, 30]), (64, 64))  # columns 80 to 120 of the image
    result = tiles.result(encoded=encoded)
    assert result["boxes"].tolist() == [[60.0, 10, 120, 30], [5.0, 5, 9, 100]]
    expected = torch.zeros(2, *SIZE, dtype=torch.bool)
    expected[0, 10:30, 60:120] = expected[1, 5:100, 5:9] = True
    if encoded:
        masks = torch.stack([torch.from_numpy(mask_utils.decode(rle)) for rle in result["rles"]]).bool()
    else:
        masks = result["masks"]
    assert torch.equal(masks, expected)


@pytest.mark.parametrize("encoded", [False, True])
def test_tiles_without_objects_give_none(encoded):
    tiles = DetectionTiles(restore, SIZE)
    tiles.add(LEFT, outputs(), (64, 64))
    result = tiles.result(encoded=encoded)
    assert result["boxes"].shape == (0, 4)
    assert len(result["rles" if encoded else "masks"]) == 0


def test_masks_of_a_very_large_image_are_made_of_squares(monkeypatch):
    monkeypatch.setattr("piip.heads.tiles.MOST_MASK_SIDE", 60)  # three pixels a square
    tiles = DetectionTiles(restore, SIZE)
    tiles.add(WHOLE, outputs([10.0, 3, 20, 33]), (60, 60))  # of the smaller image
    result = tiles.result(encoded=False)
    assert result["boxes"].tolist() == [[30.0, 9, 60, 99]]
    expected = torch.zeros(1, *SIZE, dtype=torch.bool)
    expected[0, 9:99, 30:60] = True
    assert torch.equal(result["masks"], expected)


def test_blended_logits_of_a_network_that_sees_a_pixel_are_those_of_the_whole_image():
    image = torch.randn(4, *SIZE, generator=torch.Generator().manual_seed(0))
    tiles = SegmentationTiles(SIZE)
    for tile in Tiling(48, 0.3).cut(SIZE):
        part = image[:, tile.top : tile.bottom, tile.left : tile.right]
        tiles.add(tile, F.pad(part, (0, 3, 0, 5)), (part.shape[1], part.shape[2]))
    result = tiles.result(encoded=False)
    scores, labels = image.softmax(0).max(0)
    assert torch.equal(result["labels"].long(), labels)
    torch.testing.assert_close(result["scores"], scores)


def test_a_tile_counts_less_towards_its_sides():
    tiles = SegmentationTiles((10, 15))
    for tile, value in ((Tile(0, 0, 10, 10), 4.0), (Tile(0, 5, 10, 15), -4.0)):
        tiles.add(tile, torch.stack([torch.full((10, 10), value), torch.zeros(10, 10)]), (10, 10))
    labels = tiles.result(encoded=False)["labels"]
    assert labels[5].tolist() == [0] * 7 + [1] * 8 or labels[5].tolist() == [0] * 8 + [1] * 7
