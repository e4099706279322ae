"""The region proposal network, against its losses and its proposals worked out anchor by anchor."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torchvision.models.detection._utils import BoxCoder
from torchvision.ops import box_iou

from piip.features import FeatureSpec
from piip.heads.mask_rcnn.boxes import MAX_LOG_RATIO, make_anchors
from piip.heads.mask_rcnn.config import MaskRCNNConfig
from piip.heads.mask_rcnn.rpn import RPN, RPNOutputs

SPECS = [FeatureSpec(8, 4), FeatureSpec(8, 8), FeatureSpec(8, 16)]
SIZES = [(64, 80), (60, 50)]
CODER = BoxCoder(weights=(1, 1, 1, 1), bbox_xform_clip=MAX_LOG_RATIO)


def build(*, rpn_batch: int = 10_000, rpn_proposals: int = 1000, rpn_nms: float = 0.7) -> RPN:
    torch.manual_seed(0)
    config = MaskRCNNConfig(anchor_scale=4, rpn_batch=rpn_batch, rpn_proposals=rpn_proposals, rpn_nms=rpn_nms)
    rpn = RPN(config, SPECS)
    for parameter in rpn.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return rpn


@pytest.fixture
def features() -> list[Tensor]:
    generator = torch.Generator().manual_seed(1)
    return [torch.randn(2, 8, 64 // spec.stride, 80 // spec.stride, generator=generator) for spec in SPECS]


OBJECTS = [torch.tensor([[10.0, 12, 40, 44], [30, 5, 45, 21], [60, 40, 79, 63]]), torch.tensor([[2.0, 2, 34, 36]])]


def test_outputs_lie_in_anchor_order(features: list[Tensor]) -> None:
    """Row, column, ratio: the channel of a map is the ratio, or four numbers of it."""
    rpn = build()
    outputs = rpn(features)
    for x, spec, logits, deltas, anchors in zip(features, SPECS, *outputs, strict=True):
        hidden = F.relu(rpn.conv(x))
        height, width = x.shape[2:]
        expected = make_anchors(x, (height, width), stride=spec.stride, scale=4, ratios=(0.5, 1, 2))
        assert torch.equal(anchors, expected)
        row, column, ratio = height - 1, 2, 1
        index = (row * width + column) * 3 + ratio
        torch.testing.assert_close(logits[:, index], rpn.cls(hidden)[:, ratio, row, column])
        torch.testing.assert_close(deltas[:, index], rpn.reg(hidden)[:, 4 * ratio : 4 * ratio + 4, row, column])


def test_losses_equal_those_worked_out_anchor_by_anchor(features: list[Tensor]) -> None:
    rpn = build()  # the batch holds all anchors, so that nothing is left to chance
    outputs = rpn(features)
    losses = rpn.loss(outputs, OBJECTS)
    anchors = torch.cat(outputs.anchors)
    entropy, distance, seen = 0.0, 0.0, 0
    for logits, deltas, objects in zip(
        torch.cat(outputs.logits, 1), torch.cat(outputs.deltas, 1), OBJECTS, strict=True
    ):
        iou = box_iou(objects, anchors)
        for index in range(len(anchors)):
            takers = [row for row in range(len(objects)) if iou[row, index] == iou[row].max() >= 0.3]
            best = iou[:, index].argmax().item()
            owner = takers[-1] if takers else best if iou[best, index] >= 0.7 else None
            if owner is not None:
                target = CODER.encode_single(objects[owner][None], anchors[index][None])[0]
                entropy += F.softplus(-logits[index]).item()
                distance += (deltas[index] - target).abs().sum().item()
            elif iou[best, index] < 0.3:
                entropy += F.softplus(logits[index]).item()
            else:
                continue
            seen += 1
    assert losses["loss_rpn_cls"].item() == pytest.approx(entropy / seen, rel=1e-5)
    assert losses["loss_rpn_bbox"].item() == pytest.approx(distance / seen, rel=1e-5)


def test_losses_are_means_over_the_sampled_anchors(features: list[Tensor]) -> None:
    """With equal logits everywhere, the mean is known whatever is drawn."""
    rpn = build(rpn_batch=16)
    outputs = rpn(features)
    flat = RPNOutputs([torch.zeros_like(x) for x in outputs.logits], outputs.deltas, outputs.anchors)
    assert rpn.loss(flat, OBJECTS)["loss_rpn_cls"].item() == pytest.approx(torch.tensor(2.0).log().item())


def test_an_image_without_objects_only_teaches_background(features: list[Tensor]) -> None:
    rpn = build()
    outputs = rpn(features)
    losses = rpn.loss(outputs, [torch.zeros(0, 4)] * 2)
    logits = torch.cat(outputs.logits, 1)
    # The released code counts one positive for each image that has none.
    expected = F.softplus(logits).sum() / (logits.numel() + 2)
    torch.testing.assert_close(losses["loss_rpn_cls"], expected)
    assert losses["loss_rpn_bbox"].item() == 0
    sum(losses.values()).backward()
    for name, parameter in rpn.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name


def naive_proposals(outputs: RPNOutputs, image: int, size: tuple[int, int], *, pre_nms: int, nms: float) -> Tensor:
    """Rows of x1, y1, x2, y2, score, by the rule of mmdetection's RPNHead in plain steps."""
    kept: list[tuple[float, int, Tensor]] = []
    for level, (logits, deltas, anchors) in enumerate(zip(*outputs, strict=True)):
        scores = logits[image].sigmoid()
        order = sorted(range(len(anchors)), key=lambda i: -scores[i].item())[:pre_nms]
        for index in order:
            delta = deltas[image, index].clone()
            delta[2:].clamp_(min=-MAX_LOG_RATIO)  # torchvision's coder only limits growth
            box = CODER.decode_single(delta[None], anchors[index][None])[0]
            box = torch.minimum(box.clamp(min=0), torch.tensor([size[1], size[0]] * 2))
            if box[2] <= box[0] or box[3] <= box[1]:
                continue
            rivals = [other for _, other_level, other in kept if other_level == level]
            if not rivals or box_iou(box[None].double(), torch.stack(rivals).double()).max() <= nms:
                kept.append((scores[index].item(), level, box))
    kept.sort(key=lambda item: -item[0])
    return torch.stack([torch.cat([box, torch.tensor([score])]) for score, _, box in kept])


