"""Assignment against the rule written out in loops; sampling against its promised counts."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torchvision.ops import box_iou

from piip.heads.mask_rcnn import sampling
from piip.heads.mask_rcnn.sampling import BACKGROUND, IGNORED, assign, drawn_first, sample

RPN = {"positive_iou": 0.7, "negative_iou": 0.3, "min_iou": 0.3}
ROI = {"positive_iou": 0.5, "negative_iou": 0.5, "min_iou": 0.5}


def naive_assign(
    boxes: Tensor, objects: Tensor, *, positive_iou: float, negative_iou: float, min_iou: float
) -> list[int]:
    """The four steps of mmdetection's MaxIoUAssigner, box by box and object by object."""
    iou = box_iou(objects, boxes)
    result = []
    for column in range(len(boxes)):
        best = max(range(len(objects)), key=lambda row: iou[row, column].item())
        value = iou[best, column].item()
        result.append(best if value >= positive_iou else BACKGROUND if value < negative_iou else IGNORED)
    for row in range(len(objects)):
        highest = iou[row].max().item()
        if highest >= min_iou:
            for column in range(len(boxes)):
                if iou[row, column].item() == highest:
                    result[column] = row
    return result


@pytest.mark.parametrize("rule", [RPN, ROI], ids=["rpn", "roi"])
@pytest.mark.parametrize("seed", range(6))
def test_assignment_equals_the_rule_written_out(rule: dict[str, float], seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    # Whole numbers, so that several boxes overlap an object equally, and twice the same object.
    corner = torch.randint(0, 12, (90, 2), generator=generator).float()
    boxes = torch.cat([corner, corner + torch.randint(2, 9, (90, 2), generator=generator)], 1)
    objects = torch.cat([boxes[:4] + 0.5, boxes[1:2] + 0.5])
    (assigned,) = assign(boxes[None], objects[None], **rule)
    assert assigned.tolist() == naive_assign(boxes, objects, **rule)
    assert assigned.dtype == torch.int64
    assert {BACKGROUND, 4} <= set(assigned.tolist())
    assert (IGNORED in assigned) == (rule is RPN)


def test_an_object_takes_its_best_boxes_from_an_earlier_object() -> None:
    boxes = torch.tensor([[0.0, 0, 10, 10], [0, 0, 10, 9], [50, 50, 60, 60]])
    objects = torch.tensor([[0.0, 0, 10, 10], [0, 0, 10, 12]])  # the second one's best box is the first one's too
    assert assign(boxes[None], objects[None], **RPN).tolist() == [[1, 0, BACKGROUND]]


def test_an_object_far_from_every_box_takes_none() -> None:
    boxes, objects = torch.tensor([[0.0, 0, 10, 10]]), torch.tensor([[8.0, 8, 30, 30]])
    assert assign(boxes[None], objects[None], **RPN).tolist() == [[BACKGROUND]]


def test_images_of_a_batch_are_assigned_as_if_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where there are so many pairs that the batch is taken apart, and whatever pads an image with few objects."""
    generator = torch.Generator().manual_seed(0)
    corner = torch.randint(0, 12, (3, 50, 2), generator=generator).float()
    boxes = torch.cat([corner, corner + torch.randint(2, 9, (3, 50, 2), generator=generator)], 2)
    objects = [boxes[0, :4] + 0.5, boxes[1, :0], boxes[2, :2] + 0.5]
    alone = torch.cat([assign(b[None], o[None], **RPN) for b, o in zip(boxes, objects, strict=True)])
    padded = torch.stack([torch.cat([o, torch.zeros(5 - len(o), 4)]) for o in objects])
    assert torch.equal(assign(boxes, padded, **RPN), alone)
    monkeypatch.setattr(sampling, "MAX_PAIRS", 2 * 50 * 5)
    assert torch.equal(assign(boxes, padded, **RPN), alone)


@pytest.mark.parametrize(("boxes", "objects"), [(3, 0), (0, 2), (0, 0)])
def test_without_objects_all_is_background(boxes: int, objects: int) -> None:
    assigned = assign(torch.rand(2, boxes, 4), torch.rand(2, objects, 4), **RPN)
    assert assigned.tolist() == [[BACKGROUND] * boxes] * 2


@pytest.mark.parametrize(
    ("positives", "negatives", "drawn"),
    [
        (200, 800, (32, 96)),  # as many positives as allowed
        (10, 800, (10, 118)),  # negatives fill up
        (10, 20, (10, 20)),  # all there is
        (500, 20, (32, 20)),  # positives do not fill up
        (0, 500, (0, 128)),
        (0, 0, (0, 0)),
    ],
)
def test_sample_draws_the_promised_counts(positives: int, negatives: int, drawn: tuple[int, int]) -> None:
    torch.manual_seed(0)
    assigned = torch.cat([torch.arange(positives), torch.full((negatives,), BACKGROUND), torch.full((50,), IGNORED)])
    assigned = assigned[torch.randperm(len(assigned))]
    positive, negative = (mask[0] for mask in sample(assigned[None], num_samples=128, positive_fraction=0.25))
    assert (positive.sum().item(), negative.sum().item()) == drawn
    assert (assigned[positive] >= 0).all()
    assert (assigned[negative] == BACKGROUND).all()


def test_sample_prefers_no_box() -> None:
    torch.manual_seed(0)
    assigned = torch.tensor([[0] * 10 + [BACKGROUND] * 30])
    draws = 2000
    counts = torch.zeros(40)
    for _ in range(draws):
        positive, negative = sample(assigned, num_samples=16, positive_fraction=0.25)
        counts += positive[0].float() + negative[0].float()
    # 4 of 10 positives and 12 of 30 negatives: 0.4 each, with a standard error of 0.011.
    assert ((counts / draws - 0.4).abs() < 0.05).all()


def test_sample_follows_the_seed() -> None:
    assigned = torch.randint(-2, 3, (1, 400), generator=torch.Generator().manual_seed(0))
    torch.manual_seed(5)
    first = sample(assigned, num_samples=64, positive_fraction=0.5)
    again = sample(assigned, num_samples=64, positive_fraction=0.5)
    torch.manual_seed(5)
    repeated = sample(assigned, num_samples=64, positive_fraction=0.5)
    assert torch.equal(torch.stack(first), torch.stack(repeated))
    assert not torch.equal(torch.stack(first), torch.stack(again))


def test_the_images_of_a_batch_draw_one_after_the_other_as_if_alone() -> None:
    generator = torch.Generator().manual_seed(0)
    images = [torch.randint(-2, 3, (n,), generator=generator) for n in (300, 0, 170)]
    padded = torch.nn.utils.rnn.pad_sequence(images, batch_first=True, padding_value=IGNORED)
    torch.manual_seed(5)
    together = torch.stack(sample(padded, num_samples=64, positive_fraction=0.5, lengths=[300, 0, 170]))
    torch.manual_seed(5)
    for index, image in enumerate(images):
        alone = torch.stack(sample(image[None], num_samples=64, positive_fraction=0.5))[:, 0]
        assert torch.equal(together[:, index, : len(image)], alone)
        assert not together[:, index, len(image) :].any()


@pytest.mark.parametrize("count", [0, 3, 12, 40, 99])
def test_the_drawn_come_first_in_the_order_of_a_stable_sort(count: int) -> None:
    kind = torch.randint(0, 3, (4, 40), generator=torch.Generator().manual_seed(0))
    expected = kind.argsort(dim=1, descending=True, stable=True)[:, :count]
    assert torch.equal(drawn_first(kind == 2, kind == 1, count), expected)
