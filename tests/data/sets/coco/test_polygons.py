"""Polygons, however far they reach out of the image, are drawn as pycocotools draws them."""

from __future__ import annotations

import time
import tracemalloc

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pycocotools import mask as mask_utils

from piip.data.sets.instances import polygons
from piip.data.sets.instances.polygons import polygon_rle
from tests.data.sets.coco.coco_set import Coco


@st.composite
def outlines(draw: st.DrawFn) -> tuple[list[float], int, int]:
    """Corners in and around an image of a height and a width, crossing one another at will."""
    height, width = draw(st.integers(1, 50)), draw(st.integers(1, 50))
    margin = draw(st.sampled_from([0, 1, 30, 3000]))
    places = [st.floats(-margin, side + margin) for side in (width, height)]
    if draw(st.booleans()):
        places = [place.map(round) for place in places]
    corners = draw(st.lists(st.tuples(*places), min_size=3, max_size=9))
    return [float(value) for corner in corners for value in corner], height, width


@settings(max_examples=400, deadline=None)
@given(outlines())
def test_what_is_drawn_here_is_what_pycocotools_draws(outline: tuple[list[float], int, int]) -> None:
    corners, height, width = outline
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(polygons, "_LONG", -1)
        patch.setattr(polygons, "_CHUNK", 2 * width)
        assert polygon_rle(corners, height, width) == mask_utils.frPyObjects([corners], height, width)[0]


@pytest.mark.parametrize("corner", [1e7, 1e8, 5e8, 1e9, 2.0**31 - 1])
def test_a_corner_far_outside_costs_neither_memory_nor_time_and_changes_nothing_inside(corner: float) -> None:
    start = time.perf_counter()
    tracemalloc.start()
    mask = mask_utils.decode(polygon_rle([0, 0, corner, 0, corner, corner], 400, 600))
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert time.perf_counter() - start < 1
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
