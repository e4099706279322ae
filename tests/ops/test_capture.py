"""What a CUDA graph can capture: no op waits for the device, forward or backward, on any of its paths."""

from __future__ import annotations

import pytest
import torch

from piip.ops import MSDeformAttn, deform_attn, ms_deform_attn, pyramid_resize, reference
from tests.no_waits import Waits
from tests.ops.cases import make_case


def attend(boxes=False, **settings):
    def run(device):
        case = make_case(boxes=boxes, **settings).to(device=device).leaves()
        deform_attn(case.value, case.shapes, *case.tensors[1:]).sum().backward()
        assert case.reference.grad is not None

    return run


def attend_locations(device):
    value = torch.rand(2, 26, 2, 6, device=device, requires_grad=True)
    locations = torch.rand(2, 3, 2, 2, 4, 2, device=device, requires_grad=True)
    ms_deform_attn(value, [(4, 5), (2, 3)], [0, 20], locations, locations[..., 0]).sum().backward()


def attend_module(device):
    attention = MSDeformAttn(16, 2, 2, 2, 0.5).to(device)
    query, points, features = torch.randn(2, 5, 16), torch.rand(2, 5, 2, 4), torch.randn(2, 16, 16)
    padding = torch.zeros(2, 16, dtype=torch.bool, device=device)
    inputs = [t.to(device, non_blocking=True) for t in (query, points, features)]
    attention(*inputs, [(3, 4), (2, 2)], None, padding).sum().backward()


def resize(**settings):
    def run(device):
        images = torch.rand(2, 3, 12, 14, device=device, requires_grad=True)
        levels = pyramid_resize(images, scale_factors=[1.0, 0.5, 1.3], **settings)
        sum(level.sum() for level in levels).backward()

    return run


def resize_bytes(device):
    images = torch.zeros(2, 12, 14, 3, dtype=torch.uint8, device=device)
    pyramid_resize(images, [(6, 7)], mean=[1.0, 2.0, 3.0], std=[4.0, 5.0, 6.0], valid_sizes=[(12, 3), (5, 14)])


RUNS = {
    "points": attend(),
    "boxes": attend(boxes=True),
    "bfloat16": attend(dtype=torch.bfloat16),
    "shared references": attend(shared_batch=True, shared_level=True),
    "locations": attend_locations,
    "module": attend_module,
    "bilinear": resize(),
    "bicubic": resize(mode="bicubic", antialias=True, mean=[0.1] * 3, std=[2.0] * 3, valid_sizes=[(12, 9), (10, 14)]),
    "bytes": resize_bytes,
}


@pytest.mark.parametrize("name", RUNS)
def test_no_op_waits_for_the_device(device, name):
    with Waits(forbidden=True):
        RUNS[name](device)


def test_nor_does_the_fast_backward(device):
    torch.use_deterministic_algorithms(False)
    with Waits(forbidden=True):
        RUNS["points"](device)


@pytest.mark.parametrize("boxes", [False, True])
def test_nor_do_the_definitions(boxes):
    case = make_case(boxes=boxes).leaves()
    images = torch.rand(2, 3, 12, 14, requires_grad=True)
    settings = (False, [0.1] * 3, [2.0] * 3, torch.float32, [(12, 9), (10, 14)])
    with Waits(forbidden=True):
        case.run(reference.deform_attn).sum().backward()
        reference.pyramid_resize(images, [(6, 7)], [None], "bilinear", *settings)[0].sum().backward()


def test_map_sizes_that_lie_on_the_device_are_waited_for_once():
    case = make_case()
    with Waits() as waits:
        sizes = torch.stack([torch.full((), side) for shape in case.shapes for side in shape]).view(-1, 2)
        deform_attn(case.value, sizes, *case.tensors[1:])
    assert waits.counts == {"to host": 1}
