"""Prints results on stdout, in tables that look alike; everything else goes to stderr."""

from __future__ import annotations

import os
import textwrap
from collections.abc import Iterable, Sequence
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from piip.errors import visible
from piip.files import to_json

# The width for piped output, which has none of its own; columns cut to 80 characters would lose numbers.
_PIPED_WIDTH = 160


def out() -> Console:
    """The console for results: stdout without markup, since paths may hold brackets, and without wrapping in pipes."""
    console = Console(markup=False, highlight=False, soft_wrap=True)
    if not console.is_terminal:
        console.width = _PIPED_WIDTH
    return console


def print_json(document: Any) -> None:
    """Prints one JSON document on stdout; numbers that JSON cannot hold become null."""
    print(to_json(document, indent=2))


def is_main_process() -> bool:
    """True in exactly one of the processes that torchrun started, or without torchrun."""
    return os.environ.get("RANK", "0") == "0"


def table(columns: Sequence[str], rows: Iterable[Sequence[Any]], *, align: str = "") -> Table:
    """An aligned table.

    align: 'l' or 'r' per column. Without it the first column is aligned left and the others, being numbers, right.
    """
    result = Table(box=box.SIMPLE_HEAD, header_style="bold", pad_edge=False)
    for name, side in zip(columns, align or "l" + "r" * (len(columns) - 1), strict=True):
        result.add_column(name, justify="left" if side == "l" else "right", no_wrap=True)
    for row in rows:
        result.add_row(*(cell if isinstance(cell, Text) else cell_text(cell) for cell in row))
    return result


def paragraphs(console: Console, *texts: str) -> None:
    """Prints paragraphs of words, in lines of the console's width or of 100 letters."""
    for text in texts:
        console.print(textwrap.fill(text, min(console.width, 100)))


def facts(pairs: Sequence[tuple[str, Any]]) -> str:
    """Names and values side by side, one pair per line. Long paths are not wrapped, so that they can be copied."""
    width = max(len(name) for name, _ in pairs)
    return "\n".join(f"{name:{width}}  {visible(str(value))}" for name, value in pairs)


def bar(share: float, width: int = 20) -> str:
    """A bar whose length is `share` (0 to 1) of `width` characters, to an eighth of a character."""
    eighths = round(min(max(share, 0.0), 1.0) * width * 8)
    partial = " ▏▎▍▌▋▊▉"[eighths % 8].strip()
    return ("█" * (eighths // 8) + partial).ljust(width)


def cell_text(value: Any) -> str:
    """A value as tables show it: four digits of a figure, '-' for what there is none of."""
    if value is None:
        return "-"
    return f"{value:.4f}" if isinstance(value, float) else visible(str(value))
