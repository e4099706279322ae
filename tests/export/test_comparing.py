"""The comparison of a program's outputs with the network's sees what is wrong, and only that."""

from __future__ import annotations

import torch
from torch import Tensor

from piip.export.verify import compare, exceeding
from piip.heads.base import Exported

BOXES = torch.tensor([[0.0, 0, 10, 10], [20, 20, 60, 40], [50, 5, 90, 80]])
SCORES = torch.tensor([0.9, 0.8, 0.7])
LABELS = torch.tensor([1, 0, 1])


def rows(boxes: Tensor = BOXES, scores: Tensor = SCORES, labels: Tensor = LABELS) -> Exported:
    return Exported({"boxes": boxes, "scores": scores, "labels": labels}, rows=True)


def compared(ours: Exported, theirs: Exported) -> list[str]:
    found = compare(ours, theirs.tensors, batched=False)
    return [one.name for one in exceeding(list(found.values()), 1e-3)]


def test_rows_in_another_order_are_the_same():
    order = torch.tensor([2, 0, 1])
    assert compared(rows(), rows(BOXES[order], SCORES[order], LABELS[order])) == []


def test_a_row_that_is_missing_or_new_is_seen_in_every_output():
    every = ["boxes", "scores", "labels"]
    assert compared(rows(), rows(BOXES[:2], SCORES[:2], LABELS[:2])) == every
    assert compared(rows(BOXES[:2], SCORES[:2], LABELS[:2]), rows()) == every
    assert compared(rows(), rows(BOXES[:0], SCORES[:0], LABELS[:0])) == every
    nothing = rows(BOXES[:0], SCORES[:0], LABELS[:0])
    assert compared(nothing, nothing) == []


def test_a_small_error_is_measured_and_another_label_is_another_row():
    moved = BOXES.clone()
    moved[1, 2] += 0.9  # pixels, of 90
    found = compare(rows(), rows(moved).tensors, batched=False)
    assert found["boxes"].error == torch.tensor(0.9 / 90).item() or abs(found["boxes"].error - 0.01) < 1e-6
    assert found["scores"].error == 0
    assert found["boxes"].alone == 0
    assert compared(rows(), rows(labels=torch.tensor([1, 1, 1]))) != []


def test_images_of_a_batch_are_not_confused():
    ours = Exported({"boxes": torch.stack([BOXES, BOXES + 7])}, rows=True)
    swapped = {"boxes": torch.stack([BOXES + 7, BOXES])}
    found = compare(ours, swapped, batched=True)
    assert exceeding([*found.values()], 1e-3)
    assert not exceeding([*compare(ours, ours.tensors, batched=True).values()], 1e-3)


def test_dense_outputs_are_compared_in_place_and_nothing_that_is_no_number_passes():
    logits = torch.randn(2, 4, 5, 5)
    ours = Exported({"logits": logits}, rows=False)
    assert not exceeding([*compare(ours, {"logits": logits + 1e-5}, batched=True).values()], 1e-3)
    assert exceeding([*compare(ours, {"logits": logits.flip(0)}, batched=True).values()], 1e-3)
    assert exceeding([*compare(ours, {"logits": logits * float("nan")}, batched=True).values()], 1e-3)
    assert exceeding([*compare(ours, {"logits": logits[:1]}, batched=True).values()], 1e-3)


def test_the_worst_of_all_images_is_kept():
    ours = Exported({"logits": torch.ones(1, 3)}, rows=False)
    found = compare(ours, {"logits": torch.ones(1, 3) + 0.5}, batched=True)
    found = compare(ours, {"logits": torch.ones(1, 3)}, batched=True, found=found)
    assert found["logits"].error == 0.5
