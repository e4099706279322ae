"""How far the outputs of an exported program are from those of the network."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from piip.heads.base import Exported

# Rows of both sides that belong together differ by less than this share of the largest value of any output.
_SAME_ROW = 0.02


@dataclass
class Difference:
    """Of one output, over all images that were tried.

    shape: of the program's output for the last image. error: the largest difference, as a share of the largest value
    that the network gives, but of 1 at least; of labels and masks the share that differ. largest: that value.
    alone: the share of rows that only one of both has, of outputs that are rows.
    """

    name: str
    shape: tuple[int, ...]
    error: float = 0.0
    largest: float = 0.0
    alone: float = 0.0


def compare(
    expected: Exported, got: Mapping[str, Tensor], *, batched: bool, found: dict[str, Difference] | None = None
) -> dict[str, Difference]:
    """The differences between the outputs of the network and those of the program, by name.

    Rows, whose order means nothing, are compared with the row that is nearest. batched: whether the outputs of rows
    have a batch before them. found: differences of other images, to which these are added.
    """
    found = {} if found is None else found
    for name, tensor in expected.tensors.items():
        found.setdefault(name, Difference(name, ())).shape = tuple(got[name].shape)
        if not expected.rows:
            _add(found[name], tensor, got[name])
    if expected.rows:
        count = len(next(iter(expected.tensors.values()))) if batched else 1
        for image in range(count):
            ours = {name: x[image] if batched else x for name, x in expected.tensors.items()}
            theirs = {name: got[name][image] if batched else got[name] for name in ours}
            rows, columns, alone = _pairs(ours, theirs)
            for name, difference in found.items():
                difference.alone = max(difference.alone, alone)
                _add(difference, ours[name][rows], theirs[name][columns])
    return found


def _add(difference: Difference, ours: Tensor, theirs: Tensor) -> None:
    if ours.shape != theirs.shape:
        difference.error = float("inf")
    elif ours.numel():
        if not ours.is_floating_point():
            error, largest = (ours != theirs).float().mean(), ours.amax()
        else:
            largest = ours.abs().amax()
            error = (ours - theirs).abs().amax() / largest.clamp(min=1)
        difference.error = max(difference.error, float(error.nan_to_num(nan=torch.inf)))
        difference.largest = max(difference.largest, float(largest))


def _pairs(ours: Mapping[str, Tensor], theirs: Mapping[str, Tensor]) -> tuple[Tensor, Tensor, float]:
    """Rows of both sides that are each other's nearest and alike, and the share of rows without such a one."""
    counts = [len(next(iter(side.values()))) for side in (ours, theirs)]
    if not min(counts):
        return torch.arange(0), torch.arange(0), float(max(counts) > 0)
    scales = {name: x.abs().amax().clamp(min=1) for name, x in ours.items() if x.dtype != torch.bool}
    first, second = (
        torch.cat([(side[name] / scale).double().reshape(count, -1) for name, scale in scales.items()], dim=1)
        for side, count in zip((ours, theirs), counts)
    )
    distances = torch.cdist(first, second, p=torch.inf)
    nearest, rows = distances.argmin(dim=1), torch.arange(len(first))
    alike = (distances.argmin(dim=0)[nearest] == rows) & (distances[rows, nearest] < _SAME_ROW)
    return rows[alike], nearest[alike], 1 - int(alike.sum()) / max(counts)


def exceeding(differences: Sequence[Difference], tolerance: float) -> list[Difference]:
    """Those whose error, or share of rows that are alone, is above a tolerance."""
    return [one for one in differences if not (one.error <= tolerance and one.alone <= max(tolerance, 0.01))]
