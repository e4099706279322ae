"""The mask head's targets and pasting, against RoIAlign and grid_sample written out one mask at a time."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from piip import host
from piip.heads.mask_rcnn import masks as module
from piip.heads.mask_rcnn.config import MaskRCNNConfig
from piip.heads.mask_rcnn.masks import MaskHead, mask_targets, paste_masks


def blobs(count: int, height: int, width: int, *, seed: int = 0) -> Tensor:
    """Random masks with regions several pixels wide, (count, height, width) uint8."""
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.randn(count, 1, height // 6 + 2, width // 6 + 2, generator=generator)
    return (F.interpolate(coarse, size=(height, width), mode="bilinear")[:, 0] > 0).to(torch.uint8)


def naive_roi_align(mask: Tensor, box: Tensor) -> Tensor:
    """RoIAlign of one mask (h, w) in one box to 28 x 28, sample by sample (He et al., 2017, section 3)."""
    x1, y1, x2, y2 = box.tolist()
    height, width = mask.shape
    step_x, step_y = (x2 - x1) / 28, (y2 - y1) / 28
    per_x, per_y = math.ceil(step_x), math.ceil(step_y)
    result = torch.zeros(28, 28, dtype=torch.float64)
    for row in range(28):
        for column in range(28):
            for i in range(per_y):
                for j in range(per_x):
                    y = y1 - 0.5 + (row + (i + 0.5) / per_y) * step_y
                    x = x1 - 0.5 + (column + (j + 0.5) / per_x) * step_x
                    y, x = min(max(y, 0), height - 1), min(max(x, 0), width - 1)
                    top, left = int(y), int(x)
                    bottom, right = min(top + 1, height - 1), min(left + 1, width - 1)
                    up = (1 - (x - left)) * mask[top, left].item() + (x - left) * mask[top, right].item()
                    down = (1 - (x - left)) * mask[bottom, left].item() + (x - left) * mask[bottom, right].item()
                    result[row, column] += (1 - (y - top)) * up + (y - top) * down
    return result / (per_x * per_y)


def test_targets_equal_roi_align_written_out() -> None:
    truth = blobs(3, 60, 70)
    boxes = torch.tensor([[3.2, 5.1, 50.7, 40.3], [0, 0, 70, 60], [40.4, 30.2, 52.9, 39.8], [10, 10, 66.5, 20]])
    objects = torch.tensor([2, 0, 1, 2])
    targets = mask_targets(truth, boxes, objects, canvas=(60, 70))
    for target, box, index in zip(targets, boxes, objects, strict=True):
        expected = naive_roi_align(truth[index], box)
        clear = (expected - 0.5).abs() > 1e-4
        assert clear.float().mean() > 0.9
        assert torch.equal(target[clear], (expected >= 0.5)[clear].float())
    assert targets.mean().item() == pytest.approx(0.5, abs=0.35)


def test_targets_of_a_rectangle_are_its_share_of_the_box() -> None:
    truth = torch.zeros(1, 64, 64, dtype=torch.uint8)
    truth[0, 10:38, 10:38] = 1
    whole, left, half_above = mask_targets(
        truth,
        torch.tensor([[10.0, 10, 38, 38], [24, 10, 52, 38], [10, 24, 38, 52]]),
        torch.zeros(3).long(),
        canvas=(64, 64),
    )
    columns = torch.arange(28) < 14
    assert whole.all()
    assert torch.equal(left, columns.float().expand(28, 28))
    assert torch.equal(half_above, columns.float()[:, None].expand(28, 28))


@pytest.mark.parametrize("size", [(50, 64), (64, 41), (30, 30), (64, 64)])
def test_targets_are_those_of_masks_padded_to_the_canvas(size: tuple[int, int]) -> None:
    height, width = size
    truth = blobs(2, height, width, seed=1) | 1  # objects that fill the image, up to its edges
    boxes = torch.tensor([[width - 5.0, height - 4.0, width, height], [2.0, 3.0, width, height]])
    objects = torch.tensor([0, 1])
    padded = F.pad(truth, (0, 64 - width, 0, 64 - height))
    expected = mask_targets(padded, boxes, objects, canvas=(64, 64))
    assert torch.equal(mask_targets(truth, boxes, objects, canvas=(64, 64)), expected)


@pytest.mark.parametrize("objects", [0, 2])
def test_no_box_no_target(objects: int) -> None:
    targets = mask_targets(blobs(objects, 20, 30), torch.zeros(0, 4), torch.zeros(0).long(), canvas=(32, 32))
    assert targets.shape == (0, 28, 28)


def naive_paste(probability: Tensor, box: Tensor, size: tuple[int, int]) -> Tensor:
    """One mask (28, 28) pasted by grid_sample over the whole image, as mmdetection does, before the threshold."""
    x1, y1, x2, y2 = box.double().tolist()
    y, x = (torch.arange(side, dtype=torch.float64) + 0.5 for side in size)
    y, x = (y - y1) / (y2 - y1) * 2 - 1, (x - x1) / (x2 - x1) * 2 - 1
    grid = torch.stack([x.expand(size), y[:, None].expand(size)], dim=-1)
    return F.grid_sample(probability.double()[None, None], grid[None], align_corners=False)[0, 0]


def detections(count: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    corner = torch.rand(count, 2, generator=generator) * torch.tensor([90.0, 60])
    boxes = torch.cat([corner, corner + 1 + torch.rand(count, 2, generator=generator) * 60], 1)
    return F.interpolate(torch.rand(count, 1, 5, 5, generator=generator), size=(28, 28), mode="bicubic")[:, 0], boxes


def paste_as_on_a_device(probabilities: Tensor, boxes: Tensor, size: tuple[int, int]) -> Tensor:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(host, "is_host", lambda device: False)
        return paste_masks(probabilities, boxes, size)


def paste_three_at_a_time(probabilities: Tensor, boxes: Tensor, size: tuple[int, int]) -> Tensor:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "PASTE_PIXELS", 3 * size[0] * size[1])
        return paste_as_on_a_device(probabilities, boxes, size)


PASTES = [paste_masks, paste_as_on_a_device, paste_three_at_a_time]


@pytest.mark.parametrize("paste", PASTES)
def test_pasting_equals_grid_sample(paste: Callable[..., Tensor]) -> None:
    probabilities, boxes = detections(10)
    boxes[0] = torch.tensor([-20.0, -10, 40, 30])  # boxes may reach out of the image
    boxes[1] = torch.tensor([50.0, 40, 300, 200])
    boxes[2] = torch.tensor([30.2, 20.7, 30.9, 21.1])  # smaller than a pixel
    boxes[3] = torch.tensor([120.0, 90, 150, 100])  # or lie outside
    boxes[4] = torch.tensor([10.5, 20.5, 40.5, 50.5])
    pasted = paste(probabilities, boxes, (80, 110))
    assert pasted.shape == (10, 80, 110)
    assert pasted.dtype == torch.bool
    for mask, probability, box in zip(pasted, probabilities, boxes, strict=True):
        expected = naive_paste(probability, box, (80, 110))
        clear = (expected - 0.5).abs() > 1e-5
        assert torch.equal(mask[clear], (expected >= 0.5)[clear])
    assert 0.01 < pasted[4:].float().mean() < 0.5


@pytest.mark.parametrize("paste", PASTES)
def test_pasting_a_full_mask_fills_its_box(paste: Callable[..., Tensor]) -> None:
    (mask,) = paste(torch.ones(1, 28, 28), torch.tensor([[10.0, 20, 40, 70]]), (80, 60))
    expected = torch.zeros(80, 60, dtype=torch.bool)
    expected[20:70, 10:40] = True
    assert torch.equal(mask, expected)


def test_pasting_does_not_lose_precision_under_autocast() -> None:
    probabilities, boxes = detections(6)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        pasted = paste_masks(probabilities, boxes, (80, 110))
    assert torch.equal(pasted, paste_masks(probabilities, boxes, (80, 110)))


@pytest.mark.parametrize("paste", PASTES)
def test_pasting_nothing_and_boxes_without_area(paste: Callable[..., Tensor]) -> None:
    assert paste(torch.zeros(0, 28, 28), torch.zeros(0, 4), (30, 40)).shape == (0, 30, 40)
    flat = torch.tensor([[5.0, 5, 5, 20], [5, 5, 30, 5], [7, 7, 7, 7]])
    assert not paste(torch.full((3, 28, 28), 0.9), flat, (30, 40)).any()


def test_the_head_predicts_twice_the_pooled_size_and_starts_from_kaiming() -> None:
    head = MaskHead(MaskRCNNConfig(num_classes=5, mask_channels=48, mask_convs=2), channels=24)
    assert head(torch.randn(3, 24, 14, 14)).shape == (3, 5, 28, 28)
    assert head(torch.randn(0, 24, 14, 14)).shape == (0, 5, 28, 28)
    for layer, fan_out in ((head.convs[0], 48 * 9), (head.convs[1], 48 * 9), (head.upsample, 48 * 4), (head.logits, 5)):
        assert layer.weight.std().item() == pytest.approx(math.sqrt(2 / fan_out), rel=0.12)
        assert not layer.bias.any()
    without = MaskHead(MaskRCNNConfig(num_classes=5, mask_channels=48, mask_convs=0), channels=24)
    assert without(torch.randn(1, 24, 14, 14)).shape == (1, 5, 28, 28)


def test_the_loss_is_the_mean_entropy_of_the_true_class() -> None:
    head = MaskHead(MaskRCNNConfig(num_classes=3, mask_channels=8, mask_convs=1), channels=8)
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(4, 3, 28, 28, generator=generator, requires_grad=True)
    targets = (torch.rand(4, 28, 28, generator=generator) > 0.5).float()
    labels = [2, 0, 1, 1]
    loss = head.loss(logits, torch.tensor(labels), targets)["loss_mask"]
    probability = torch.stack([logits[row, label].sigmoid() for row, label in enumerate(labels)])
    expected = -(targets * probability.log() + (1 - targets) * (1 - probability).log()).mean()
    torch.testing.assert_close(loss, expected)
    loss.backward()
    assert not logits.grad[0, 0].any()  # the other classes' masks learn nothing from it


def test_the_loss_of_no_mask_is_zero_and_still_reaches_every_parameter() -> None:
    head = MaskHead(MaskRCNNConfig(num_classes=3, mask_channels=8, mask_convs=2), channels=8)
    loss = head.loss(head(torch.zeros(0, 8, 14, 14)), torch.zeros(0).long(), torch.zeros(0, 28, 28))["loss_mask"]
    loss.backward()
    assert loss.item() == 0
    assert all(parameter.grad is not None and not parameter.grad.any() for parameter in head.parameters())
