"""The definitions of the ops in plain, differentiable PyTorch: the specification that every kernel is held against.

They compute in float32 (float64 for float64 values) whatever the storage dtype. `F.grid_sample` itself is wrong in
bfloat16 and float16 on CPUs, so nothing here runs in a 16-bit dtype.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import reduce

import torch
import torch.nn.functional as F
from torch import Tensor

Shapes = Sequence[tuple[int, int]]


def compute_dtype(dtype: torch.dtype) -> torch.dtype:
    """The dtype that arithmetic runs in for values stored as `dtype`."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def host_numbers(numbers: Sequence[float], like: Tensor) -> Tensor:
    """Numbers in the compute dtype of a tensor, on its device, which is not waited for: torch.tensor would wait."""
    dtype = compute_dtype(like.dtype)
    return torch.stack([like.new_full((), number, dtype=dtype) for number in numbers])


def map_sizes(spatial_shapes: Shapes, like: Tensor) -> Tensor:
    """(L, 2), width and height of every map."""
    return host_numbers([side for h, w in spatial_shapes for side in (w, h)], like).view(-1, 2)


def scaled_offsets(offsets: Tensor, scales: Tensor) -> Tensor:
    """offsets (B, Q, M, L, P, 2) times scales (B, Q, L, 2); offsets that are not finite give infinity and no gradient.

    A plain product would hand their NaN to the gradient of the scales.
    """
    finite = offsets.isfinite()
    return torch.where(finite, torch.where(finite, offsets, 0.0) * scales[:, :, None, :, None], torch.inf)


def deform_attn(
    value: Tensor,
    spatial_shapes: Shapes,
    reference_points: Tensor,
    sampling_offsets: Tensor,
    attention_logits: Tensor,
    *,
    sample: Callable[[Tensor, Shapes, Tensor, Tensor], Tensor] | None = None,
) -> Tensor:
    """Softmax over levels and points, locations from references and offsets, then `ms_deform_attn` or `sample`.

    Shapes as in `piip.ops.deform_attn`.
    """
    dtype = compute_dtype(value.dtype)
    levels, points = sampling_offsets.shape[3:5]
    reference = reference_points.to(dtype)[:, :, None, :, None]
    offsets = sampling_offsets.to(dtype)
    if reference.shape[-1] == 4:
        locations = reference[..., :2] + scaled_offsets(offsets, reference_points.to(dtype)[..., 2:] * (0.5 / points))
    else:
        locations = reference + offsets / map_sizes(spatial_shapes, value)[:, None]
    weights = attention_logits.to(dtype).flatten(3).softmax(-1).unflatten(-1, (levels, points))
    return (sample or ms_deform_attn)(value, spatial_shapes, locations, weights)


def ms_deform_attn(
    value: Tensor, spatial_shapes: Shapes, sampling_locations: Tensor, attention_weights: Tensor
) -> Tensor:
    """Weighted sum of bilinear samples (Zhu et al., 2021, equation 3); zeros outside, cell centres at half integers.

    A sample none of whose four cells lies on the map, or whose location is not finite, contributes nothing and gets a
    zero gradient. Shapes as in `piip.ops.ms_deform_attn`.
    """
    dtype = compute_dtype(value.dtype)
    batch, _, heads, width = value.shape
    queries, points = sampling_locations.shape[1], sampling_locations.shape[4]
    locations, weights = sampling_locations.to(dtype), attention_weights.to(dtype)
    sums = []
    for level, (part, (h, w)) in enumerate(
        zip(value.to(dtype).split([h * w for h, w in spatial_shapes], 1), spatial_shapes)
    ):
        image = part.permute(0, 2, 3, 1).reshape(batch * heads, width, h, w)
        grid = 2 * locations[:, :, :, level].transpose(1, 2).reshape(batch * heads, queries, points, 2) - 1
        size = host_numbers([w, h], value)
        inside = (((grid + 1) * size > -1) & ((grid + 1) * size < 2 * size + 1)).all(-1, keepdim=True)
        # grid_sample loses its way on NaN and on numbers beyond the integers: park what is outside beyond the corner.
        grid = torch.where(inside, grid, -3.0)
        weight = weights[:, :, :, level].transpose(1, 2).reshape(batch * heads, 1, queries, points)
        if grid.numel():
            samples = F.grid_sample(image, grid, mode="bilinear", padding_mode="zeros", align_corners=False)
            sums.append((samples * weight).sum(-1))
        else:  # grid_sample refuses it; the gradients are zero
            nothing = 0 * (image.sum() + grid.sum() + weight.sum())
            sums.append(nothing.expand(batch * heads, width, queries))
    return reduce(torch.add, sums).reshape(batch, heads * width, queries).transpose(1, 2).contiguous().to(value.dtype)


def pyramid_resize(
    images: Tensor,
    sizes: Shapes,
    scale_factors: Sequence[tuple[float, float] | None],
    mode: str,
    antialias: bool,
    mean: Sequence[float] | None,
    std: Sequence[float] | None,
    dtype: torch.dtype,
    valid_sizes: Shapes | None,
) -> list[Tensor]:
    """Normalise, zero everything outside the valid sizes, then `F.interpolate` to every level.

    images: (B, C, H, W). A level with a scale factor samples at steps of 1 / factor, one without at steps of in / out.
    """
    source = images.to(compute_dtype(images.dtype))
    if mean is not None and std is not None:
        source = (source - host_numbers(mean, source)[:, None, None]) / host_numbers(std, source)[:, None, None]
    if valid_sizes is not None:
        valid = torch.zeros(images.shape[0], 1, *images.shape[2:], dtype=torch.bool, device=images.device)
        for mask, (h, w) in zip(valid, valid_sizes):
            mask[:, :h, :w] = True
        source = torch.where(valid, source, 0.0)
    levels = []
    for size, factor in zip(sizes, scale_factors):
        if tuple(source.shape[2:]) == tuple(size) and factor in (None, (1.0, 1.0)):
            level = source
        elif source.shape[0] == 0:
            level = source.new_zeros(0, source.shape[1], *size)
        else:
            level = _interpolate(source, size, factor, mode, antialias)
        levels.append(level.to(dtype))
    return levels


def _interpolate(
    source: Tensor, size: tuple[int, int], factor: tuple[float, float] | None, mode: str, antialias: bool
) -> Tensor:
    if antialias and factor is not None:
        # The backward of F.interpolate does not know that its forward copies an axis that keeps its size.
        fy, fx = (1.0 if side == old else f for f, side, old in zip(factor, size, source.shape[2:]))
        factor = (fy, fx)
    if antialias and size[1] == 1 < size[0]:
        # F.interpolate of torch 2.11 fills such a column with its first pixel. A row comes out right.
        return _interpolate(source.mT, (1, size[0]), factor and (factor[1], factor[0]), mode, antialias).mT
    if factor is None:
        return F.interpolate(source, size=tuple(size), mode=mode, align_corners=False, antialias=antialias)
    return F.interpolate(source, scale_factor=factor, mode=mode, align_corners=False, antialias=antialias)
