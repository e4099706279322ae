"""Names in state dicts, changed by rows of two templates.

In a template `{rest}` stands for any remainder, `{name}` for a word, and every other field for a number. A field keeps
its value. The first row that matches decides.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from string import Formatter

Row = tuple[str, str]

_PATTERNS = {"rest": r".+", "name": r"\w+"}


class Names:
    """What keys of one program are called in another.

    rows: (template there, template here). convert: field and value -> its value here, or None where the row does not
    hold for it.
    """

    def __init__(self, rows: Sequence[Row], convert: Callable[[str, str], str | None] | None = None) -> None:
        self._rows = [(compile_template(theirs), ours) for theirs, ours in rows]
        self._convert = convert or (lambda field, value: value)

    def get(self, key: str) -> str | None:
        """The name here, or None if no row knows the key."""
        for pattern, template in self._rows:
            match = pattern.fullmatch(key)
            if match:
                fields = {field: self._convert(field, value) for field, value in match.groupdict().items()}
                if None not in fields.values():
                    return template.format_map(fields)
        return None


def compile_template(template: str) -> re.Pattern[str]:
    """The pattern of the keys that a template describes, with a group per field."""
    parts = [
        re.escape(text) + (f"(?P<{field}>{_PATTERNS.get(field, r'[0-9]+')})" if field else "")
        for text, field, _, _ in Formatter().parse(template)
    ]
    return re.compile("".join(parts))
