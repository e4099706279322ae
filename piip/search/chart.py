"""The picture of a search."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from piip.metrics.chart import BLUE, GRID, INK, ORANGE, PALE, dress, new_figure, save
from piip.search.published import ROWS
from piip.search.search import Candidate


def draw(found: Sequence[Candidate], best: Sequence[Candidate], path: Path) -> Path:
    """Cost against box AP: what was published, what the fit says of all candidates, and the frontier of these."""
    figure = new_figure(8.5, 5.2, "Resolutions by cost and box AP")
    axes = figure.add_subplot()
    known = [one for one in found if one.known]
    axes.scatter([c.gmacs for c in known], [c.box_ap for c in known], s=9, color=GRID, label="candidates, fitted")
    axes.plot([c.gmacs for c in best], [c.box_ap for c in best], color=BLUE, lw=1.6, label="frontier, fitted")
    for letters, marker in zip(dict.fromkeys(row.letters for row in ROWS), "o^s"):
        rows = [row for row in ROWS if row.letters == letters]
        axes.scatter(
            [row.gmacs for row in rows],
            [row.box_ap for row in rows],
            s=34,
            marker=marker,
            color=ORANGE,
            edgecolor="white",
            label=f"{letters}, published",
            zorder=3,
        )
    axes.set_xscale("log")
    ticks = [200, 300, 500, 700, 1000, 1500]
    axes.set_xticks(ticks, [str(tick) for tick in ticks])
    axes.minorticks_off()
    axes.set_xlabel("GMACs of the backbone, as the paper counts", fontsize=9, color=INK)
    axes.set_ylabel("box AP on COCO val2017", fontsize=9, color=INK)
    axes.grid(color=GRID, lw=0.6)
    dress(axes)
    axes.legend(loc="lower right", fontsize=8.5, frameon=False, labelcolor=INK)
    last = max(best, key=lambda one: one.gmacs, default=None)
    if last is not None:
        axes.annotate(last.name, (last.gmacs, last.box_ap), (-4, 8), textcoords="offset points", fontsize=8, color=PALE,
                      ha="right")  # fmt: skip
    return save(figure, path)
