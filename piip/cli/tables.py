"""Metrics as tables: one for a whole data set, and one with a row per class."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from rich.table import Table

from piip.cli.console import table

# If there are more classes than MOST_ROWS, only the WORST_ROWS worst ones are shown.
MOST_ROWS = 40
WORST_ROWS = 20


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
