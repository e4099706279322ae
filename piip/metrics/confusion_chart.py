"""confusion.png: which classes are taken for which."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import LinearSegmentedColormap, PowerNorm
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from numpy.typing import NDArray

from piip.errors import visible
from piip.files import write_file

# For more classes a matrix with legible names would not fit a screen.
_MATRIX = 50
# Cells of larger matrices are too small for figures.
_FIGURES = 20
_PAIRS = 30
_LONGEST_NAME = 32
_INK, _GRID, _RIGHT, _WRONG = "#2b2b33", "#e4e4ea", "#3366cc", "#e07b39"


def draw_confusion(counts: NDArray[np.int64], class_names: Sequence[str], path: Path) -> Path:
    """Draws images by right class (rows) and by the class named first (columns), and replaces the PNG at `path`.

    Up to 50 classes make a matrix, coloured by the share of each row; for more, the commonest mistakes become bars.
    """
    class_names = [visible(name) for name in class_names]
    names = [name if len(name) <= _LONGEST_NAME else f"{name[: _LONGEST_NAME - 1]}…" for name in class_names]
    figure = _matrix(counts, names) if len(names) <= _MATRIX else _pairs(counts, names)
    buffer = io.BytesIO()
    FigureCanvasAgg(figure)
    figure.savefig(buffer, format="png")
    write_file(path, buffer.getvalue())
    return path


def _layout() -> ConstrainedLayoutEngine:
    return ConstrainedLayoutEngine(w_pad=0.12, h_pad=0.12)


def _matrix(counts: NDArray[np.int64], names: Sequence[str]) -> Figure:
    classes = len(names)
    side = max(3.2, 0.32 * classes)
    figure = Figure(figsize=(side + 2.6, side + 2.2), dpi=120, layout=_layout(), facecolor="white")
    axes = figure.subplots()
    shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    diagonal = np.eye(classes, dtype=bool)
    for cells, colour in ((diagonal, _RIGHT), (~diagonal, _WRONG)):
        shown = np.ma.masked_array(shares, ~cells)
        # By its root, so that one mistake in twenty can be seen.
        axes.imshow(shown, cmap=LinearSegmentedColormap.from_list("", ["white", colour]), norm=PowerNorm(0.5, 0, 1))
    if classes <= _FIGURES:
        for row, column in zip(*np.nonzero(counts), strict=True):
            ink = "white" if row == column and shares[row, column] > 0.4 else _INK
            axes.text(column, row, f"{counts[row, column]}", ha="center", va="center", color=ink, fontsize=8)
    slant: dict[str, Any] = {"rotation": 45, "va": "top"} if classes <= _FIGURES else {"rotation": 90, "va": "center"}
    axes.set_xticks(range(classes), names, rotation_mode="anchor", ha="right", parse_math=False, **slant)
    rows = [f"{name}  ({n})" for name, n in zip(names, counts.sum(axis=1), strict=True)]
    axes.set_yticks(range(classes), rows, parse_math=False)
    axes.set_xticks(np.arange(classes + 1) - 0.5, minor=True)
    axes.set_yticks(np.arange(classes + 1) - 0.5, minor=True)
    axes.grid(which="minor", color=_GRID, linewidth=0.6)
    axes.set_xlabel("named first", color=_INK)
    axes.set_ylabel("right class (images)", color=_INK)
    _dress(figure, axes, counts)
    return figure


def _pairs(counts: NDArray[np.int64], names: Sequence[str]) -> Figure:
    wrong = counts.copy()
    np.fill_diagonal(wrong, 0)
    order = np.argsort(-wrong, axis=None, kind="stable")[:_PAIRS]
    pairs = [
        (row, column) for row, column in zip(*np.unravel_index(order, wrong.shape), strict=True) if wrong[row, column]
    ]
    figure = Figure(figsize=(9, 1.4 + 0.27 * max(len(pairs), 1)), dpi=120, layout=_layout(), facecolor="white")
    axes = figure.subplots()
    totals = counts.sum(axis=1)
    lengths = [wrong[pair] for pair in pairs]
    axes.barh(range(len(pairs)), lengths, color=_WRONG, height=0.66)
    for place, (row, column) in enumerate(pairs):
        text = f" {wrong[row, column]} of {totals[row]}"
        axes.text(wrong[row, column], place, text, va="center", color=_INK, fontsize=8)
    axes.set_yticks(range(len(pairs)), [f"{names[row]} → {names[column]}" for row, column in pairs], parse_math=False)
    axes.set_ylim(len(pairs) - 0.4, -0.6)
    axes.set_xlim(0, 1.18 * max(lengths, default=1))
    axes.xaxis.set_visible(False)
    _dress(figure, axes, counts, *(["the commonest mistakes, right class → class named first:"] if pairs else []))
    return figure


def _dress(figure: Figure, axes: Axes, counts: NDArray[np.int64], *words: str) -> None:
    title = "; ".join([f"{np.trace(counts)} of {counts.sum()} images named rightly", *words])
    figure.suptitle(title, x=0.01, ha="left", fontsize=11, fontweight="bold", color=_INK)
    axes.tick_params(which="both", colors=_INK, labelsize=8.5, length=0)
    for spine in axes.spines.values():
        spine.set_visible(False)
