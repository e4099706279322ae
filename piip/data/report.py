"""What was dropped, clipped or replaced on the way from files to samples."""

from __future__ import annotations

from dataclasses import dataclass, field

_EXAMPLES = 3


@dataclass
class Report:
    """What was dropped, clipped or replaced: how often, and the first examples with their ids or files."""

    source: str
    counts: dict[str, int] = field(default_factory=dict)
    examples: dict[str, list[str]] = field(default_factory=dict)

    def add(self, kind: str, what: str) -> None:
        self.counts[kind] = self.counts.get(kind, 0) + 1
        examples = self.examples.setdefault(kind, [])
        if len(examples) < _EXAMPLES:
            examples.append(what)

    def __str__(self) -> str:
        parts = []
        for kind, count in self.counts.items():
            more = ", ..." if count > len(self.examples[kind]) else ""
            parts.append(f"{count} x {kind} ({', '.join(self.examples[kind])}{more})")
        return f"{self.source}: {'; '.join(parts) or 'nothing dropped, clipped or replaced'}"
