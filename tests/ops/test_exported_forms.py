"""The forms in which programs hold deformable attention and suppression compute what the definitions compute."""

from __future__ import annotations

import pytest
import torch
from torchvision.ops import nms as torchvision_nms

from piip.ops import nms, reference
from piip.ops.exported import gather


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("shapes", [[(5, 7)], [(4, 6), (1, 3), (2, 2)]])
def test_gathering_gives_what_grid_sample_gives(shapes, dtype):
    generator = torch.Generator().manual_seed(0)
    cells, levels = sum(h * w for h, w in shapes), len(shapes)
    value = torch.randn(2, cells, 3, 8, generator=generator, dtype=dtype)
    locations = torch.rand(2, 9, 3, levels, 4, 2, generator=generator, dtype=dtype) * 2 - 0.5
    locations[0, 0, 0, 0] = torch.tensor([[float("nan"), 0.5], [0.5, float("inf")], [1e9, -1e9], [-1e30, 0.1]])
    locations[0, 1, 0, 0] = torch.tensor([[0, 0], [1, 1], [0, 1], [1.0, 0]])  # corners of the map
    weights = torch.rand(2, 9, 3, levels, 4, generator=generator, dtype=dtype)
    expected = reference.ms_deform_attn(value, shapes, locations, weights)
    tolerance = 1e-12 if dtype == torch.float64 else 2e-6
    torch.testing.assert_close(gather(value, shapes, locations, weights), expected, atol=tolerance, rtol=tolerance)


def test_nms_fills_up_what_torchvision_keeps():
    generator = torch.Generator().manual_seed(0)
    corners = torch.rand(3, 40, 2, generator=generator) * 50
    boxes = torch.cat([corners, corners + 20 * torch.rand(3, 40, 2, generator=generator) + 1], dim=-1)
    scores = torch.rand(3, 40, generator=generator).round(decimals=1)  # with ties
    scores[1, ::2] = -1
    scores[2] = -1
    index, counts = nms(boxes, scores, 0.3, 6)
    assert index.shape == (3, 6)
    for image in range(3):
        rows = (scores[image] >= 0).nonzero()[:, 0]
        order = rows[scores[image, rows].argsort(descending=True, stable=True)]
        kept = order[torchvision_nms(boxes[image, order], torch.arange(len(order), 0, -1.0), 0.3)][:6]
        assert index[image, : counts[image]].tolist() == kept.tolist()
        assert not index[image, counts[image] :].any()
    assert counts[2] == 0


def test_nms_has_fixed_sizes_for_tensors_without_data():
    boxes, scores = torch.empty(2, 5, 4, device="meta"), torch.empty(2, 5, device="meta")
    index, counts = torch.ops.piip.nms(boxes, scores, 0.5, 3)
    assert (index.shape, counts.shape, index.dtype) == ((2, 3), (2,), torch.int64)
