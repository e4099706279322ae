"""What the paper measured of resolutions, and a fit to it."""

from __future__ import annotations

import math
from functools import cache
from typing import NamedTuple

import numpy as np


class Row(NamedTuple):
    """letters: DeiT branches, finest first. gmacs: of the backbone, as the paper counts. box_ap: Mask R-CNN, COCO."""

    letters: str
    resolutions: tuple[int, ...]
    gmacs: float
    box_ap: float


# NeurIPS paper, table 12.
ROWS = [
    Row("tsb", (896, 672, 448), 176, 42.1),
    Row("tsb", (1120, 672, 448), 192, 42.7),
    Row("tsb", (1344, 672, 448), 212, 43.5),
    Row("tsb", (1120, 896, 448), 243, 43.9),
    Row("tsb", (1344, 896, 448), 263, 44.5),
    Row("tsb", (1568, 896, 448), 287, 45.0),
    Row("tsb", (1568, 896, 672), 387, 45.8),
    Row("tsb", (1568, 1120, 672), 453, 46.6),
    Row("tsb", (1792, 1120, 672), 480, 46.7),
    Row("tsb", (1792, 1344, 672), 561, 46.8),
    Row("sbl", (672, 448, 224), 245, 41.1),
    Row("sbl", (896, 448, 224), 298, 43.5),
    Row("sbl", (1120, 448, 224), 367, 45.2),
    Row("sbl", (1120, 672, 224), 504, 45.8),
    Row("sbl", (1120, 672, 448), 727, 46.7),
    Row("sbl", (1344, 672, 448), 811, 47.5),
    Row("sbl", (1344, 896, 448), 1002, 48.2),
    Row("sbl", (1568, 896, 672), 1464, 49.4),
    Row("sbl", (1568, 1120, 672), 1709, 49.9),
    Row("sbl", (1792, 1120, 672), 1824, 49.9),
    Row("tsbl", (1344, 896, 672, 448), 755, 46.9),
    Row("tsbl", (1568, 1120, 672, 448), 861, 48.2),
    Row("tsbl", (1568, 1120, 896, 448), 1052, 48.7),
    Row("tsbl", (1792, 1344, 896, 448), 1180, 49.0),
    Row("tsbl", (1792, 1568, 1120, 448), 1535, 49.6),
]


class Fit(NamedTuple):
    """Box AP as a linear function of `_features`. rms, worst: errors where each row is left out of the fit in turn."""

    weights: tuple[float, ...]
    rms: float
    worst: float

    def predict(self, resolutions: tuple[int, ...], gmacs: float) -> float:
        """Box AP. It means something near the published rows, see `near`."""
        return float(np.dot(self.weights, _features(resolutions, gmacs)))


@cache
def fit() -> Fit:
    """Least squares over the published rows."""
    x = np.array([_features(row.resolutions, row.gmacs) for row in ROWS])
    y = np.array([row.box_ap for row in ROWS])
    # The error of a row that is left out follows from the fit to all (Allen, 1974, PRESS).
    leverage = np.diag(x @ np.linalg.pinv(x))
    weights = np.linalg.lstsq(x, y, rcond=None)[0]
    errors = (y - x @ weights) / (1 - leverage)
    return Fit(tuple(map(float, weights)), float(np.sqrt((errors**2).mean())), float(np.abs(errors).max()))


def near(letters: str, resolutions: tuple[int, ...]) -> bool:
    """Whether every resolution was published for its branch, at least, at most or in between, and a row is near.

    A row of these branches is near that is at most two steps of 224 pixels away, over all branches.
    """
    rows = [row.resolutions for row in ROWS if row.letters == letters]
    within = all(min(column) <= size <= max(column) for column, size in zip(zip(*rows), resolutions))
    return within and any(sum(abs(a - b) for a, b in zip(row, resolutions)) <= 2 * 224 for row in rows)


def _features(resolutions: tuple[int, ...], gmacs: float) -> list[float]:
    """Cost and finest resolution, with diminishing returns of both; which branches there are then adds nothing."""
    finest = resolutions[0]
    return [1.0, math.log(gmacs), math.log(finest), 1000 / finest]
