"""What all charts of metrics share: colours, names of classes, and how they are written."""

from __future__ import annotations

from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine

from piip.errors import visible
from piip.files import replacing

INK, PALE, GRID, BLUE, ORANGE = "#2b2b33", "#8a8a96", "#e4e4ea", "#3366cc", "#e07b39"
_LONGEST_NAME = 32


def new_figure(width: float, height: float, title: str) -> Figure:
    """An empty figure of a size in inches, with a title at its left."""
    layout = ConstrainedLayoutEngine(w_pad=0.12, h_pad=0.12)
    figure = Figure(figsize=(width, height), dpi=120, layout=layout, facecolor="white")
    figure.suptitle(title, x=0.01, ha="left", fontsize=11, fontweight="bold", color=INK)
    return figure


def shown(name: str) -> str:
    """The name of a class as charts show it: harmless, and not longer than there is room."""
    name = visible(name)
    return name if len(name) <= _LONGEST_NAME else f"{name[: _LONGEST_NAME - 1]}…"


def dress(axes: Axes) -> None:
    """No frame, and small dark letters."""
    axes.tick_params(which="both", colors=INK, labelsize=8.5, length=0)
    axes.set_axisbelow(True)
    for spine in axes.spines.values():
        spine.set_visible(False)


def save(figure: Figure, path: Path) -> Path:
    """Replaces the PNG at `path`."""
    with replacing(path) as file:
        figure.savefig(file, format="png")
    return path
