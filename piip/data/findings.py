"""What is found wrong in annotations: what was repaired, what was left out, and what nobody but the user can decide."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from piip.data.report import Report
from piip.errors import DataError, visible

Effect = Literal["repaired", "left out", "error", "suspect", "note"]

# Examples that are kept of what is no error, and of errors, which are corrected one by one.
_EXAMPLES = 3, 10


@dataclass
class Findings(Report):
    """A report that knows of each kind what came of it.

    effects: by kind. repaired: nothing is lost. left out: an object, mask or image is not used. error: the data cannot
    be used before it is corrected. suspect: used as it is, though it looks wrong. note: worth knowing.
    """

    effects: dict[str, Effect] = field(default_factory=dict)

    def add(self, kind: str, what: str, effect: Effect = "left out", *, count: int = 1) -> None:
        self.counts[kind] = self.counts.get(kind, 0) + count
        self.effects[kind] = effect
        examples = self.examples.setdefault(kind, [])
        if len(examples) < _EXAMPLES[effect == "error"]:
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
        notes = {kind for kind, effect in self.effects.items() if effect in ("note", "suspect")}
        if not notes:
            return super().__str__()
        counts = {kind: count for kind, count in self.counts.items() if kind not in notes}
        return str(Report(self.source, counts, self.examples))
