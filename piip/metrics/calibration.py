"""Whether scores are as often right as they say (Guo et al., 2017)."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

BINS = 10


class Calibration(NamedTuple):
    """Per bin of scores, of equal width in [0, 1]: count, share that is right and mean score, NaN without any.

    error: the expected calibration error, the mean over all scores of how far the last two differ in their bin.
    """

    counts: NDArray[np.int64]
    right: NDArray[np.float64]
    scores: NDArray[np.float64]
    error: float


def calibrate(scores: NDArray[np.float64], right: NDArray[np.bool_]) -> Calibration:
    """scores (n,) in [0, 1]; NaN does not count. right (n,): whether the answers that have these scores are right."""
    scores, right = scores[np.isfinite(scores)], right[np.isfinite(scores)]
    bins = np.minimum((scores * BINS).astype(int), BINS - 1)
    counts = np.bincount(bins, minlength=BINS)
    sums = [np.bincount(bins, weights=values, minlength=BINS) for values in (right, scores)]
    error = float(np.abs(sums[0] - sums[1]).sum() / max(len(scores), 1))
    with np.errstate(invalid="ignore"):
        return Calibration(counts, sums[0] / counts, sums[1] / counts, error)


def draw_calibration(found: Calibration, what: str, path: Path) -> Path:
    """Draws the share that is right over the score, and replaces the PNG at `path`. what: the answers, in a word."""
    # Loads matplotlib, which is slow.
    from piip.metrics.chart import BLUE, GRID, INK, ORANGE, PALE, dress, new_figure, save

    figure = new_figure(6.2, 5.2, f"expected calibration error {found.error:.3f} of {found.counts.sum():,} {what}")
    axes = figure.subplots()
    middles, some = (np.arange(BINS) + 0.5) / BINS, found.counts > 0
    axes.bar(middles[some], found.right[some], width=0.86 / BINS, color=BLUE, label="share that is right")
    axes.scatter(found.scores[some], found.scores[some], marker="_", s=260, color=ORANGE, label="mean score", zorder=3)
    axes.plot([0, 1], [0, 1], color=PALE, linewidth=1, linestyle=":", zorder=2)
    for middle, count in zip(middles[some], found.counts[some], strict=True):
        axes.text(middle, -0.055, f"{count:,}", ha="center", va="top", color=PALE, fontsize=7.5)
    axes.set(xlim=(0, 1), ylim=(0, 1.02), ylabel="share that is right")
    axes.set_xlabel("score, and how many have it", color=INK, labelpad=16)
    axes.set_xticks(np.linspace(0, 1, BINS + 1))
    axes.grid(axis="y", color=GRID, linewidth=0.8)
    axes.legend(loc="upper left", fontsize=8.5, frameon=False, labelcolor=INK)
    dress(axes)
    return save(figure, path)
