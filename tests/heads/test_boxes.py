"""Anchors and box coding, against hand-computed values and torchvision's coder."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor
from torch._subclasses import FakeTensorMode
from torchvision.models.detection._utils import BoxCoder
from torchvision.ops import clip_boxes_to_image

from piip.heads.mask_rcnn.boxes import MAX_LOG_RATIO, clip, decode, encode, level_anchors, make_anchors

LIKE = torch.zeros(1)
ONES = (1.0, 1.0, 1.0, 1.0)


def random_boxes(count: int, *, size: float = 100, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    corners = torch.rand(count, 4, generator=generator) * size
    return torch.cat(
        [torch.minimum(corners[:, :2], corners[:, 2:]), torch.maximum(corners[:, :2], corners[:, 2:]) + 1], 1
    )


def test_anchors_are_centred_on_cell_corners_and_ordered_by_row_column_ratio() -> None:
    anchors = make_anchors(LIKE, (2, 3), stride=4, scale=8, ratios=(0.5, 1, 2))
    assert anchors.shape == (2 * 3 * 3, 4)
    long, short = 32 * math.sqrt(2) / 2, 32 / math.sqrt(2) / 2
    first = torch.tensor([[-long, -short, long, short], [-16, -16, 16, 16], [-short, -long, short, long]])
    torch.testing.assert_close(anchors[:3], first)
    torch.testing.assert_close(anchors[3:6], first + torch.tensor([4.0, 0, 4, 0]))  # one column to the right
    torch.testing.assert_close(anchors[9:12], first + torch.tensor([0.0, 4, 0, 4]))  # one row down


def test_anchor_areas_and_ratios_hold_at_every_stride() -> None:
    for stride in (4, 8, 16, 32, 64):
        anchors = make_anchors(LIKE, (1, 2), stride=stride, scale=8, ratios=(0.25, 1, 3))
        width, height = (anchors[:, 2:] - anchors[:, :2]).unbind(1)
        torch.testing.assert_close(width * height, torch.full((6,), float(8 * stride) ** 2))
        torch.testing.assert_close(height / width, torch.tensor([0.25, 1, 3] * 2))


@pytest.mark.parametrize("stds", [ONES, (0.1, 0.1, 0.2, 0.2)])
def test_coding_equals_torchvisions(stds: tuple[float, ...]) -> None:
    boxes, targets = random_boxes(50), random_boxes(50, seed=1)
    theirs = BoxCoder(weights=tuple(1 / std for std in stds), bbox_xform_clip=MAX_LOG_RATIO)
    deltas = encode(boxes, targets, stds=stds)
    torch.testing.assert_close(deltas, theirs.encode_single(targets, boxes), atol=1e-4, rtol=1e-5)
    torch.testing.assert_close(decode(boxes, deltas, stds=stds), theirs.decode_single(deltas, boxes))


@pytest.mark.parametrize("stds", [ONES, (0.1, 0.1, 0.2, 0.2)])
def test_decoding_undoes_encoding(stds: tuple[float, ...]) -> None:
    boxes, targets = random_boxes(200), random_boxes(200, seed=1)
    ratio = (targets[:, 2:] - targets[:, :2]) / (boxes[:, 2:] - boxes[:, :2])
    within = (ratio.log().abs() < MAX_LOG_RATIO).all(1)
    assert within.sum() > 150
    decoded = decode(boxes, encode(boxes, targets, stds=stds), stds=stds)
    torch.testing.assert_close(decoded[within], targets[within], atol=1e-3, rtol=1e-5)


def test_decoding_limits_the_change_of_size_both_ways() -> None:
    box = torch.tensor([[10.0, 10, 20, 30]]).expand(2, 4)
    decoded = decode(box, torch.tensor([[0.0, 0, 100, 100], [0, 0, -100, -100]]), stds=ONES)
    torch.testing.assert_close(
        decoded[:, 2:] - decoded[:, :2], torch.tensor([[10, 20.0]]) * torch.tensor([[62.5], [0.016]])
    )


def test_decoding_reproduces_the_example_of_mmdetections_documentation() -> None:
    boxes = torch.tensor([[0.0, 0, 1, 1], [0, 0, 1, 1], [0, 0, 1, 1], [5, 5, 5, 5]])
    deltas = torch.tensor([[0.0, 0, 0, 0], [1, 1, 1, 1], [0, 0, 2, -1], [0.7, -1.9, -0.5, 0.3]])
    expected = [[0, 0, 1, 1], [0.1409, 0.1409, 2.8591, 2.8591], [0, 0.3161, 4.1945, 0.6839], [5, 5, 5, 5]]
    decoded = clip_boxes_to_image(decode(boxes, deltas, stds=ONES), (32, 32))
    torch.testing.assert_close(decoded, torch.tensor(expected), atol=1e-4, rtol=0)


def test_decoding_takes_one_box_per_class() -> None:
    boxes, deltas = random_boxes(5), torch.randn(5, 3, 4, generator=torch.Generator().manual_seed(0))
    decoded = decode(boxes[:, None], deltas, stds=ONES)
    for index in range(3):
        torch.testing.assert_close(decoded[:, index], decode(boxes, deltas[:, index], stds=ONES))


def test_boxes_are_cut_off_at_the_borders_of_their_own_images() -> None:
    boxes = torch.stack([random_boxes(20) - 10, random_boxes(20, seed=1) - 10])
    sizes = [(40, 70), (90, 20)]
    for image, clipped in enumerate(clip(boxes, sizes)):
        assert torch.equal(clipped, clip_boxes_to_image(boxes[image], sizes[image]))


def test_anchors_kept_from_an_evaluation_serve_training() -> None:
    with torch.inference_mode():
        anchors = level_anchors(torch.zeros(1), (2, 3), 4, 7, (1.0, 2.0))
    assert not anchors.is_inference()
    assert torch.equal(anchors, make_anchors(LIKE, (2, 3), stride=4, scale=7, ratios=(1.0, 2.0)))


def test_anchors_of_a_traced_network_are_not_kept() -> None:
    with FakeTensorMode():
        level_anchors(torch.zeros(1), (3, 5), 4, 7, (1.0, 2.0))
    assert type(level_anchors(torch.zeros(1), (3, 5), 4, 7, (1.0, 2.0))) is torch.Tensor
