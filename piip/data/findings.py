"""What was repaired, dropped or replaced between files and samples, and what only the user can decide."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from piip.errors import DataError, visible

Effect = Literal["repaired", "left out", "error", "suspect", "note"]

# Examples of a kind that are kept, of errors and of others.
_ERRORS, _EXAMPLES = 10, 3


@dataclass
class Findings:
    """What was found: of each kind how often, the first examples with their ids or files, and what came of it.

    effects: by kind. repaired: nothing is lost. left out: an object, mask or image is not used. error: the data cannot
    be used before it is corrected. suspect: used as it is, though it looks wrong. note: worth knowing.
    """

    source: str
    counts: dict[str, int] = field(default_factory=dict)
    examples: dict[str, list[str]] = field(default_factory=dict)
    effects: dict[str, Effect] = field(default_factory=dict)

    def add(self, kind: str, what: str, effect: Effect = "left out", *, count: int = 1) -> None:
        self.counts[kind] = self.counts.get(kind, 0) + count
        self.effects[kind] = effect
        examples = self.examples.setdefault(kind, [])
        if len(examples) < (_ERRORS if effect == "error" else _EXAMPLES):
            examples.append(what)

    def of(self, *effects: Effect) -> dict[str, int]:
        """How often the kinds with one of these effects were found."""
        return {kind: count for kind, count in self.counts.items() if self.effects[kind] in effects}

    def raise_errors(self, source: object) -> None:
        """Raises DataError with all errors, if there are any; of each kind the first ones."""
        kinds = self.of("error")
        if not kinds:
            return
        told = [example for kind in kinds for example in self.examples[kind]]
        if len(told) == 1:
            raise DataError(visible(told[0]) if str(source) in told[0] else f"{source}: {visible(told[0])}")
        lines = [f"{source}: {sum(kinds.values())} faults that have to be corrected first:"]
        for kind, count in kinds.items():
            examples = self.examples[kind]
            lines += [f"  {count} x {kind}:", *(f"    {visible(example)}" for example in examples)]
            lines += [f"    and {count - len(examples)} more"] if count > len(examples) > 1 else []
        raise DataError("\n".join([*lines, f"`piip data check {source}` shows everything that is wrong"]))

    def __str__(self) -> str:
        parts = []
        for kind, count in self.of("repaired", "left out", "error").items():
            more = ", ..." if count > len(self.examples[kind]) else ""
            parts.append(f"{count} x {kind} ({', '.join(self.examples[kind])}{more})")
        return f"{self.source}: {'; '.join(parts) or 'nothing dropped, clipped or replaced'}"
