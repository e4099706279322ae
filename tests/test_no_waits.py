"""The counter of waits knows what waits on a GPU and what does not."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torchvision.ops import nms

from tests.no_waits import Waits

X = torch.rand(4, 3)
MASK = X > 0.5
DEVICE = X.device


def written(index, value):
    copy = X.clone()
    copy[index] = value


@pytest.mark.parametrize(
    ("kind", "call"),
    [
        ("item", lambda: X[0, 0].item()),
        ("item", lambda: bool(MASK.any())),
        ("item", lambda: 3 in X),
        ("nonzero", lambda: X[MASK]),
        ("nonzero", lambda: torch.where(MASK)),
        ("nonzero", lambda: X.masked_select(MASK)),
        ("nonzero", lambda: written(MASK, X[MASK.nonzero_static(size=1).unbind(1)])),
        ("unique", lambda: X.unique()),
        ("equal", lambda: torch.equal(X, X)),
        ("bincount", lambda: MASK[0].long().bincount()),
        ("repeat_interleave", lambda: X.repeat_interleave(MASK[:, 0].long(), 0)),
        ("nms", lambda: nms(X.mean() * torch.ones(3, 4), X[0], 0.5)),
        ("to host", lambda: X.tolist()),
        ("to host", lambda: X.cpu().numpy()),
        ("to host", lambda: X.to("cpu")[0, 0].item()),
        ("from host", lambda: torch.tensor([1.0, 2.0], device=DEVICE)),
        ("from host", lambda: torch.tensor(1.0, device=DEVICE) + X),
        ("from host", lambda: X.new_tensor([1.0])),
        ("from host", lambda: X[[0, 1]]),
        ("from host", lambda: torch.tensor([1.0]).to(DEVICE)),
        ("from host", lambda: torch.from_numpy(np.zeros(3)).to(DEVICE)),
    ],
)
def test_a_wait_is_counted_once_with_its_place(kind, call):
    with Waits() as waits:
        call()
    assert waits.counts == {kind: 1}
    ((_, place),) = waits.places
    assert place.startswith("tests/test_no_waits.py:")
    with Waits(forbidden=True), pytest.raises(AssertionError, match=rf"waits for the device \({kind}\) at tests/"):
        call()


@pytest.mark.parametrize(
    "call",
    [
        lambda: 2 * X + 1,
        lambda: written(MASK, 0.0),
        lambda: written(0, 2.0),
        lambda: torch.where(MASK, X, 0.0).sum(),
        lambda: F.one_hot(X.argmax(1), 4),
        lambda: X.to("cpu", non_blocking=True)[0, 0].item(),
        lambda: torch.tensor([1.0, 2.0]).sum().item(),
        lambda: torch.tensor([1.0]).to(DEVICE, non_blocking=True),
        lambda: torch.from_numpy(np.zeros(3)).tolist(),
        lambda: F.interpolate(X[None, None], scale_factor=0.5).sum(),
    ],
)
def test_what_does_not_wait_is_not_counted(call):
    with Waits(forbidden=True) as waits:
        call()
    assert not waits.total()


def test_waits_of_a_backward_are_counted():
    class Reads(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            return x.clone()

        @staticmethod
        def backward(ctx, grad):
            return grad * grad.sum().item() * grad.tolist()[0]

    x = torch.ones(2, requires_grad=True)
    with Waits() as waits:
        Reads.apply(x).sum().backward()
    assert waits.counts == {"item": 1, "to host": 1}


def test_tensors_told_to_be_on_the_host_do_not_wait():
    steps = torch.zeros(3)
    with Waits() as waits:
        waits.keep_on_host(steps)
        (steps + 1)[0].item()
    assert not waits.total()


def test_what_was_copied_to_the_device_is_there():
    with Waits() as waits:
        for moved in (torch.tensor([1.0]).to(DEVICE, non_blocking=True), torch.tensor(2.0, device=DEVICE)):
            moved.item()
    assert waits.counts == {"from host": 1, "item": 2}
