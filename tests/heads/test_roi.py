"""Pooling and the box head, against single calls of RoIAlign and against loops over boxes and classes."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor
from torchvision.models.detection._utils import BoxCoder
from torchvision.ops import box_iou, nms, roi_align

from piip import host
from piip.heads.mask_rcnn.boxes import MAX_LOG_RATIO
from piip.heads.mask_rcnn.config import MaskRCNNConfig
from piip.heads.mask_rcnn.roi import UNUSED, BoxHead, Samples, box_levels, pool
from piip.heads.mask_rcnn.rpn import Proposals

STRIDES = (4, 8, 16, 32)
CODER = BoxCoder(weights=(10, 10, 5, 5), bbox_xform_clip=MAX_LOG_RATIO)
CLASSES = 3


def build(
    *, roi_batch: int = 16, score_threshold: float = 0.05, nms: float = 0.5, max_detections: int = 100
) -> BoxHead:
    torch.manual_seed(0)
    config = MaskRCNNConfig(
        num_classes=CLASSES,
        fc_channels=8,
        roi_batch=roi_batch,
        score_threshold=score_threshold,
        nms=nms,
        max_detections=max_detections,
    )
    return BoxHead(config, channels=4)


def square_boxes(*sides: float) -> Tensor:
    return torch.tensor([[3.0, 5, 3 + side, 5 + side] for side in sides])


def test_a_box_is_pooled_from_the_level_of_its_size() -> None:
    sides = {1: 0, 55: 0, 111.9: 0, 112.1: 1, 223.9: 1, 224.1: 2, 447.9: 2, 448.1: 3, 5000: 3}
    assert box_levels(square_boxes(*sides), STRIDES).tolist() == list(sides.values())
    assert box_levels(square_boxes(*sides), STRIDES[:2]).tolist() == [min(level, 1) for level in sides.values()]
    assert box_levels(torch.tensor([[0.0, 0, 25, 2000]]), STRIDES).tolist() == [1]  # as large as a square of 223.6
    assert box_levels(square_boxes(*sides) / 2, (2, 4, 8, 16)).tolist() == list(sides.values())


def pyramid() -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(2, 4, 512 // s, 640 // s, generator=generator).requires_grad_() for s in STRIDES]


@pytest.mark.parametrize("place", ["cpu", "device"])
def test_pooling_equals_one_roi_align_per_box_and_keeps_the_order(place: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(host, "is_host", lambda device: place == "cpu")
    features = pyramid()
    boxes = [square_boxes(300, 20, 150, 480, 60), square_boxes(130, 500, 10)]
    levels = [[2, 0, 1, 3, 0], [1, 3, 0]]
    pooled = pool(features, STRIDES, boxes, 7)
    expected = [
        roi_align(features[level][image : image + 1], [box[None]], 7, 1 / STRIDES[level], aligned=True)
        for image in range(2)
        for box, level in zip(boxes[image], levels[image], strict=True)
    ]
    torch.testing.assert_close(pooled, torch.cat(expected))
    weights = torch.randn(pooled.shape, generator=torch.Generator().manual_seed(0))
    gradients = [torch.autograd.grad((x * weights).sum(), features) for x in (pooled, torch.cat(expected))]
    for found, wanted in zip(*gradients, strict=True):
        torch.testing.assert_close(found, wanted)


@pytest.mark.parametrize("boxes", [[torch.zeros(0, 4)] * 2, [torch.zeros(0, 4), square_boxes(300)]])
def test_pooling_reaches_every_level_backward_whatever_boxes_there_are(boxes: list[Tensor]) -> None:
    features = pyramid()
    pooled = pool(features, STRIDES, boxes, 7)
    assert pooled.shape == (sum(map(len, boxes)), 4, 7, 7)
    pooled.sum().backward()
    assert all(x.grad is not None for x in features)


def test_sampling_learns_from_objects_too_and_puts_what_holds_one_first() -> None:
    head = build(roi_batch=12)
    objects = [square_boxes(50, 100), torch.zeros(0, 4)]
    labels = [torch.tensor([2, 0]), torch.zeros(0, dtype=torch.int64)]
    near = objects[0] + 1.0
    far = torch.rand(30, 4) + torch.tensor([300.0, 300, 340, 340])
    first, second = head.sample([torch.cat([far, near]), far], objects, labels)
    # A quarter of 12, of the two objects and the two boxes near them; the rest is background.
    assert (first.num_positives, len(first.boxes)) == (3, 12)
    candidates = torch.cat([objects[0], far, near])
    for row in range(3):
        iou = box_iou(first.boxes[row : row + 1], objects[0])[0]
        assert iou[first.objects[row]] == iou.max() >= 0.5
        assert first.labels[row] == labels[0][first.objects[row]]
    assert (first.labels[3:] == CLASSES).all()
    assert (box_iou(first.boxes[3:], objects[0]) < 0.5).all()
    assert all((box == candidates).all(1).any() for box in first.boxes)
    assert (second.num_positives, second.labels.tolist()) == (0, [CLASSES] * 12)


def test_sampling_marks_what_it_could_not_use() -> None:
    """Only a quarter may hold an object: with objects alone, the other rows of the image stay unused."""
    objects = square_boxes(*range(20, 220, 10))
    (image,) = build(roi_batch=16).sample([torch.zeros(0, 4)], [objects], [torch.ones(20, dtype=torch.int64)])
    assert image.num_positives == 4
    assert image.labels.tolist() == [1] * 4 + [UNUSED] * 12


def test_sampling_nothing() -> None:
    empty = torch.zeros(0, 4)
    (image,) = build().sample([empty], [empty], [torch.zeros(0, dtype=torch.int64)])
    assert (image.num_positives, image.boxes.shape, image.labels.shape) == (0, (0, 4), (0,))


def test_losses_equal_those_worked_out_row_by_row() -> None:
    head = build()
    generator = torch.Generator().manual_seed(0)
    logits, deltas = torch.randn(9, CLASSES + 1, generator=generator), torch.randn(9, CLASSES, 4, generator=generator)
    objects = [square_boxes(50, 100), square_boxes(200)]
    samples = [
        Samples(square_boxes(45, 90, 7, 8), torch.tensor([2, 0, CLASSES, UNUSED]), torch.tensor([0, 1, -1, 1]), 2),
        Samples(square_boxes(180, 7, 8, 9, 6), torch.tensor([1] + [CLASSES] * 4), torch.tensor([0] + [-1] * 4), 1),
    ]
    losses = head.loss(logits, deltas, samples, objects)
    labels = [2, 0, CLASSES, UNUSED, 1, CLASSES, CLASSES, CLASSES, CLASSES]
    used = [row for row, label in enumerate(labels) if label != UNUSED]
    entropy = sum(-logits[row].log_softmax(0)[labels[row]].item() for row in used)
    distance = 0.0
    for row, box, target in ((0, samples[0].boxes[0], objects[0][0]), (1, samples[0].boxes[1], objects[0][1]),
                             (4, samples[1].boxes[0], objects[1][0])):  # fmt: skip
        distance += (deltas[row, labels[row]] - CODER.encode_single(target[None], box[None])[0]).abs().sum().item()
    assert losses["loss_cls"].item() == pytest.approx(entropy / 8, rel=1e-5)
    assert losses["loss_bbox"].item() == pytest.approx(distance / 8, rel=1e-5)


def naive_detections(
    logits: Tensor, deltas: Tensor, proposals: Tensor, size: tuple[int, int], *, threshold: float
) -> list[tuple[float, int, Tensor]]:
    """(score, class, box) by descending score, one class at a time."""
    scores, found = logits.softmax(1), []
    for label in range(CLASSES):
        rows = [row for row in range(len(logits)) if scores[row, label] > threshold]
        if not rows:
            continue
        boxes = CODER.decode_single(deltas[rows, label], proposals[rows])
        boxes = torch.stack([boxes[:, 0::2].clamp(0, size[1]), boxes[:, 1::2].clamp(0, size[0])], 2).flatten(1)
        found += [(scores[rows[k], label].item(), label, boxes[k]) for k in nms(boxes, scores[rows, label], 0.5)]
    return sorted(found, key=lambda item: -item[0])


@pytest.mark.parametrize("candidates", [2048, 20])
@pytest.mark.parametrize("limit", [1000, 9])
def test_detections_equal_those_found_class_by_class(limit: int, candidates: int) -> None:
    """Also where more pairs of a box and a class pass the threshold than are looked at first."""
    generator = torch.Generator().manual_seed(3)
    logits = 2 * torch.randn(60, CLASSES + 1, generator=generator)
    deltas = 3 * torch.randn(60, CLASSES, 4, generator=generator)
    corner = 80 * torch.rand(60, 2, generator=generator)
    proposals = torch.cat([corner, corner + 10 + 40 * torch.rand(60, 2, generator=generator)], 1)
    padded = Proposals(proposals[None], torch.ones(1, 60), torch.tensor([60]))
    head = build(score_threshold=0.2, max_detections=limit)
    (found,) = head.select(logits, deltas, padded, [(90, 100)], candidates=candidates)
    expected = naive_detections(logits, deltas, proposals, (90, 100), threshold=0.2)
    assert 20 < len(expected) < 180
    expected = expected[:limit]
    assert found["labels"].tolist() == [label for _, label, _ in expected]
    torch.testing.assert_close(found["scores"], torch.tensor([score for score, _, _ in expected]))
    torch.testing.assert_close(found["boxes"], torch.stack([box for _, _, box in expected]), atol=1e-4, rtol=1e-5)


def test_background_is_never_detected() -> None:
    logits = torch.tensor([[0.0, 0, 0, 20]]).expand(5, CLASSES + 1)
    proposals = Proposals(square_boxes(10, 20, 30, 40, 50)[None], torch.ones(1, 5), torch.tensor([5]))
    (found,) = build().select(logits, torch.zeros(5, CLASSES, 4), proposals, [(90, 100)])
    assert {key: tuple(value.shape) for key, value in found.items()} == {
        "boxes": (0, 4),
        "scores": (0,),
        "labels": (0,),
    }
    assert found["labels"].dtype == torch.int64


def test_a_fresh_box_head_is_unsure_and_stays_near_its_proposals() -> None:
    head = BoxHead(MaskRCNNConfig(num_classes=80, fc_channels=256), channels=64)
    assert head.cls.weight.std().item() == pytest.approx(0.01, rel=0.05)
    assert head.reg.weight.std().item() == pytest.approx(0.001, rel=0.05)
    for layer, fans in ((head.fc1, 64 * 49 + 256), (head.fc2, 512)):
        assert layer.weight.abs().max() <= math.sqrt(6 / fans)
        assert layer.weight.std().item() == pytest.approx(math.sqrt(2 / fans), rel=0.05)
    assert not any(layer.bias.any() for layer in (head.fc1, head.fc2, head.cls, head.reg))
