"""Sliding windows against mmsegmentation's loop, strips against resizing a whole image at once."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from piip import host
from piip.heads import windows
from piip.heads.windows import Windows, most_likely


@pytest.fixture
def look():
    """A network of three classes that sees only its window: a convolution with padding."""
    weight = torch.randn(3, 3, 5, 5, generator=torch.Generator().manual_seed(0))
    return lambda part: F.conv2d(part, weight, padding=2)


def slide(look, images: Tensor, sizes: list[tuple[int, int]], *, window: int, stride: int) -> Tensor:
    windows = Windows(images, sizes, window=window, stride=stride)
    for seen in windows:
        windows.add(look(seen))
    return windows.mean()


def official_slide(look, image: Tensor, window: int, stride: int) -> Tensor:
    """mmsegmentation 0.27, EncoderDecoder.slide_inference, of one image (1, 3, H, W)."""
    height, width = image.shape[2:]
    rows = max(height - window + stride - 1, 0) // stride + 1
    columns = max(width - window + stride - 1, 0) // stride + 1
    logits, count = torch.zeros(1, 3, height, width), torch.zeros(1, 1, height, width)
    for row in range(rows):
        for column in range(columns):
            bottom, right = min(row * stride + window, height), min(column * stride + window, width)
            top, left = max(bottom - window, 0), max(right - window, 0)
            part = look(image[:, :, top:bottom, left:right])
            logits += F.pad(part, (left, width - right, top, height - bottom))
            count[:, :, top:bottom, left:right] += 1
    assert (count > 0).all()
    return logits / count


@pytest.mark.parametrize("size", [(12, 12), (12, 13), (20, 33), (31, 12), (9, 40), (8, 11)])
@pytest.mark.parametrize("stride", [8, 12, 5])
def test_windows_are_those_of_mmsegmentation(look, size: tuple[int, int], stride: int) -> None:
    image = torch.randn(1, 3, *size)
    found = slide(look, image, [size], window=12, stride=stride)
    torch.testing.assert_close(found, official_slide(look, image, 12, stride))


def test_every_image_of_a_batch_has_the_windows_of_its_valid_part(look) -> None:
    sizes = [(20, 30), (14, 16), (13, 33)]
    images = torch.zeros(3, 3, 20, 33)
    for image, (height, width) in zip(images, sizes, strict=True):
        image[:, :height, :width] = torch.randn(3, height, width)
    found = slide(look, images, sizes, window=12, stride=8)
    for image, logits, (height, width) in zip(images, found, sizes, strict=True):
        expected = official_slide(look, image[None, :, :height, :width], 12, 8)[0]
        torch.testing.assert_close(logits[:, :height, :width], expected)
        assert not logits[:, height:].any()
        assert not logits[:, :, width:].any()


def test_a_device_looks_at_more_windows_at_once_and_sees_the_same(look, monkeypatch: pytest.MonkeyPatch) -> None:
    images, seen = torch.randn(1, 3, 40, 33), []
    expected = slide(look, images, [(40, 33)], window=12, stride=8)

    def counted(part: Tensor) -> Tensor:
        seen.append(len(part))
        return look(part)

    monkeypatch.setattr(host, "is_host", lambda device: False)
    monkeypatch.setattr(windows, "MAX_WINDOW_PIXELS", 7 * 12 * 12 + 5)
    torch.testing.assert_close(slide(counted, images, [(40, 33)], window=12, stride=8), expected)
    assert seen == [7, 7, 6]


def test_a_window_that_covers_the_batch_gives_the_whole_image(look) -> None:
    images = torch.randn(2, 3, 16, 24)
    assert torch.equal(slide(look, images, [(16, 24), (11, 20)], window=24, stride=8), look(images))


@pytest.mark.parametrize("size", [(12, 20), (24, 40), (31, 57), (7, 11), (12, 33), (1, 1)])
@pytest.mark.parametrize("strip", [1, 3000, 10**9])
def test_labels_are_those_of_logits_resized_at_once(
    size: tuple[int, int], strip: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(windows, "MAX_PROBABILITIES", strip)
    logits = 3 * torch.randn(6, 12, 20, generator=torch.Generator().manual_seed(1))
    labels, scores = most_likely(logits, size)
    resized = F.interpolate(logits[None], size=size, mode="bilinear", align_corners=False)[0].softmax(0)
    expected, label = resized.max(0)
    assert torch.equal(labels, label)
    assert labels.dtype == torch.int64
    torch.testing.assert_close(scores, expected)
