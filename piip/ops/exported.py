"""How deformable attention samples its maps in a program for ONNX; `exporting` chooses among the forms of this file.

ONNX has GridSample since opset 16, but engines read it wrongly or not at all (TensorRT's parser takes opset 20's
`linear` for nearest). `gather` needs nothing but gathering and arithmetic, and `plugin` keeps the op whole.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import accumulate
from typing import Any, TypeAlias

import torch
from torch import Tensor

from piip.ops import reference
from piip.ops.reference import Shapes

# Engines look for TensorRT's plugins in this domain. The second version came with TensorRT 10.11.
PLUGIN_DOMAIN, PLUGIN, PLUGIN_VERSION = "trt.plugins", "MultiscaleDeformableAttnPlugin_TRT", "2"

# Takes value, spatial shapes, locations and weights as `reference.ms_deform_attn`, the GridSample form, does.
Sampling: TypeAlias = Callable[[Tensor, Shapes, Tensor, Tensor], Tensor]

# torch.compiler.is_exporting says yes in every graph that torch.compile traces (PyTorch 2.11).
_exporting = False
_sampling: Sampling = reference.ms_deform_attn


@contextmanager
def exporting(sampling: Sampling = reference.ms_deform_attn) -> Iterator[None]:
    """What is traced in the block becomes a program of fixed sizes, which samples in this form."""
    global _exporting, _sampling
    before = _exporting, _sampling
    _exporting, _sampling = True, sampling
    try:
        yield
    finally:
        _exporting, _sampling = before


def is_exporting() -> bool:
    """Whether the network is being traced for a program, in which no number can be read."""
    return _exporting


def sample(value: Tensor, spatial_shapes: Shapes, sampling_locations: Tensor, attention_weights: Tensor) -> Tensor:
    """As `reference.ms_deform_attn`, in the form that was chosen."""
    return _sampling(value, spatial_shapes, sampling_locations, attention_weights)


def gather(value: Tensor, spatial_shapes: Shapes, sampling_locations: Tensor, attention_weights: Tensor) -> Tensor:
    """As `reference.ms_deform_attn`: one gather of the four cells around every sample, and one product with weights."""
    dtype = reference.compute_dtype(value.dtype)
    batch, cells, heads, width = value.shape
    queries = sampling_locations.shape[1]
    locations, weights = sampling_locations.to(dtype), attention_weights.to(dtype)
    sizes = reference.map_sizes(spatial_shapes, value)[:, None]  # (L, 1, 2), width and height
    starts = [0, *accumulate(h * w for h, w in spatial_shapes)][:-1]
    position = locations * sizes - 0.5
    # What is outside, or nowhere, is parked on the first cell without weight.
    inside = ((position > -1) & (position < sizes)).all(-1)
    x, y = torch.where(inside[..., None], position, 0.0).unbind(-1)
    weights = torch.where(inside, weights, 0.0)
    left, top = x.floor(), y.floor()
    columns, rows = sizes.unbind(-1)
    first = reference.host_numbers(starts, value)[:, None]
    indices, shares = [], []
    for down in (0, 1):
        for right in (0, 1):
            column, row = left + right, top + down
            share = (1 - (x - column).abs()) * (1 - (y - row).abs())
            exists = (column >= 0) & (column < columns) & (row >= 0) & (row < rows)
            index = first + torch.where(exists, row * columns + column, 0.0)  # exact below 2^24
            indices.append(index.long())
            shares.append(torch.where(exists, share * weights, 0.0))
    index, share = (torch.stack(parts, -1).transpose(1, 2).flatten(3) for parts in (indices, shares))  # (B, M, Q, 4LP)
    planes = torch.arange(batch * heads, device=value.device).view(batch, heads, 1, 1)
    table = value.to(dtype).transpose(1, 2).reshape(batch * heads * cells, width)
    samples = table[index + planes * cells]  # (B, M, Q, 4LP, D)
    out = (share[..., None, :] @ samples).squeeze(-2)  # (B, M, Q, D)
    return out.transpose(1, 2).reshape(batch, queries, heads * width).to(value.dtype)


def plugin(value: Tensor, spatial_shapes: Shapes, sampling_locations: Tensor, attention_weights: Tensor) -> Tensor:
    """As `reference.ms_deform_attn`: one node, TensorRT's plugin, whose inputs are all of the dtype of value.

    Inputs and output as its README has them (TensorRT, plugin/multiscaleDeformableAttnPlugin); sizes are int32.
    """
    batch, _, heads, width = value.shape
    starts = [0, *accumulate(h * w for h, w in spatial_shapes)][:-1]
    inputs = (
        value,
        torch.tensor([list(shape) for shape in spatial_shapes], dtype=torch.int32),
        torch.tensor(starts, dtype=torch.int32),
        sampling_locations.to(value.dtype),
        attention_weights.to(value.dtype),
    )
    shape = (batch, sampling_locations.shape[1], heads, width)
    attributes: dict[str, Any] = {"plugin_version": PLUGIN_VERSION, "plugin_namespace": ""}
    node = f"{PLUGIN_DOMAIN}::{PLUGIN}"
    found = torch.onnx.ops.symbolic(node, inputs, attributes, dtype=value.dtype, shape=shape, version=1)
    return found.flatten(2)
