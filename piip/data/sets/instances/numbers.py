"""Numbers and ids as annotation files have them, which may have come through a spreadsheet."""

from __future__ import annotations

import math
from typing import Any

# No coordinate, side or area in pixels is as large; run lengths have 32 bits.
LIMIT = 2**31


def number(value: Any) -> float | None:
    """A finite number, also one that is written as text; None for anything else."""
    if isinstance(value, str):
        try:
            value = float(value)
        except ValueError:
            return None
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    return value if isinstance(value, int) or math.isfinite(value) else None


def whole(value: Any) -> int | None:
    """A whole number, also one written as 64.0 or as text; None for anything else."""
    if type(value) is int:
        return value
    value = number(value)
    return int(value) if value is not None and value == int(value) else None


def coordinate(value: Any) -> float | None:
    """A number that can be a place in an image, in pixels or fractions; None for anything else."""
    found = number(value)
    return None if found is None or not -LIMIT < found < LIMIT else found


def size_of(height: Any, width: Any) -> tuple[int, int]:
    """(h, w) in pixels as a file has them; zeros where it does not know them, or where they are beyond reason."""
    h, w = whole(height) or 0, whole(width) or 0
    return (h, w) if h > 0 and w > 0 and h * w < LIMIT else (0, 0)


def identity(value: Any) -> int | str | None:
    """An id to match others with: a number, or text that is not one; None for what cannot be an id.

    "7", 7.0 and 7 are the same; "007" is a text of its own.
    """
    if isinstance(value, str):
        text = value.strip()
        return int(text) if text.isascii() and text.isdigit() and str(int(text[:4000])) == text else text or None
    return whole(value)


def truth_value(value: Any) -> bool | None:
    """A flag written as a number, as true or false, as text or not at all; None for other text."""
    if value is None or isinstance(value, bool):
        return bool(value)
    if isinstance(value, str) and value.strip().lower() in ("true", "false", ""):
        return value.strip().lower() == "true"
    given = number(value)
    return None if given is None else bool(given)
