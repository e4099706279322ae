"""Deformable attention: the public functions."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from piip.ops import reference
from piip.ops._checks import check_device, check_shape, host_shapes


def deform_attn(
    value: Tensor,
    spatial_shapes: Sequence[tuple[int, int]] | Tensor,
    reference_points: Tensor,
    sampling_offsets: Tensor,
    attention_logits: Tensor,
) -> Tensor:
    """Deformable attention from raw offsets and logits; softmax and locations are computed inside, in float32.

    value: (B, S, M, D), the L maps one after the other, row by row.
    spatial_shapes: L (H, W) pairs; their areas add up to S. A CPU tensor is accepted; a GPU tensor waits for the device.
    reference_points: (1 or B, Q, 1 or L, 2 or 4), (x, y) or boxes (x, y, w, h) in [0, 1] of the map.
    sampling_offsets: (B, Q, M, L, P, 2), (x, y) in cells of their map; in units of half a box side / P for boxes.
    attention_logits: (B, Q, M, L * P) or (B, Q, M, L, P).
    Returns (B, Q, M * D) in the dtype of value. Samples outside a map are zero, as are their gradients.
    Raises ValueError or TypeError naming the argument.
    """
    shapes = host_shapes("spatial_shapes", spatial_shapes)
    batch, _, heads, _ = value.shape
    check_shape("value", value, (None, sum(h * w for h, w in shapes), None, None), "(B, sum of H * W, M, D)")
    levels, queries = len(shapes), reference_points.shape[1]
    check_shape("sampling_offsets", sampling_offsets, (batch, queries, heads, levels, None, 2), "(B, Q, M, L, P, 2)")
    points = sampling_offsets.shape[4]
    if attention_logits.dim() == 5:
        check_shape("attention_logits", attention_logits, (batch, queries, heads, levels, points), "(B, Q, M, L, P)")
        attention_logits = attention_logits.flatten(3)
    check_shape("attention_logits", attention_logits, (batch, queries, heads, levels * points), "(B, Q, M, L * P)")
    for name, tensor in (
        ("reference_points", reference_points),
        ("sampling_offsets", sampling_offsets),
        ("attention_logits", attention_logits),
    ):
        check_device(name, tensor, value.device)
    return reference.deform_attn(value, shapes, reference_points, sampling_offsets, attention_logits)


def ms_deform_attn(
    value: Tensor,
    spatial_shapes: Sequence[tuple[int, int]] | Tensor,
    level_start_index: Sequence[int] | Tensor | None,
    sampling_locations: Tensor,
    attention_weights: Tensor,
) -> Tensor:
    """Deformable-DETR's call: locations and weights already formed.

    value, spatial_shapes: as in `deform_attn`.
    level_start_index: where each map starts in S; must be what follows from spatial_shapes, None is fine.
    sampling_locations: (B, Q, M, L, P, 2), (x, y) in [0, 1] of the map.
    attention_weights: (B, Q, M, L, P).
    Returns (B, Q, M * D).
    """
    shapes = host_shapes("spatial_shapes", spatial_shapes)
    return reference.ms_deform_attn(value, shapes, sampling_locations, attention_weights)
