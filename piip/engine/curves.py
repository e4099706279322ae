"""Draws curves.png: losses, learning rate and metrics of a run in one picture."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator

from piip.metrics.chart import GRID, INK, save

_COLOURS = ("#3366cc", "#e07b39", "#2f9e6e", "#b8458b", "#8a6d3b", "#6b5fc7", "#3aa6b9", "#c44949")
# The number of metrics that are drawn; more lines could not be told apart.
_METRICS = 6
_SMOOTHING = 0.75


def draw_curves(records: Sequence[dict[str, Any]], path: Path) -> None:
    """Draws the records of metrics.jsonl (see `piip.engine.log.RunLog`) and replaces the PNG at `path`."""
    steps = [record for record in records if record["event"] == "train"]
    evaluations = [record for record in records if record["event"] == "eval"]
    figure = Figure(figsize=(14, 4.6), dpi=120, layout="constrained", facecolor="white")
    loss, parts, rate, metrics = figure.subplots(1, 4)
    _draw_loss(loss, steps)
    _draw_parts(parts, steps)
    _draw_rate(rate, steps)
    _draw_metrics(metrics, evaluations)
    save(figure, path)


def _draw_loss(axes: Axes, steps: Sequence[dict[str, Any]]) -> None:
    _dress(axes, "training loss")
    x, y = _series(steps, "loss")
    axes.plot(x, y, color=_COLOURS[0], linewidth=0.8, alpha=0.35)
    axes.plot(x, _smooth(y), color=_COLOURS[0], linewidth=2)
    axes.set_ylim(bottom=0)


def _draw_parts(axes: Axes, steps: Sequence[dict[str, Any]]) -> None:
    _dress(axes, "loss parts, smoothed")
    for index, name in enumerate(steps[-1]["losses"] if steps else ()):
        x = [record["step"] for record in steps if name in record["losses"]]
        y = [record["losses"][name] for record in steps if name in record["losses"]]
        axes.plot(x, _smooth(y), color=_COLOURS[index % len(_COLOURS)], linewidth=1.6, label=name)
    axes.set_ylim(bottom=0)
    _legend(axes)


def _draw_rate(axes: Axes, steps: Sequence[dict[str, Any]]) -> None:
    _dress(axes, "learning rate")
    axes.plot(*_series(steps, "lr"), color=_COLOURS[2], linewidth=2)
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:.3g}"))
    axes.set_ylim(bottom=0)


def _draw_metrics(axes: Axes, evaluations: Sequence[dict[str, Any]]) -> None:
    _dress(axes, "validation")
    names = evaluations[-1]["metrics"] if evaluations else {}
    known_names = [name for name, value in names.items() if value not in (None, -1)]
    # The metrics with the shortest names are the most important ones: box_ap50 before box_ap_small.
    for index, name in enumerate(sorted(known_names, key=lambda name: name.count("_"))[:_METRICS]):
        known = [record for record in evaluations if record["metrics"].get(name) is not None]
        x, y = [record["step"] for record in known], [record["metrics"][name] for record in known]
        width = 2.2 if index == 0 else 1.3
        axes.plot(x, y, color=_COLOURS[index], linewidth=width, marker="o", markersize=3.5, label=name)
    if evaluations:
        axes.set_ylim(bottom=0)
        axes.set_xlim(left=0)
    _legend(axes)


def _dress(axes: Axes, title: str) -> None:
    axes.set_title(title, loc="left", fontsize=11, fontweight="bold", color=INK)
    axes.set_xlabel("step", color=INK, fontsize=9)
    axes.tick_params(colors=INK, labelsize=8.5, length=0)
    axes.grid(color=GRID, linewidth=0.8)
    axes.set_axisbelow(True)
    axes.xaxis.set_major_locator(MaxNLocator(nbins=5, integer=True))
    for side in ("top", "right", "left"):
        axes.spines[side].set_visible(False)
    axes.spines["bottom"].set_color(GRID)


def _legend(axes: Axes) -> None:
    if axes.get_legend_handles_labels()[1]:
        axes.legend(fontsize=8, frameon=False, labelcolor=INK, handlelength=1.4)


def _series(records: Sequence[dict[str, Any]], key: str) -> tuple[list[int], list[float]]:
    known = [record for record in records if record.get(key) is not None]
    return [record["step"] for record in known], [record[key] for record in known]


def _smooth(values: Sequence[float]) -> list[float]:
    """The exponential moving average, corrected for its bias towards the first value."""
    smoothed, total, weight = [], 0.0, 0.0
    for value in values:
        total = _SMOOTHING * total + (1 - _SMOOTHING) * value
        weight = _SMOOTHING * weight + (1 - _SMOOTHING)
        smoothed.append(total / weight)
    return smoothed
