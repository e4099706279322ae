"""Means of what happened since the last record."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any

import torch

from piip.engine import distributed
from piip.engine.step import StepResult


@dataclass
class Meter:
    """Sums over steps, as plain numbers that fit into a checkpoint: a resumed run reports what an unbroken one does.

    losses: by name; count: steps; grad_norm and lr: of the last step; seconds, waited: altogether and for data.
    """

    losses: dict[str, float] = field(default_factory=dict)
    count: int = 0
    grad_norm: float = 0.0
    lr: float = 0.0
    seconds: float = 0.0
    waited: float = 0.0

    def add(self, result: StepResult, lr: float) -> None:
        """Adds one step, taken at the learning rate `lr`."""
        self.losses = {name: self.losses.get(name, 0.0) + value for name, value in result.losses.items()}
        self.count += 1
        self.grad_norm, self.lr = result.grad_norm, lr
        self.seconds += result.seconds
        self.waited += result.waited

    def take(self) -> dict[str, Any]:
        """The record, and a new start: means of losses over steps and ranks, of times over steps. All ranks call it."""
        names = sorted(self.losses)
        sums = torch.tensor([self.losses[name] for name in names], dtype=torch.float64)
        means = dict(zip(names, distributed.mean_(sums / self.count).tolist()))
        record = {
            "lr": self.lr,
            "loss": sum(means.values()),
            "losses": {name: means[name] for name in self.losses},
            "grad_norm": self.grad_norm,
            "time": self.seconds / self.count,
            "data_time": self.waited / self.count,
        }
        vars(self).update(vars(Meter()))
        return record

    def state(self) -> dict[str, Any]:
        """What `Meter(**state)` continues from."""
        return asdict(self)
