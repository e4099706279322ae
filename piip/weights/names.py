"""Keys of state dicts, renamed by pairs of templates.

In a template `{rest}` stands for any remainder, `{name}` for a word, and every other field for a number. The first pair
that matches a key decides.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from string import Formatter

Row = tuple[str, str]

_PATTERNS = {"rest": r".+", "name": r"\w+"}


class Names:
    """A table that renames the keys of one program's state dicts to those of another.

    rows: pairs of the template of the given keys and that of the new ones. convert: field and value -> the value in the
    new key, or None where the row is not meant for it; by default values stay.
    """

    def __init__(self, rows: Sequence[Row], convert: Callable[[str, str], str | None] | None = None) -> None:
        self._rows = [(compile_template(given), new) for given, new in rows]
        self._convert = convert or (lambda field, value: value)

    def get(self, key: str) -> str | None:
        """The new name of a key, or None if no row matches it."""
        for pattern, new in self._rows:
            match = pattern.fullmatch(key)
            if match:
                fields = {field: self._convert(field, value) for field, value in match.groupdict().items()}
                if None not in fields.values():
                    return new.format_map(fields)
        return None


def compile_template(template: str) -> re.Pattern[str]:
    """The pattern of the keys that a template describes, with a group per field."""
    parts = [
        re.escape(text) + (f"(?P<{field}>{_PATTERNS.get(field, r'[0-9]+')})" if field else "")
        for text, field, _, _ in Formatter().parse(template)
    ]
    return re.compile("".join(parts))
