"""The whole head: what it returns, that every parameter learns whatever the images hold, and empty cases."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from piip import host
from piip.errors import ConfigError
from piip.features import FeatureSpec
from piip.heads.mask_rcnn.config import MaskRCNNConfig
from piip.heads.mask_rcnn.head import MaskRCNN
from piip.heads.mask_rcnn.masks import paste_masks

SPECS = [FeatureSpec(16, stride) for stride in (4, 8, 16, 32, 64)]
SIZES = [(90, 128), (96, 70)]  # valid sizes in a batch of 96 x 128 pixels
LOSSES = ["loss_rpn_cls", "loss_rpn_bbox", "loss_cls", "loss_bbox", "loss_mask"]


def build(**settings: Any) -> MaskRCNN:
    torch.manual_seed(0)
    small = {
        "num_classes": 3, "rpn_pre_nms_train": 200, "rpn_pre_nms_test": 100, "rpn_proposals": 60, "rpn_batch": 64,
        "roi_batch": 32, "fc_channels": 24, "mask_channels": 8, "mask_convs": 1, "max_detections": 20,
    }  # fmt: skip
    head = MaskRCNN(MaskRCNNConfig(**small | settings), SPECS)
    # Larger weights than fresh ones, for detections that differ from each other.
    torch.nn.init.normal_(head.rpn.cls.weight, std=0.3)
    torch.nn.init.normal_(head.box.cls.weight, std=0.5)
    torch.nn.init.normal_(head.box.reg.weight, std=0.1)
    return head


@pytest.fixture
def features() -> list[Tensor]:
    generator = torch.Generator().manual_seed(1)
    shape = {spec.stride: (2, 16, -(-96 // spec.stride), -(-128 // spec.stride)) for spec in SPECS}
    return [torch.randn(shape[spec.stride], generator=generator).requires_grad_() for spec in SPECS]


def target(count: int, size: tuple[int, int]) -> dict[str, Tensor]:
    boxes = torch.tensor([[5.0, 6, 60, 70], [20, 10, 44, 40], [2, 50, 66, 88]])[:count]
    rows, columns = (torch.arange(side) + 0.5 for side in size)
    inside = [(rows[:, None] > y1) & (rows[:, None] < y2) & (columns > x1) & (columns < x2) for x1, y1, x2, y2 in boxes]
    masks = torch.stack(inside) if inside else torch.zeros(0, *size)
    return {"boxes": boxes, "labels": torch.tensor([0, 2, 1])[:count], "masks": masks.to(torch.uint8)}


def targets(*counts: int) -> list[dict[str, Tensor]]:
    return [target(count, size) for count, size in zip(counts, SIZES, strict=True)]


def assert_all_learn(head: MaskRCNN, features: list[Tensor], losses: dict[str, Tensor]) -> None:
    assert list(losses) == LOSSES
    assert all(loss.shape == () and loss.dtype == torch.float32 and loss.isfinite() for loss in losses.values())
    sum(losses.values()).backward()
    for name, parameter in head.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name
    assert all(x.grad is not None and x.grad.isfinite().all() for x in features)


@pytest.mark.parametrize("counts", [(3, 2), (0, 2), (3, 0), (0, 0)])
def test_every_parameter_learns_whatever_the_images_hold(features: list[Tensor], counts: tuple[int, int]) -> None:
    head = build()
    losses = head.loss(features, SIZES, targets(*counts))
    assert_all_learn(head, features, losses)
    for name in ("loss_rpn_bbox", "loss_bbox", "loss_mask"):
        assert (losses[name] > 0) == any(counts), name
    assert (head.mask.logits.weight.grad.abs().sum() > 0) == any(counts)


@pytest.mark.parametrize("counts", [(3, 2), (0, 0)])
def test_every_parameter_learns_without_a_single_proposal(features: list[Tensor], counts: tuple[int, int]) -> None:
    """Every box moved out of the image is clipped to nothing."""
    head = build()
    with torch.no_grad():
        head.rpn.reg.bias.view(3, 4)[:, 0] = 1e4
    losses = head.loss(features, SIZES, targets(*counts))
    assert_all_learn(head, features, losses)
    assert not head.stages(features, SIZES).proposals.counts.any()


def test_crowd_regions_play_no_part(features: list[Tensor]) -> None:
    head = build()
    crowd = [image | {"crowd_boxes": torch.tensor([[0.0, 0, 90, 80]])} for image in targets(3, 2)]
    losses = []
    for images in (targets(3, 2), crowd):
        torch.manual_seed(0)
        losses.append(torch.stack(list(head.loss(features, SIZES, images).values())))
    assert torch.equal(*losses)


def test_losses_do_not_depend_on_the_order_of_objects(features: list[Tensor]) -> None:
    """With batches that hold everything, so that nothing is drawn."""
    head = build(rpn_batch=100_000, roi_batch=100_000)
    images = targets(3, 2)
    turned = [{key: value.flip(0) for key, value in image.items()} for image in images]
    expected = head.loss(features, SIZES, images)
    for name, loss in head.loss(features, SIZES, turned).items():
        torch.testing.assert_close(loss, expected[name])


def test_inference_has_its_own_number_of_candidates(features: list[Tensor]) -> None:
    stages = build(rpn_pre_nms_test=1).stages(features, SIZES)
    assert all(0 < count <= len(SPECS) for count in stages.proposals.counts.tolist())


def test_proposals_are_no_path_for_gradients(features: list[Tensor]) -> None:
    """The box and mask losses do not reach the proposal network through the boxes it proposed."""
    head = build()
    losses = head.loss(features, SIZES, targets(3, 2))
    (losses["loss_cls"] + losses["loss_bbox"] + losses["loss_mask"]).backward()
    assert all(parameter.grad is None for parameter in head.rpn.parameters())


def infer(head: MaskRCNN, features: list[Tensor], sizes: list[tuple[int, int]]) -> list[dict[str, Tensor]]:
    return head.in_batch(head.detect(features, sizes), sizes)


def test_results_keep_their_promises(features: list[Tensor]) -> None:
    results = infer(build(), features, SIZES)
    for result, (height, width) in zip(results, SIZES, strict=True):
        count = len(result["boxes"])
        assert 0 < count <= 20
        assert list(result) == ["boxes", "scores", "labels", "masks"]
        assert result["boxes"].dtype == result["scores"].dtype == torch.float32
        assert result["labels"].dtype == torch.int64
        assert result["masks"].dtype == torch.bool
        assert result["masks"].shape == (count, height, width)
        assert result["boxes"].min() >= 0
        assert result["boxes"][:, [0, 2]].max() <= width
        assert result["boxes"][:, [1, 3]].max() <= height
        assert (result["scores"].diff() <= 0).all()
        assert (result["scores"] > 0.05).all()
        assert set(result["labels"].tolist()) <= {0, 1, 2}
    assert any(result["masks"].any() for result in results)


def test_an_image_gives_the_same_detections_alone_and_in_a_batch(features: list[Tensor]) -> None:
    head = build()
    together = infer(head, features, SIZES)
    for index in range(2):
        (alone,) = infer(head, [x[index : index + 1] for x in features], SIZES[index : index + 1])
        for key, value in alone.items():
            torch.testing.assert_close(value, together[index][key], atol=1e-3, rtol=1e-4)


def test_a_device_finds_and_learns_what_the_cpu_does(features: list[Tensor], monkeypatch: pytest.MonkeyPatch) -> None:
    head, found, learned = build(), [], []
    for on_host in (True, False):
        monkeypatch.setattr(host, "is_host", lambda device, on_host=on_host: on_host)
        found.append(head.detect(features, SIZES))
        torch.manual_seed(0)
        losses = head.loss(features, SIZES, targets(3, 2))
        learned.append(torch.autograd.grad(sum(losses.values()), list(head.parameters())))
    for image, other in zip(*found, strict=True):
        assert all(torch.equal(image[key], other[key]) for key in image)
    assert all(map(torch.equal, *learned))


def test_restoring_scales_boxes_and_pastes_masks_at_the_original_size(features: list[Tensor]) -> None:
    head = build()
    outputs = head.detect(features, SIZES)
    originals = [(180, 512), (48, 71)]
    for output, result, size, original in zip(
        outputs, head.restore(outputs, SIZES, originals), SIZES, originals, strict=True
    ):
        scale = torch.tensor([original[1] / size[1], original[0] / size[0]] * 2)
        torch.testing.assert_close(result["boxes"], output["boxes"] * scale, atol=1e-3, rtol=1e-5)
        assert torch.equal(result["scores"], output["scores"])
        assert torch.equal(result["labels"], output["labels"])
        assert output["mask_probabilities"].shape == (len(output["boxes"]), 28, 28)
        assert torch.equal(result["masks"], paste_masks(output["mask_probabilities"], result["boxes"], original))
        assert result["masks"].shape[1:] == original


def test_mask_probabilities_are_those_of_the_detected_class(features: list[Tensor]) -> None:
    head = build()
    stages, outputs = head.stages(features, SIZES), head.detect(features, SIZES)
    labels = torch.cat([output["labels"] for output in outputs]).tolist()
    expected = torch.stack([stages.mask_logits[row, label] for row, label in enumerate(labels)]).sigmoid()
    torch.testing.assert_close(torch.cat([output["mask_probabilities"] for output in outputs]), expected)


@pytest.mark.parametrize("without", ["detections", "proposals"])
def test_nothing_found_is_an_empty_result(features: list[Tensor], without: str) -> None:
    head = build(score_threshold=0.9999)
    if without == "proposals":
        torch.nn.init.constant_(head.rpn.reg.bias, 1e4)
    results = infer(head, features, SIZES)
    assert [{key: tuple(value.shape) for key, value in result.items()} for result in results] == [
        {"boxes": (0, 4), "scores": (0,), "labels": (0,), "masks": (0, *size)} for size in SIZES
    ]


def test_bfloat16_autocast_stays_close_and_returns_float32(features: list[Tensor]) -> None:
    head = build()
    torch.manual_seed(0)
    exact = head.loss(features, SIZES, targets(3, 2))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        torch.manual_seed(0)
        losses = head.loss(features, SIZES, targets(3, 2))
        assert_all_learn(head, features, losses)
        results = infer(head, features, SIZES)
    for name in ("loss_rpn_cls", "loss_rpn_bbox"):  # the others see other proposals
        torch.testing.assert_close(losses[name], exact[name], rtol=0.02, atol=0.01)
    assert all(result["boxes"].dtype == result["scores"].dtype == torch.float32 for result in results)


def test_the_same_seed_gives_the_same_losses(features: list[Tensor]) -> None:
    head = build()
    runs = []
    for seed in (0, 0, 1):
        torch.manual_seed(seed)
        runs.append(torch.stack(list(head.loss(features, SIZES, targets(3, 2)).values())))
    assert torch.equal(runs[0], runs[1])
    assert not torch.equal(runs[0], runs[2])


def test_without_masks_it_learns_from_boxes_and_finds_the_same_boxes(features: list[Tensor]) -> None:
    """As Faster R-CNN: the parameters that are left, their losses and what they find are the same."""
    head, whole = build(masks=False), build()
    assert head.state_dict().keys() == {name for name in whole.state_dict() if not name.startswith("mask.")}
    head.load_state_dict(whole.state_dict(), strict=False)
    boxes_alone = [{name: image[name] for name in ("boxes", "labels")} for image in targets(3, 2)]
    torch.manual_seed(0)
    expected = whole.loss(features, SIZES, targets(3, 2))
    torch.manual_seed(0)
    losses = head.loss(features, SIZES, boxes_alone)
    assert list(losses) == [name for name in LOSSES if name != "loss_mask"]
    assert all(torch.equal(loss, expected[name]) for name, loss in losses.items())
    results, with_masks = infer(head, features, SIZES), infer(whole, features, SIZES)
    assert [list(result) for result in results] == [["boxes", "scores", "labels"]] * 2
    for result, other in zip(results, with_masks, strict=True):
        assert all(torch.equal(value, other[name]) for name, value in result.items())
    encoded = head.restore_encoded(head.detect(features, SIZES), SIZES, SIZES)
    assert [list(result) for result in encoded] == [["boxes", "scores", "labels"]] * 2


def test_masks_are_needed_by_the_mask_branch_alone() -> None:
    assert MaskRCNNConfig().needs == {"boxes", "labels", "masks"}
    assert MaskRCNNConfig(masks=False).needs == {"boxes", "labels"}


def test_levels_of_different_width_are_refused() -> None:
    with pytest.raises(ConfigError, match="got 16, 24 channels"):
        MaskRCNN(MaskRCNNConfig(), [FeatureSpec(16, 4), FeatureSpec(24, 8)])


def test_objects_without_a_mask_teach_boxes_alone(features: list[Tensor]) -> None:
    head, wanted = build(), targets(3, 2)

    def losses(**changes: Tensor) -> dict[str, Tensor]:
        torch.manual_seed(0)
        return head.loss(features, SIZES, [wanted[0] | changes, wanted[1]])

    whole, all_marked = losses(), losses(has_mask=torch.ones(3, dtype=torch.bool))
    assert {name: value.item() for name, value in all_marked.items()} == {n: v.item() for n, v in whole.items()}
    held = torch.tensor([True, False, True])
    some = losses(has_mask=held)
    other_masks = wanted[0]["masks"].clone()
    other_masks[1] = 1 - other_masks[1]
    assert torch.equal(losses(has_mask=held, masks=other_masks)["loss_mask"], some["loss_mask"])
    assert not torch.equal(losses(masks=other_masks)["loss_mask"], whole["loss_mask"])
    assert all(torch.equal(some[name], whole[name]) for name in whole if name != "loss_mask")
    none = head.loss(
        features,
        SIZES,
        [target | {"has_mask": torch.zeros(len(target["boxes"]), dtype=torch.bool)} for target in wanted],
    )
    assert none["loss_mask"] == 0
    assert_all_learn(head, features, none)
