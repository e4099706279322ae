"""Polygons with corners far out of their image are drawn as what of them lies in it."""

from __future__ import annotations

import tracemalloc

import numpy as np
import pytest
from pycocotools import mask as mask_utils

from piip.data.sets.instances.masks import read_mask, to_rle
from tests.data.sets.coco.coco_set import Coco


@pytest.mark.parametrize("corner", [1e6, 1e7, 1e8, 5e8, 1e9, 2.0**31 - 1])
def test_a_corner_far_outside_costs_no_memory_and_changes_nothing_inside(corner: float) -> None:
    tracemalloc.start()
    read = read_mask([[0, 0, corner, 0, corner, corner]], None, (400, 600), lambda _: None)
    mask = mask_utils.decode(to_rle(read.segmentation, 400, 600))
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 8e6
    assert np.array_equal(mask, mask_utils.decode(mask_utils.frPyObjects([[0, 0, 4000, 0, 4000, 4000]], 400, 600)[0]))


def test_an_outline_that_goes_to_and_fro_for_ever_is_left_out_and_a_long_one_is_drawn(coco: Coco) -> None:
    # Along the edge of every pixel of a column and back, as tools that follow pixels write it.
    long = [value for y in range(32) for x in (*range(60), *reversed(range(60))) for value in (x, y)]
    coco.annotate({"segmentation": [long * 40]})
    assert coco.load().has_masks
    coco.data["annotations"][-1]["segmentation"] = [[0, 0, 64, 64] * 170_000]
    found = coco.load()
    assert "'segmentation' goes to and fro too often" in str(found.report)
    assert [rle is None for rle in found.truth(2)["rles"]] == [True]


def test_an_annotation_with_such_a_corner_is_trained_on_and_evaluated(coco: Coco) -> None:
    coco.annotate({"segmentation": [[0, 0, 1e9, 0, 1e9, 1e9], [-1e9, -1e9, -1e9, 1e9, 0, 0]]})
    dataset = coco.load()
    index = next(i for i in range(len(dataset)) if dataset.image_id(i) == 12)
    half = dataset.target(index)["masks"][0].float().mean()
    assert half == pytest.approx(0.5, abs=0.02)
    assert len(dataset.truth(index)["rles"]) == 1
