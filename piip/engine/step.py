"""One optimizer step: forward and backward passes, the checks before anything is changed, and the update."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.nn.utils import clip_grads_with_norm_, get_total_norm

from piip.config import OptimConfig
from piip.data import Batch
from piip.engine import distributed
from piip.engine.device import autocast
from piip.errors import NonFiniteLoss
from piip.metrics import ImageId


@dataclass(frozen=True)
class StepResult:
    """losses: by name, mean over the passes of this rank. seconds: of the step; waited: of those, for data.

    signal: the signal that any rank was sent, 0 for none; the same on all ranks.
    """

    losses: dict[str, float]
    grad_norm: float
    seconds: float
    waited: float
    signal: int


@dataclass(frozen=True)
class Pass:
    """Loss values and image ids of one forward pass."""

    losses: dict[str, float]
    image_ids: list[ImageId]

    @property
    def finite(self) -> bool:
        return all(map(math.isfinite, self.losses.values()))


def optimizer_step(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    batches: Iterator[Batch],
    *,
    config: OptimConfig,
    device: torch.device,
    precision: str,
    signal: int,
) -> StepResult:
    """Takes `config.accumulate` batches, adds up their gradients and updates the weights.

    model: returns losses by name for a batch; perhaps in DistributedDataParallel. batches: on the device. signal: what
    this rank was sent, or 0. Raises NonFiniteLoss, on all ranks, if a loss or gradient of any is not finite; no weight
    has changed then.
    """
    start, waited = time.perf_counter(), 0.0
    optimizer.zero_grad(set_to_none=True)
    losses: list[dict[str, Tensor]] = []
    image_ids: list[list[ImageId]] = []
    for index in range(config.accumulate):
        waiting = time.perf_counter()
        batch = next(batches)
        waited += time.perf_counter() - waiting
        # Gradients travel between the ranks once a step, with the last backward pass.
        last = index == config.accumulate - 1
        with model.no_sync() if isinstance(model, DistributedDataParallel) and not last else nullcontext():
            with autocast(device, precision):
                found: dict[str, Tensor] = model(batch)
            torch.stack([loss.float() for loss in found.values()]).sum().div(config.accumulate).backward()
        losses.append({name: loss.detach().float() for name, loss in found.items()})
        image_ids.append(batch.image_ids)

    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    norm = get_total_norm([parameter.grad for parameter in parameters if parameter.grad is not None])
    # The one time a step waits for the device: all losses and the norm come over together.
    norm_value, *values = torch.stack([norm.float(), *(loss for part in losses for loss in part.values())]).tolist()
    remaining = iter(values)
    passes = [Pass({name: next(remaining) for name in part}, ids) for part, ids in zip(losses, image_ids)]
    finite = math.isfinite(norm_value) and all(part.finite for part in passes)
    status = distributed.minimum_(torch.tensor([float(finite), -float(signal)])).tolist()
    if not status[0]:
        raise NonFiniteLoss(_explain(model, passes))
    if config.clip_grad_norm is not None:
        clip_grads_with_norm_(parameters, config.clip_grad_norm, norm)
    optimizer.step()
    means = {name: sum(part.losses[name] for part in passes) / len(passes) for name in passes[0].losses}
    return StepResult(means, norm_value, time.perf_counter() - start, waited, int(-status[1]))


def _explain(model: nn.Module, passes: list[Pass]) -> str:
    """What is not finite, and on which images; the ranks tell each other."""
    reports = distributed.gather([_describe(part) for part in passes if not part.finite])
    if not any(reports):
        bad = [name for name, p in model.named_parameters() if p.grad is not None and not p.grad.isfinite().all()]
        others = f" and of {len(bad) - 1} more parameters" if len(bad) > 1 else ""
        found = f"the gradient of {bad[0].removeprefix('module.')}{others}" if bad else "the norm of the gradients"
        image_ids = [image_id for part in passes for image_id in part.image_ids]
        reports = distributed.gather([f"the losses are finite, {found} is not, on the images {_list(image_ids)}"])
    told = [f"  rank {rank}: {text}" for rank, texts in enumerate(reports) for text in texts]
    advice = "look at these images and their annotations; else lower optim.lr or set optim.clip_grad_norm"
    return "\n".join(["the loss is not finite; the weights were not changed by this step", *told, f"  {advice}"])


def _describe(part: Pass) -> str:
    values = ", ".join(f"{name} {value:.4g}" for name, value in part.losses.items())
    return f"{values} on the images {_list(part.image_ids)}"


def _list(image_ids: list[ImageId]) -> str:
    return ", ".join(map(str, image_ids))
