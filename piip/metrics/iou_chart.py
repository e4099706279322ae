"""iou.png: how well each class is found, the best first."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from piip.errors import visible
from piip.metrics.chart import BLUE, GRID, INK, ORANGE, PALE, dress, save

# Rows that fit below one another.
_ROWS = 50


def draw_ious(rows: Sequence[Mapping[str, Any]], metrics: Mapping[str, float], path: Path) -> Path:
    """Draws the rows and figures of `MIoUMetric` as bars, best class first, and replaces the PNG at `path`.

    Classes that are neither in the data nor in the results are left out; more than 50 stand in several columns.
    """
    known = sorted((row for row in rows if row["iou"] is not None), key=lambda row: -row["iou"])
    columns = max(1, math.ceil(len(known) / _ROWS))
    height = math.ceil(len(known) / columns)
    figure = Figure(
        figsize=(6.2 * columns, 1.3 + 0.235 * max(height, 1)), dpi=110, layout="constrained", facecolor="white"
    )
    for index, axes in enumerate(figure.subplots(1, columns, squeeze=False)[0]):
        _draw_column(axes, known[index * height : (index + 1) * height], height)
    figures = f"mIoU {metrics['miou']:.4f}   aAcc {metrics['aacc']:.4f}   mAcc {metrics['macc']:.4f}"
    occurring = f"   {len(known)} of {len(rows)} classes occur" if len(known) < len(rows) else ""
    note = "bar: IoU, mark: accuracy, figures: IoU and share of the pixels"
    figure.suptitle(f"{figures}{occurring}\n{note}", x=0.01, ha="left", fontsize=10, color=INK, linespacing=1.6)
    return save(figure, path)


def _draw_column(axes: Axes, rows: Sequence[Mapping[str, Any]], height: int) -> None:
    axes.barh(range(len(rows)), [row["iou"] for row in rows], color=BLUE, height=0.64)
    marks = [(place, row["acc"]) for place, row in enumerate(rows) if row["acc"] is not None]
    axes.scatter([acc for _, acc in marks], [place for place, _ in marks], marker="|", s=90, color=ORANGE, linewidths=2)
    for place, row in enumerate(rows):
        axes.text(1.13, place, f"{row['iou']:.3f}", va="center", ha="right", color=INK, fontsize=8)
        axes.text(1.29, place, f"{100 * row['pixels']:.2f} %", va="center", ha="right", color=PALE, fontsize=8)
    axes.set_yticks(range(len(rows)), [visible(row["class"]) for row in rows], parse_math=False)
    axes.set_ylim(max(height, 1) - 0.4, -0.6)
    axes.set_xlim(0, 1.3)
    axes.set_xticks([0, 0.25, 0.5, 0.75, 1])
    axes.grid(axis="x", color=GRID, linewidth=0.8)
    dress(axes)
