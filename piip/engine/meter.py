"""Means over the steps since the last record."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any

import torch

from piip.engine import distributed
from piip.engine.step import StepResult


@dataclass
class Meter:
    """Sums over steps, as plain numbers that a checkpoint stores: a resumed run reports what an unbroken one does.

    losses: sums by name. count: number of steps. grad_norm, lr: those of the last step. seconds: duration of all steps;
    waited: the part of it in which they waited for data.
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
        """The record of the steps so far, which are then forgotten. All ranks call it.

        Losses are means over steps and ranks, times are means over the steps of this rank.
        """
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
        self.losses, self.count = {}, 0
        self.grad_norm = self.lr = self.seconds = self.waited = 0.0
        return record

    def state(self) -> dict[str, Any]:
        """The sums, from which `Meter(**state)` continues."""
        return asdict(self)
