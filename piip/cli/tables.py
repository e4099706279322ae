"""Tables that several commands print, and metrics as tables: of a whole data set, and with a row per class."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from rich.console import Console
from rich.table import Table

from piip.cli.console import cell_text, table

# If there are more classes than MOST_ROWS, only the WORST_ROWS worst ones are shown.
MOST_ROWS = 40
WORST_ROWS = 20


def print_table(
    console: Console, columns: Sequence[str], rows: Iterable[Sequence[Any]], *, align: str = "", titles: int = 1
) -> None:
    """Prints a table where the console is wide enough, and else every row as a paragraph.

    align: as of `piip.cli.console.table`. titles: how many cells are the first line of a paragraph; the others stand
    below it, behind the names of their columns, those without a name are left out.
    """
    rows = list(rows)
    found = table(columns, rows, align=align)
    if console.measure(found, options=console.options.update(width=1000)).maximum <= console.width:
        console.print(found)
        return
    console.print("\n" + " ".join(columns[:titles]).strip(), style="bold")
    for row in rows:
        named = [f"{name} {cell_text(cell)}" for name, cell in zip(columns[titles:], row[titles:]) if name]
        console.print(_wrapped([cell_text(cell) for cell in row[:titles]], console.width, indent=""))
        console.print(_wrapped(named, console.width, indent="  "))


def _wrapped(pieces: Sequence[str], width: int, *, indent: str) -> str:
    """Pieces in lines of a width, broken between them where it can be."""
    text = "  ".join(piece.replace(" ", "\u00a0") for piece in pieces)
    return textwrap.fill(text, width, initial_indent=indent, subsequent_indent="  ", break_on_hyphens=False).replace(
        "\u00a0", " "
    )


def giga(macs: int) -> str:
    """Multiply-accumulates in units of 10^9."""
    return f"{macs / 1e9:.0f}" if macs >= 1e10 else f"{macs / 1e9:.1f}"


def metric_table(metrics: Mapping[str, float | None]) -> Table:
    """Metrics by name. The same measure of several targets ('box_ap50', 'mask_ap50') stands in one row."""
    targets: dict[str, None] = {}
    measures: dict[str, dict[str, float | None]] = {}
    for name, value in metrics.items():
        target, _, measure = name.partition("_")
        targets[target] = None
        measures.setdefault(measure, {})[target] = value
    if "" in measures:
        return table(("metric", "value"), [(name, figure(value)) for name, value in metrics.items()])
    rows = [(measure, *(figure(found.get(target)) for target in targets)) for measure, found in measures.items()]
    return table(("metric", *targets), rows)


def class_table(rows: Sequence[Mapping[str, Any]]) -> Table:
    """A table of rows that all have the same keys, of which the first is the class.

    Of more than MOST_ROWS classes it shows the WORST_ROWS ones with the lowest first metric, worst first.
    """
    columns = list(rows[0]) if rows else ["class"]
    words = [any(isinstance(row[column], str) for row in rows) for column in columns]
    figures = [column for column in columns if any(isinstance(row[column], float) for row in rows)]
    if len(rows) > MOST_ROWS:
        rows = sorted(rows, key=lambda row: _rank(row[figures[0]] if figures else None))[:WORST_ROWS]
    cells = [[figure(value) if isinstance(value, float) else value for value in row.values()] for row in rows]
    align = "".join("l" if word else "r" for word in words)
    return table([column.replace("_", " ") for column in columns], cells, align=align)


def _rank(value: float | None) -> float:
    """The metric; infinite where it could not be measured."""
    return value if value is not None and value >= 0 else math.inf


def figure(value: float | None) -> str:
    """Four digits; '-' for what could not be measured: None, NaN, or -1 in older records of COCO's metrics."""
    return f"{value:.4f}" if value is not None and value >= 0 else "-"
