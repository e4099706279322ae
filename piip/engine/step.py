"""One optimizer step: forward and backward passes, the checks before anything is changed, and the update."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.nn.utils import clip_grads_with_norm_

from piip.config.experiment import OptimConfig
from piip.conventions import ImageId
from piip.data.batch import Batch
from piip.engine import distributed
from piip.engine.device import autocast
from piip.engine.parallel import Sharding
from piip.errors import NonFiniteLoss
from piip.host import HostCopy


@dataclass(frozen=True)
class StepResult:
    """What one optimizer step measured.

    losses: mean of each loss over the passes of this rank, by name. grad_norm: of all gradients, before clipping.
    seconds: duration of the step. waited: the part of it in which the step waited for data.
    """

    losses: dict[str, float]
    grad_norm: float
    seconds: float
    waited: float


@dataclass(frozen=True)
class Pass:
    """Loss values and image ids of one forward pass."""

    losses: dict[str, float]
    image_ids: list[ImageId]

    @property
    def finite(self) -> bool:
        """Whether all losses are finite."""
        return all(map(math.isfinite, self.losses.values()))


@dataclass(frozen=True)
class Step:
    """A step that has been launched on a device; its losses and norms are on their way to the host.

    numbers: 1 if the step is finite, the norm of all gradients, the losses of each pass, and the norm of each
    parameter's gradient. losses: their names. image_ids: the images of each pass. seconds, waited: as in `StepResult`.
    signal: the signal that a rank received, 0 if none did; the same on all ranks.
    """

    numbers: HostCopy
    model: nn.Module
    parameters: Sequence[nn.Parameter]
    losses: Sequence[str]
    image_ids: Sequence[list[ImageId]]
    seconds: float
    waited: float
    signal: int

    def result(self) -> StepResult:
        """Waits until the device has reached the update of this step. All ranks call it between the same two steps.

        Raises NonFiniteLoss, on all ranks, if a loss or a gradient of any rank is not finite; the weights have then not
        been changed.
        """
        start = time.perf_counter()
        finite, norm, *values = self.numbers.wait().tolist()
        seconds = self.seconds + time.perf_counter() - start
        remaining = iter(values)
        passes = [Pass({name: next(remaining) for name in self.losses}, ids) for ids in self.image_ids]
        if not finite:
            named = self.model.named_parameters()
            names = {parameter: name.removeprefix("module.").replace("/", ".") for name, parameter in named}
            bad = [names[parameter] for parameter, value in zip(self.parameters, remaining) if not math.isfinite(value)]
            raise NonFiniteLoss(_explain(passes, bad))
        means = {name: sum(part.losses[name] for part in passes) / len(passes) for name in self.losses}
        return StepResult(means, norm, seconds, self.waited)


def optimizer_step(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    batches: Iterator[Batch],
    *,
    config: OptimConfig,
    device: torch.device,
    precision: str,
    signal: int,
    before_update: Callable[[], None] = lambda: None,
    sharding: Sharding | None = None,
) -> Step:
    """Takes `config.accumulate` batches, adds up their gradients and updates the weights.

    model: returns losses by name for a batch; it may be wrapped in DistributedDataParallel. batches: batches on the
    device. optimizer: a fused one. signal: the signal that this rank received, or 0. sharding: of the model, whose
    shares the optimizer then has.
    The function does not wait for the device to reach the update. If a loss or a gradient of any rank is not finite,
    the device leaves weights and optimizer as they are, and `Step.result` raises. The result of a step must be read
    before the next step changes the weights: before_update is called for that after the passes of this step have been
    launched, and before its update. By then the device has finished the step before.
    """
    start, waited = time.perf_counter(), 0.0
    optimizer.zero_grad(set_to_none=True)
    losses: list[dict[str, Tensor]] = []
    image_ids: list[list[ImageId]] = []
    for index in range(config.accumulate):
        waiting = time.perf_counter()
        batch = next(batches)
        waited += time.perf_counter() - waiting
        # The ranks exchange gradients once per step, during the last backward pass.
        last = index == config.accumulate - 1
        with model.no_sync() if isinstance(model, DistributedDataParallel) and not last else nullcontext():
            with autocast(device, precision):
                found: dict[str, Tensor] = model(batch)
            torch.stack([loss.float() for loss in found.values()]).sum().div(config.accumulate).backward()
        losses.append({name: loss.detach().float() for name, loss in found.items()})
        image_ids.append(batch.image_ids)

    if sharding is not None:
        sharding.collect_gradients()
    # A signal must stop all ranks after the same step.
    signal = distributed.largest(signal)
    before = time.perf_counter()
    before_update()
    start += time.perf_counter() - before

    parameters = [p for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
    # This is what torch's get_total_norm calls; it does not return the norms of the single gradients.
    norms = torch.stack(torch._foreach_norm([parameter.grad for parameter in parameters]))
    if sharding is not None:
        norms = sharding.norms(parameters, norms)
    norm = torch.linalg.vector_norm(norms)
    values = torch.stack([norm.float(), *(loss for part in losses for loss in part.values())])
    finite = distributed.minimum_(values.isfinite().all().float())
    if config.clip_grad_norm is not None:
        clip_grads_with_norm_(parameters, config.clip_grad_norm, norm)
    _update(optimizer, skip=1 - finite)
    return Step(
        HostCopy(torch.cat([finite[None], values, norms.float()])),
        model=model if sharding is None else sharding.shares,
        parameters=parameters,
        losses=list(losses[0]),
        image_ids=image_ids,
        seconds=time.perf_counter() - start,
        waited=waited,
        signal=signal,
    )


def _update(optimizer: torch.optim.Optimizer, *, skip: Tensor) -> None:
    """Updates the weights unless `skip`, a tensor on the device, is 1, in the way of torch.amp.GradScaler."""
    vars(optimizer)["found_inf"] = skip
    try:
        optimizer.step()
    finally:
        del vars(optimizer)["found_inf"]


def _explain(passes: list[Pass], bad: list[str]) -> str:
    """Says what is not finite on which images, for all ranks. bad: parameters whose gradients are not finite."""
    reports = distributed.gather([_describe(part) for part in passes if not part.finite])
    if not any(reports):
        others = f" and of {len(bad) - 1} more parameters" if len(bad) > 1 else ""
        found = f"the gradient of {bad[0]}{others}" if bad else "the norm of the gradients"
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
