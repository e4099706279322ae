"""precision_recall.png and errors.png: how far the detections of each class go, and what the errors cost."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from piip.metrics.chart import BLUE, GRID, INK, ORANGE, dress, new_figure, save, shown
from piip.metrics.errors import KINDS, Costs

# More lines than this cannot be told apart.
_LINES = 12
_COLOURS = (BLUE, ORANGE, "#2f9e6e", "#b8458b", "#8a6d3b", "#3aa6b9")


def draw_precision_recall(
    precisions: Mapping[str, NDArray[np.float64]], class_names: Sequence[str], path: Path
) -> Path:
    """Draws precision over recall per class and their mean, and replaces the PNG at `path`.

    precisions: for boxes and perhaps masks, precision (101, classes) at recalls of 0 to 1; -1 for classes without
    objects. Of more than 12 classes those of the lowest AP are shown.
    """
    figure = new_figure(6.4 * len(precisions), 4.6, "precision over recall at IoU 0.5, with AP50")
    for axes, (kind, precision) in zip(figure.subplots(1, len(precisions), squeeze=False)[0], precisions.items()):
        present = [label for label in range(len(class_names)) if precision[0, label] > -1]
        ranked = sorted(present, key=lambda label: -precision[:, label].mean())[-_LINES:]
        recalls = np.linspace(0, 1, len(precision))
        mean = precision[:, present].mean(axis=1) if present else np.zeros(len(precision))
        axes.plot(recalls, mean, color=INK, linewidth=2.6, label=f"{mean.mean():.3f}  all {len(present)} classes")
        for label in ranked:
            place = sorted(ranked).index(label)  # boxes and masks of a class have the same colour
            style, colour = "--" if place >= len(_COLOURS) else "-", _COLOURS[place % len(_COLOURS)]
            name = f"{precision[:, label].mean():.3f}  {shown(class_names[label])}"
            axes.plot(recalls, precision[:, label], style, color=colour, linewidth=1.4, label=name)
        note = f", the {_LINES} worst of {len(present)} classes" if len(present) > _LINES else ""
        axes.set_title(f"{kind}{note}", loc="left", fontsize=10, color=INK)
        axes.set(xlim=(0, 1.01), ylim=(0, 1.02), xlabel="recall", ylabel="precision")
        axes.grid(color=GRID, linewidth=0.8)
        legend = axes.legend(loc="upper left", bbox_to_anchor=(1.0, 1.02), fontsize=8, frameon=False, labelcolor=INK)
        for text in legend.get_texts():
            text.set_parse_math(False)
        dress(axes)
    return save(figure, path)


def draw_errors(costs: Mapping[str, Costs], path: Path) -> Path:
    """Draws the AP50 that each kind of error costs, for boxes and perhaps masks, and replaces the PNG at `path`."""
    figure = new_figure(1.8 + 4.2 * len(costs), 3.2, "AP50 that each kind of error costs, and how many there are")
    longest = max(max(found.costs.values()) for found in costs.values())
    for axes, (kind, found) in zip(figure.subplots(1, len(costs), squeeze=False, sharey=True)[0], costs.items()):
        axes.barh(KINDS, [found.costs[name] for name in KINDS], color=ORANGE, height=0.62)
        for place, name in enumerate(KINDS):
            text = f" {found.costs[name]:.3f}   {found.counts[name]:,}"
            axes.text(max(found.costs[name], 0), place, text, va="center", color=INK, fontsize=8.5)
        axes.set_title(f"{kind}, AP50 {found.ap50:.3f}", loc="left", fontsize=10, color=INK)
        axes.set_xlim(0, 1.5 * max(longest, 0.01))
        axes.set_ylim(len(KINDS) - 0.5, -0.5)
        axes.xaxis.set_visible(False)
        dress(axes)
    return save(figure, path)
