"""MSDeformAttn stands in for the module of Deformable-DETR."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F

from piip.ops import MSDeformAttn
from tests.ops.cases import relative_error

SHAPES = [(4, 6), (2, 3)]


def deformable_detr(state, query, points, features, heads, samples, mask=None):
    """The published forward, written with `F.grid_sample` and `F.linear` only."""
    state = {key: tensor.double() for key, tensor in state.items()}
    batch, queries, levels = query.shape[0], query.shape[1], len(SHAPES)

    def project(name, x):
        return F.linear(x, state[f"{name}.weight"], state[f"{name}.bias"])

    value = project("value_proj", features)
    if mask is not None:
        value = value.masked_fill(mask[..., None], 0)
    value = value.unflatten(-1, (heads, -1))
    offsets = project("sampling_offsets", query).view(batch, queries, heads, levels, samples, 2)
    weights = project("attention_weights", query).view(batch, queries, heads, -1).softmax(-1)
    if points.shape[-1] == 2:
        size = torch.tensor([(w, h) for h, w in SHAPES]).double()
        locations = points[:, :, None, :, None] + offsets / size[:, None]
    else:
        locations = points[:, :, None, :, None, :2] + offsets / samples * points[:, :, None, :, None, 2:] * 0.5
    outputs, start = [], 0
    for level, (h, w) in enumerate(SHAPES):
        image = value[:, start : start + h * w].permute(0, 2, 3, 1).reshape(batch * heads, -1, h, w)
        grid = 2 * locations[:, :, :, level].transpose(1, 2).flatten(0, 1) - 1
        outputs.append(F.grid_sample(image, grid, align_corners=False))
        start += h * w
    weights = weights.transpose(1, 2).reshape(batch * heads, 1, queries, -1)
    summed = (torch.cat(outputs, -1) * weights).sum(-1).view(batch, -1, queries).transpose(1, 2)
    return project("output_proj", summed)


@pytest.mark.parametrize("ratio", [1.0, 0.5])
@pytest.mark.parametrize("coordinates", [2, 4])
@pytest.mark.parametrize("masked", [False, True])
def test_forward_equals_the_published_one(device, ratio, coordinates, masked):
    torch.manual_seed(0)
    attention = MSDeformAttn(32, 2, 4, 3, ratio).to(device)
    for parameter in attention.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    query, points, features = torch.randn(2, 5, 32), torch.rand(2, 5, 2, coordinates), torch.randn(2, 30, 32)
    mask = torch.rand(2, 30) < 0.3 if masked else None
    arguments = [t.to(device) for t in (query, points, features)]
    # As Deformable-DETR calls it: shapes and starts as tensors.
    shapes, starts = torch.tensor(SHAPES), torch.tensor([0, 24])
    actual = attention(*arguments, shapes, starts, mask if mask is None else mask.to(device))
    state = {key: tensor.cpu() for key, tensor in attention.state_dict().items()}
    expected = deformable_detr(state, query.double(), points.double(), features.double(), 4, 3, mask)
    assert relative_error(actual, expected) < 5e-6


def test_state_dict_is_that_of_deformable_detr():
    shapes = {key: tuple(tensor.shape) for key, tensor in MSDeformAttn(256, 4, 8, 4).state_dict().items()}
    assert shapes == {
        "sampling_offsets.weight": (256, 256),
        "sampling_offsets.bias": (256,),
        "attention_weights.weight": (128, 256),
        "attention_weights.bias": (128,),
        "value_proj.weight": (256, 256),
        "value_proj.bias": (256,),
        "output_proj.weight": (256, 256),
        "output_proj.bias": (256,),
    }


def test_value_width_follows_ratio_and_features_have_their_own():
    attention = MSDeformAttn(d_model=768, n_levels=1, n_heads=16, n_points=4, ratio=0.5, d_feat=384)
    assert attention.value_proj.weight.shape == (384, 384)
    assert attention.output_proj.weight.shape == (768, 384)
    assert attention(torch.randn(1, 4, 768), torch.rand(1, 4, 1, 2), torch.randn(1, 9, 384), [(3, 3)]).shape == (
        1,
        4,
        768,
    )


def test_initial_offsets_point_in_even_directions_and_weights_are_equal():
    attention = MSDeformAttn(32, 2, 4, 3)
    bias = attention.sampling_offsets.bias.view(4, 2, 3, 2)
    for head, direction in enumerate([(1, 0), (0, 1), (-1, 0), (0, -1)]):
        for point in range(3):
            expected = torch.tensor(direction) * (point + 1.0)
            assert torch.allclose(bias[head, :, point], expected.expand(2, 2), atol=1e-6)
    assert MSDeformAttn(32, 1, 8, 1).sampling_offsets.bias.view(8, 2)[1].tolist() == pytest.approx([1, 1])
    assert all((p == 0).all() for p in (attention.sampling_offsets.weight, *attention.attention_weights.parameters()))
    limit = math.sqrt(6 / 64)
    assert 0.9 * limit < attention.value_proj.weight.abs().max() <= limit


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"n_heads": 0}, "n_heads must be a positive integer, got 0"),
        ({"n_points": -1}, "n_points must be a positive integer, got -1"),
        ({"d_model": 256.0}, "d_model must be a positive integer, got 256.0"),
        ({"ratio": math.nan}, r"d_model \* ratio must be a positive multiple"),
        ({"d_model": 30, "n_heads": 4}, "d_model must be divisible by n_heads, got 30 and 4"),
        (
            {"d_model": 32, "n_heads": 4, "ratio": 0.2},
            r"d_model \* ratio must be a positive multiple of n_heads, got 6 and 4",
        ),
    ],
)
def test_widths_that_do_not_divide_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        MSDeformAttn(**arguments)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"query": torch.zeros(5, 32)}, r"query must have shape \(B, Q, d_model\) = .*got \(5, 32\)"),
        ({"input_flatten": torch.zeros(2, 30, 16)}, r"input_flatten must have shape \(B, S, d_feat\)"),
        ({"input_padding_mask": torch.zeros(2, 29, dtype=torch.bool)}, "input_padding_mask must be bool of shape"),
        ({"input_padding_mask": torch.zeros(2, 30)}, "input_padding_mask must be bool.*got torch.float32"),
    ],
)
def test_forward_names_the_argument_it_refuses(changes, message):
    inputs = {
        "query": torch.zeros(2, 5, 32),
        "reference_points": torch.zeros(2, 5, 2, 2),
        "input_flatten": torch.zeros(2, 30, 32),
        "input_spatial_shapes": SHAPES,
    }
    with pytest.raises(ValueError, match=message):
        MSDeformAttn(32, 2, 4, 3)(**inputs | changes)
