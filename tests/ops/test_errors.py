"""Whatever the ops refuse is a Python exception that names the argument and what was expected."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from piip.ops import deform_attn, ms_deform_attn, pyramid_resize


def attention_arguments():
    return {
        "value": torch.randn(2, 26, 2, 6),
        "spatial_shapes": [(4, 5), (2, 3)],
        "reference_points": torch.rand(2, 3, 2, 2),
        "sampling_offsets": torch.randn(2, 3, 2, 2, 4, 2),
        "attention_logits": torch.randn(2, 3, 2, 8),
    }


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"value": [1.0]}, TypeError, "value must be a tensor, got list"),
        ({"value": torch.zeros(2, 26, 2, 6, dtype=torch.int32)}, TypeError, "value must be float32.*got torch.int32"),
        ({"value": torch.randn(2, 26, 2, 6).to_sparse()}, TypeError, r"value must be a dense tensor.*to_dense\(\)"),
        ({"value": torch.randn(2, 25, 2, 6)}, ValueError, r"value must have shape .*26.*got \(2, 25, 2, 6\)"),
        ({"value": torch.randn(26, 2, 6)}, ValueError, r"value must have shape .*got \(26, 2, 6\)"),
        ({"value": torch.randn(2, 26, 2, 0)}, ValueError, "value must have at least one head and one channel"),
        ({"spatial_shapes": []}, ValueError, "spatial_shapes must be a non-empty sequence"),
        (
            {"spatial_shapes": [(4, 5, 1), (2, 3)]},
            ValueError,
            "spatial_shapes must be a non-empty sequence of .H, W. pairs",
        ),
        ({"spatial_shapes": [(4, 5), 6]}, ValueError, "spatial_shapes must be a non-empty sequence of .H, W. pairs"),
        ({"spatial_shapes": [(-4, -5), (2, 3)]}, ValueError, "spatial_shapes must hold positive sizes"),
        ({"spatial_shapes": 5}, TypeError, "spatial_shapes must be a non-empty sequence of .H, W. pairs, got 5"),
        ({"spatial_shapes": torch.tensor([4, 5])}, ValueError, "spatial_shapes must be a non-empty sequence"),
        (
            {"spatial_shapes": torch.empty(2, 2, dtype=torch.long, device="meta")},
            ValueError,
            "spatial_shapes must hold numbers.*pass host integers",
        ),
        (
            {"spatial_shapes": torch.ones(2, 2).to_sparse()},
            TypeError,
            "spatial_shapes must be .*got layout",
        ),
        ({"spatial_shapes": [(2**31, 1)]}, ValueError, r"spatial_shapes must hold positive sizes below 2\*\*31"),
        ({"spatial_shapes": [(4.0, 5.0), (2, 3)]}, TypeError, "spatial_shapes must hold integers"),
        ({"spatial_shapes": [(1, 1)] * 17}, ValueError, "spatial_shapes must hold at most 16 maps, got 17"),
        (
            {"reference_points": torch.rand(2, 3, 2, 3)},
            ValueError,
            r"reference_points must have shape \(1 or B, Q, 1 or L, 2 or 4\)",
        ),
        ({"reference_points": None}, TypeError, "reference_points must be a tensor, got NoneType"),
        ({"reference_points": torch.rand(2, 4, 2, 2)}, ValueError, "reference_points must have shape"),
        ({"reference_points": torch.rand(3, 3, 2, 2)}, ValueError, "reference_points must have shape"),
        ({"reference_points": torch.rand(2, 3, 2, 2).int()}, TypeError, "reference_points must be float32"),
        ({"sampling_offsets": torch.randn(2, 3, 2, 1, 4, 2)}, ValueError, "sampling_offsets must have shape"),
        ({"sampling_offsets": torch.randn(2, 3, 2, 2, 4, 3)}, ValueError, "sampling_offsets must have shape"),
        (
            {"sampling_offsets": torch.randn(2, 3, 2, 2, 0, 2)},
            ValueError,
            "sampling_offsets must have at least one point",
        ),
        ({"sampling_offsets": torch.randn(2, 3, 2, 8, 2)}, ValueError, "sampling_offsets must have shape"),
        ({"attention_logits": torch.randn(2, 3, 2, 7)}, ValueError, "attention_logits must have shape"),
        ({"attention_logits": torch.randn(2, 3, 2, 4, 2)}, ValueError, "attention_logits must have shape"),
        (
            {"attention_logits": torch.randn(2, 3, 2, 8, device="meta")},
            ValueError,
            "attention_logits must be on cpu like value, got meta",
        ),
    ],
)
def test_deform_attn_names_the_argument(changes, error, message):
    with pytest.raises(error, match=message):
        deform_attn(**attention_arguments() | changes)


def ms_arguments():
    arguments = attention_arguments()
    return {
        "value": arguments["value"],
        "spatial_shapes": arguments["spatial_shapes"],
        "level_start_index": [0, 20],
        "sampling_locations": torch.rand(2, 3, 2, 2, 4, 2),
        "attention_weights": torch.rand(2, 3, 2, 2, 4),
    }


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        (
            {"level_start_index": [0, 6]},
            ValueError,
            r"level_start_index must be \[0, 20\] for these spatial_shapes, got \[0, 6\]",
        ),
        ({"level_start_index": 3}, TypeError, r"level_start_index must be \[0, 20\].*got 3"),
        ({"level_start_index": torch.tensor([0])}, ValueError, "level_start_index must be"),
        ({"sampling_locations": torch.rand(2, 3, 2, 1, 4, 2)}, ValueError, "sampling_locations must have shape"),
        ({"attention_weights": torch.rand(2, 3, 2, 8)}, ValueError, "attention_weights must have shape"),
        ({"attention_weights": torch.ones(2, 3, 2, 2, 4).long()}, TypeError, "attention_weights must be float32"),
    ],
)
def test_ms_deform_attn_names_the_argument(changes, error, message):
    with pytest.raises(error, match=message):
        ms_deform_attn(**ms_arguments() | changes)


def test_a_map_too_long_for_the_kernels_arithmetic_is_refused():
    side = 2**24 + 1
    value, points = torch.zeros(1, side, 1, 1), torch.zeros(1, 1, 1, 1, 1, 2)
    with pytest.raises(ValueError, match=r"spatial_shapes must hold maps of at most 2\^24 cells a side"):
        ms_deform_attn(value, [(1, side)], None, points, torch.zeros(1, 1, 1, 1, 1))


def test_maps_beyond_the_kernels_places_are_refused(tmp_path):
    sides = (2**15, 2**14)
    # Never touched, so neither memory nor disk holds its 8 GiB.
    value = torch.from_numpy(np.memmap(tmp_path / "value", np.float16, "w+", shape=(1, math.prod(sides), 1, 8)))
    points, weights = torch.zeros(1, 1, 1, 1, 1, 2), torch.zeros(1, 1, 1, 1, 1)
    with pytest.raises(ValueError, match="spatial_shapes must hold maps that take less than 16 GiB per head"):
        ms_deform_attn(value, [sides], None, points, weights)


IMAGES = torch.zeros(2, 3, 8, 9)


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"images": [1]}, TypeError, "images must be a tensor"),
        ({"images": IMAGES.to_sparse()}, TypeError, r"images must be a dense tensor.*to_dense\(\)"),
        ({"images": IMAGES.int()}, TypeError, "images must be uint8 or a float dtype"),
        ({"images": IMAGES[0]}, ValueError, "images must have four dimensions"),
        ({"images": torch.zeros(2, 3, 0, 9)}, ValueError, "images must have pixels"),
        ({"images": torch.zeros(2, 17, 8, 9)}, ValueError, "images must have pixels and 1 to 16 channels"),
        ({"scale_factors": None}, ValueError, "exactly one of sizes and scale_factors"),
        ({"sizes": [(4, 4)]}, ValueError, "exactly one of sizes and scale_factors"),
        ({"scale_factors": []}, ValueError, "scale_factors must be positive finite numbers"),
        ({"scale_factors": 0.5}, TypeError, "scale_factors must be a sequence of factors, got 0.5"),
        ({"scale_factors": [(0.5, 0.5, 0.5)]}, TypeError, "scale_factors must hold numbers or pairs"),
        ({"scale_factors": [1e9]}, ValueError, r"give levels of more than 2\*\*31 rows"),
        ({"scale_factors": [0.0]}, ValueError, "scale_factors must be positive finite numbers"),
        ({"scale_factors": [float("inf")]}, ValueError, "scale_factors must be positive finite numbers"),
        ({"scale_factors": ["1"]}, TypeError, "scale_factors must hold numbers or pairs"),
        ({"scale_factors": [0.01]}, ValueError, "leave no pixels of a 8 x 9 image"),
        ({"scale_factors": None, "sizes": 4}, TypeError, "sizes must be a non-empty sequence"),
        ({"scale_factors": None, "sizes": [(0, 4)]}, ValueError, "sizes must hold positive sizes"),
        ({"scale_factors": [0.5] * 17}, ValueError, "scale_factors must hold at most 16 levels"),
        ({"mode": "nearest"}, ValueError, "mode must be one of bilinear, bicubic, got 'nearest'"),
        ({"mode": ["bilinear"]}, ValueError, "mode must be one of bilinear, bicubic"),
        ({"antialias": "yes"}, TypeError, "antialias must be True or False, got 'yes'"),
        ({"dtype": torch.uint8}, TypeError, "dtype must be float32"),
        ({"mean": [0.0] * 3}, ValueError, "give both of mean and std"),
        ({"mean": 0.5, "std": 0.5}, TypeError, "mean must be a sequence of 3 finite numbers, one per channel, got 0.5"),
        ({"mean": ["a"] * 3, "std": [1.0] * 3}, TypeError, "mean must hold 3 finite numbers"),
        ({"mean": [0.0] * 2, "std": [1.0] * 3}, ValueError, "mean must hold 3 finite numbers"),
        ({"mean": [0.0] * 3, "std": [1.0, 0.0, 1.0]}, ValueError, "std must not be zero"),
        ({"valid_sizes": 4}, TypeError, r"valid_sizes must be a sequence of \(h, w\), one per image, got 4"),
        ({"valid_sizes": [(8, 9)]}, ValueError, r"valid_sizes must hold 2 \(h, w\) within \(8, 9\)"),
        ({"valid_sizes": [(8, 9), (8, 10)]}, ValueError, r"valid_sizes must hold 2 \(h, w\) within \(8, 9\)"),
    ],
)
def test_pyramid_resize_names_the_argument(changes, error, message):
    with pytest.raises(error, match=message):
        pyramid_resize(**{"images": IMAGES, "scale_factors": [0.5]} | changes)
