"""The best candidates of every image of a batch, and non-maximum suppression among them."""

from __future__ import annotations

import torch
from torch import Tensor
from torchvision.ops import nms

from piip import host, ops
from piip.ops.exported import is_exporting

# Images that one call suppresses on a device, where it waits once; its memory grows with the square of all their boxes.
QUADRANTS = 4


def best(scores: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """The `count` highest of scores (B, N) float32, none of them negative, and their indices: (B, count) each.

    As from a stable descending sort, of equal scores the first come first; topk alone promises no order among them.
    """
    last = scores.shape[1] - 1
    if is_exporting():  # ONNX promises that order of TopK, and has no bits of floats
        return scores.topk(count, dim=1)
    # The bits of such floats are ordered as their values; behind them, a larger number for an earlier place.
    keys = scores.view(torch.int32).long() << 32 | torch.arange(last, -1, -1, device=scores.device)
    index = last - (keys.topk(count, dim=1).values & 0xFFFFFFFF)
    return scores.gather(1, index), index


def suppress(
    boxes: Tensor, scores: Tensor, groups: Tensor, usable: Tensor, *, num_groups: int, threshold: float, limit: int
) -> tuple[Tensor, Tensor]:
    """Which boxes of an image no better box of the same group overlaps too much: at most the `limit` best of them.

    boxes: (B, N, 4) with N > 0, no coordinate negative; scores: (B, N); groups: (B, N) or (N,), below num_groups.
    usable: (B, N) bool; the other boxes take no part. threshold: largest IoU two kept boxes of a group may have.
    Returns indices (B, K) by descending score, equal scores in their order, and how many of them count (B,): what
    follows those is 0. It waits for the device once for every four images, and an image's result does not depend on
    the others.
    """
    candidates = scores.shape[1]
    # Groups are shifted apart as the released checkpoints were evaluated: float32 rounds shifted boxes differently, and
    # torchvision.ops.batched_nms leaves the shift out when there are many boxes. The boxes that take no part are a
    # group of their own, in which the first suppresses the others.
    extent = torch.where(usable[..., None], boxes, 0).amax((1, 2)) + 1
    shift = torch.where(usable, groups, num_groups) * extent[:, None]
    aside = torch.arange(4, device=boxes.device) // 2
    shifted = torch.where(usable[..., None], boxes, aside) + shift[..., None]
    if is_exporting():  # a program has fixed sizes: nothing is cut off behind the last one kept
        return ops.nms(shifted, torch.where(usable, scores, -1.0), threshold, limit)
    # On the CPU a call costs the square of its boxes.
    together = 1 if host.is_host(boxes.device) else QUADRANTS
    if together > 1:
        shifted = _mirrored(shifted)
    chunks = zip(shifted.split(together), scores.split(together), strict=True)
    kept = [
        nms(some.flatten(0, 1), their_scores.flatten(), threshold) + chunk * together * candidates
        for chunk, (some, their_scores) in enumerate(chunks)
    ]
    most = min(limit, max(map(len, kept)))
    return _by_image(torch.cat(kept), usable, most)


def _mirrored(boxes: Tensor) -> Tensor:
    """Boxes (B, N, 4) of four neighbouring images, each in a quadrant of its own.

    Unlike a shift, changing signs changes no bit of any width, height or overlap.
    """
    image = torch.arange(len(boxes), device=boxes.device)
    signs = 1 - 2 * torch.stack([image % 2, image // 2 % 2], dim=1)
    corners = boxes.unflatten(-1, (2, 2)) * signs[:, None, None]
    return torch.cat([corners.amin(dim=-2), corners.amax(dim=-2)], dim=-1)


def _by_image(kept: Tensor, usable: Tensor, most: int) -> tuple[Tensor, Tensor]:
    """Indices kept (n,) into the flattened usable (B, N) -> those within each image (B, most), how many count (B,)."""
    batch, candidates = usable.shape
    image = torch.arange(batch, device=kept.device)[:, None]
    own = (kept // candidates == image) & usable.flatten()[kept]  # (B, n)
    rank = own.cumsum(dim=1) - 1
    # All others are written to one element more, which is cut off.
    rank = torch.where(own & (rank < most), rank, most)
    index = torch.zeros(batch, most + 1, dtype=torch.int64, device=kept.device)
    index = index.scatter(1, rank, (kept % candidates).expand(batch, -1))[:, :most]
    return index, own.sum(dim=1).clamp(max=most)
