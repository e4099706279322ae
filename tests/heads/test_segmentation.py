"""How a dense head looks at images, and its results; the smallest head that there can be."""

from __future__ import annotations

import weakref
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from piip.features import FeatureSpec
from piip.heads.segmentation import SegmentationHead
from piip.heads.upernet.config import UperNetConfig

SIZES = [(64, 96), (50, 70)]
WEIGHT = torch.randn(5, 3, 4, 4, generator=torch.Generator().manual_seed(3))


class Dense(SegmentationHead):
    """Five classes that tell left from right, with logits at a quarter of the resolution; its map is the image."""

    def detect(self, features: list[Tensor], image_sizes: list[tuple[int, int]]) -> Tensor:
        (images,) = features
        assert image_sizes == [tuple(images.shape[2:])] * len(images)
        return F.conv2d(images, WEIGHT, stride=4)


def build(**settings: Any) -> Dense:
    return Dense(UperNetConfig(num_classes=5, **settings), [FeatureSpec(3, stride) for stride in (4, 32)])


def look(head: Dense, images: Tensor, sizes: list[tuple[int, int]]) -> Tensor:
    views = head.views(images, sizes)
    for seen, seen_sizes in views:
        views.add(head.detect([seen], seen_sizes))
    return head.in_batch(views.outputs(), sizes)


def upsampled(images: Tensor) -> Tensor:
    return F.interpolate(
        F.conv2d(images, WEIGHT, stride=4), size=images.shape[2:], mode="bilinear", align_corners=False
    )


def test_one_window_over_the_image_is_the_whole_image() -> None:
    images = torch.randn(2, 3, 64, 96)
    whole = look(build(window=None), images, SIZES)
    assert torch.equal(whole, upsampled(images))
    assert torch.equal(look(build(window=96, stride=64), images, SIZES), whole)
    assert not torch.equal(look(build(window=64, stride=32), images, SIZES), whole)


def test_a_flipped_view_is_averaged_as_probabilities_inside_the_valid_part() -> None:
    images = torch.randn(2, 3, 64, 96)
    found = look(build(window=None, test_flip=True), images, SIZES).softmax(1)
    for index, (height, width) in enumerate(SIZES):
        mirrored = images[index : index + 1].clone()
        mirrored[..., :height, :width] = mirrored[..., :height, :width].flip(-1)
        back = upsampled(mirrored)
        back[..., :height, :width] = back[..., :height, :width].flip(-1)
        expected = (upsampled(images[index : index + 1]).softmax(1) + back.softmax(1)) / 2
        torch.testing.assert_close(found[index : index + 1], expected)


def test_scaled_views_are_averaged_at_the_size_of_the_batch() -> None:
    images = torch.randn(1, 3, 64, 96)
    found = look(build(window=None, test_scales=(1.0, 1.5)), images, [(64, 96)])
    larger = upsampled(F.interpolate(images, size=(96, 128), mode="bilinear", align_corners=False))  # 144 to whole 32s
    again = F.interpolate(larger, size=(64, 96), mode="bilinear", align_corners=False)
    torch.testing.assert_close(found.softmax(1), (upsampled(images).softmax(1) + again.softmax(1)) / 2)


def test_the_logits_of_windows_are_let_go_one_after_the_other() -> None:
    """A photo has hundreds of windows, whose logits would fill the memory."""
    head, images, given = build(window=32, stride=16, test_flip=True), torch.randn(1, 3, 96, 96), []
    views = head.views(images, [(96, 96)])
    for seen, seen_sizes in views:
        assert sum(reference() is not None for reference in given) <= 1
        logits = head.detect([seen], seen_sizes)
        given.append(weakref.ref(logits))
        views.add(logits)
        del logits
    assert len(given) == 2 * 25


def test_results_have_the_original_sizes_and_types() -> None:
    logits = torch.randn(2, 5, 64, 96)
    results = build().restore(logits, SIZES, [(128, 192), (33, 21)])
    assert [tuple(result["labels"].shape) for result in results] == [(128, 192), (33, 21)]
    assert {result["labels"].dtype for result in results} == {torch.uint8}
    assert {result["scores"].dtype for result in results} == {torch.float32}
    (many,) = build().restore(torch.randn(1, 300, 8, 8), [(8, 8)], [(8, 8)])
    assert many["labels"].dtype == torch.int64
