"""What a network costs, in trainable parameters and multiply-accumulates, by its parts."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Cost:
    """Trainable parameters and multiply-accumulates."""

    params: int = 0
    macs: int = 0

    def __add__(self, other: Cost) -> Cost:
        return Cost(self.params + other.params, self.macs + other.macs)

    def __rmul__(self, times: int) -> Cost:
        return Cost(times * self.params, times * self.macs)


@dataclass(frozen=True)
class Part:
    """A named share of a network's cost."""

    name: str
    cost: Cost


@dataclass(frozen=True)
class Count:
    """The parts of a network, and the ops that were run but have no formula."""

    parts: tuple[Part, ...]
    uncounted: tuple[str, ...] = ()

    @property
    def total(self) -> Cost:
        return sum((part.cost for part in self.parts), Cost())