@pytest.mark.parametrize("pre_nms", [1000, 40])
def test_proposals_equal_those_worked_out_one_by_one(features: list[Tensor], pre_nms: int) -> None:
    rpn = build(rpn_proposals=50, rpn_nms=0.5)
    outputs = RPNOutputs(*([x.detach() for x in part] for part in rpn(features)))
    proposals = rpn.propose(outputs, SIZES, pre_nms=pre_nms)
    for image, (boxes, scores) in enumerate(proposals):
        expected = naive_proposals(outputs, image, SIZES[image], pre_nms=pre_nms, nms=0.5)
        assert len(expected) > 50  # the limit is reached
        torch.testing.assert_close(torch.cat([boxes, scores[:, None]], 1), expected[:50], atol=1e-4, rtol=1e-5)


def test_of_equal_saturated_scores_the_first_anchors_are_proposed() -> None:
    anchors = make_anchors(torch.zeros(1), (4, 4), stride=64, scale=0.5, ratios=(1,))
    logits = torch.tensor([[30.0] * 8 + [90.0] * 8])  # different logits, but the sigmoid of both is 1
    rpn = build()
    (boxes, scores), = rpn.propose(
        RPNOutputs([logits], [torch.zeros(1, 16, 4)], [anchors + 32]), [(256, 256)], pre_nms=5
    )  # fmt: skip
    assert torch.equal(boxes, anchors[:5] + 32)
    assert (scores == 1).all()


def test_boxes_outside_the_image_are_not_proposed(features: list[Tensor]) -> None:
    rpn = build()
    proposals = rpn.propose(rpn(features), [(64, 80), (0, 0)], pre_nms=1000)
    assert len(proposals[0][0]) > 0
    assert [tuple(x.shape) for x in proposals[1]] == [(0, 4), (0,)]
