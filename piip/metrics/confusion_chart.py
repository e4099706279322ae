"""confusion.png: which classes are taken for which."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.colors import LinearSegmentedColormap, PowerNorm
from matplotlib.figure import Figure
from numpy.typing import NDArray

from piip.metrics.chart import BLUE, GRID, INK, ORANGE, dress, new_figure, save, shown

# For more classes a matrix with legible names would not fit a screen.
_MATRIX = 50
# Cells of larger matrices are too small for figures.
_FIGURES = 20
_PAIRS = 30


def draw_confusion(
    counts: NDArray[np.int64], class_names: Sequence[str], path: Path, *, title: str, axis_labels: tuple[str, str]
) -> Path:
    """Draws a confusion matrix (classes, classes), right classes down, and replaces the PNG at `path`.

    Up to 50 classes make a matrix, coloured by the share of each row; for more, the commonest mistakes become bars.
    axis_labels: of the rows and of the columns.
    """
    names = [shown(name) for name in class_names]
    draw = _matrix if len(names) <= _MATRIX else _pairs
    return save(draw(counts, names, title, axis_labels), path)


def _matrix(counts: NDArray[np.int64], names: Sequence[str], title: str, axis_labels: tuple[str, str]) -> Figure:
    classes = len(names)
    side = max(3.2, 0.32 * classes)
    figure = new_figure(side + 2.6, side + 2.2, title)
    axes = figure.subplots()
    shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    diagonal = np.eye(classes, dtype=bool)
    for cells, colour in ((diagonal, BLUE), (~diagonal, ORANGE)):
        masked = np.ma.masked_array(shares, ~cells)
        # By its root, so that one mistake in twenty can be seen.
        axes.imshow(masked, cmap=LinearSegmentedColormap.from_list("", ["white", colour]), norm=PowerNorm(0.5, 0, 1))
    if classes <= _FIGURES:
        for row, column in zip(*np.nonzero(counts), strict=True):
            ink = "white" if row == column and shares[row, column] > 0.4 else INK
            axes.text(column, row, f"{counts[row, column]}", ha="center", va="center", color=ink, fontsize=8)
    slant: dict[str, Any] = {"rotation": 45, "va": "top"} if classes <= _FIGURES else {"rotation": 90, "va": "center"}
    axes.set_xticks(range(classes), names, rotation_mode="anchor", ha="right", parse_math=False, **slant)
    rows = [f"{name}  ({n})" for name, n in zip(names, counts.sum(axis=1), strict=True)]
    axes.set_yticks(range(classes), rows, parse_math=False)
    axes.set_xticks(np.arange(classes + 1) - 0.5, minor=True)
    axes.set_yticks(np.arange(classes + 1) - 0.5, minor=True)
    axes.grid(which="minor", color=GRID, linewidth=0.6)
    axes.set_xlabel(axis_labels[1], color=INK)
    axes.set_ylabel(axis_labels[0], color=INK)
    dress(axes)
    return figure


def _pairs(counts: NDArray[np.int64], names: Sequence[str], title: str, axis_labels: tuple[str, str]) -> Figure:
    wrong = counts.copy()
    np.fill_diagonal(wrong, 0)
    order = np.argsort(-wrong, axis=None, kind="stable")[:_PAIRS]
    pairs = [
        (row, column) for row, column in zip(*np.unravel_index(order, wrong.shape), strict=True) if wrong[row, column]
    ]
    if pairs:
        title = f"{title}\nthe commonest mistakes, {axis_labels[0]} → {axis_labels[1]}:"
    figure = new_figure(9, 1.4 + 0.27 * max(len(pairs), 1), title)
    axes = figure.subplots()
    totals = counts.sum(axis=1)
    lengths = [wrong[pair] for pair in pairs]
    axes.barh(range(len(pairs)), lengths, color=ORANGE, height=0.66)
    for place, (row, column) in enumerate(pairs):
        text = f" {wrong[row, column]} of {totals[row]}"
        axes.text(wrong[row, column], place, text, va="center", color=INK, fontsize=8)
    axes.set_yticks(range(len(pairs)), [f"{names[row]} → {names[column]}" for row, column in pairs], parse_math=False)
    axes.set_ylim(len(pairs) - 0.4, -0.6)
    axes.set_xlim(0, 1.18 * max(lengths, default=1))
    axes.xaxis.set_visible(False)
    dress(axes)
    return figure
