"""AdamW with layer-wise learning-rate decay, and the learning rate over a run, as in the released recipes.

Sources: the layer decay of BEiT (Bao et al., 2022, section A) in the form that the official PIIP detectors used, the
schedules of mmcv 1.x (`LrUpdaterHook`), and timm's `CosineLRScheduler` as the official classification loop steps it.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Mapping
from typing import Any

import torch
from torch import nn

from piip.config.experiment import OptimConfig, ScheduleConfig


def parameter_groups(
    named_parameters: Iterable[tuple[str, nn.Parameter]],
    layer_ids: Mapping[str, int],
    num_layers: int,
    config: OptimConfig,
    *,
    new: Collection[str] = (),
) -> list[dict[str, Any]]:
    """Groups of trainable parameters with equal learning rate and weight decay, in the order of their first member.

    layer_ids: parameter name -> layer, 0 for the embeddings; a name that is missing belongs to the last layer.
    num_layers: number of layers, ids 0 to num_layers - 1 (for a backbone of depth d: d + 2).
    new: names of the parameters that `new_lr_scale` is for.
    A layer's learning rate is `lr * layer_decay ** (num_layers - 1 - id)`. Vectors and biases have no weight decay,
    unless the config decays all parameters; all others have it, with position embeddings and 0-d merge weights.
    Each group holds params, param_names, name, lr_scale, lr and weight_decay.
    """
    groups: dict[str, dict[str, Any]] = {}
    for name, parameter in named_parameters:
        if not parameter.requires_grad:
            continue
        layer = layer_ids.get(name, num_layers - 1)
        if not 0 <= layer < num_layers:
            raise ValueError(f"layer id {layer} of {name} is outside 0..{num_layers - 1}")
        decays = config.decay_all or (parameter.ndim != 1 and not name.endswith(".bias"))
        factor = config.new_lr_scale if name in new else 1.0
        key = f"{'new_' if factor != 1 else ''}layer_{layer}_{'decay' if decays else 'no_decay'}"
        if key not in groups:
            scale = factor * config.layer_decay ** (num_layers - layer - 1)
            groups[key] = {
                "params": [],
                "param_names": [],
                "name": key,
                "lr_scale": scale,
                "lr": scale * config.lr,
                "weight_decay": config.weight_decay if decays else 0.0,
            }
        groups[key]["params"].append(parameter)
        groups[key]["param_names"].append(name)
    return list(groups.values())


def build_optimizer(groups: list[dict[str, Any]], config: OptimConfig) -> torch.optim.AdamW:
    """AdamW over groups as of `parameter_groups`."""
    # The fused kernel is several times faster on CPUs and GPUs alike, since a network has hundreds of small tensors.
    return torch.optim.AdamW(groups, lr=config.lr, betas=config.betas, weight_decay=config.weight_decay, fused=True)


def set_lr(
    optimizer: torch.optim.Optimizer, iteration: int, *, base: float, schedule: ScheduleConfig, epoch_length: int
) -> float:
    """Sets the rate of every group for the optimizer step number `iteration`. A group's full rate is base * lr_scale.

    Returns the rate of a group of scale 1.
    """
    for group in optimizer.param_groups:
        group["lr"] = learning_rate(base * group["lr_scale"], iteration, schedule, epoch_length)
    return learning_rate(base, iteration, schedule, epoch_length)


def total_iterations(schedule: ScheduleConfig, epoch_length: int) -> int:
    """Optimizer steps of the whole run; epoch_length: optimizer steps of one epoch."""
    if schedule.iterations is not None:
        return schedule.iterations
    assert schedule.epochs is not None
    return schedule.epochs * epoch_length


def learning_rate(full: float, iteration: int, schedule: ScheduleConfig, epoch_length: int) -> float:
    """The rate for the optimizer step number `iteration` (from 0) of parameters whose full rate is `full`."""
    if schedule.policy != "timm_cosine":
        return full * lr_factor(iteration, schedule, epoch_length)
    assert schedule.epochs is not None
    # The official loop steps the scheduler after each epoch, so that every epoch runs at the rate of the one before
    # it, and the first two at the same rate.
    epoch = max(0, iteration // epoch_length - 1)
    if epoch < schedule.timm_warmup_epochs:
        start = schedule.timm_warmup_lr
        return start + (full - start) * epoch / schedule.timm_warmup_epochs
    shape = 0.5 * (1 + math.cos(math.pi * epoch / schedule.epochs))
    return schedule.timm_min_lr + (full - schedule.timm_min_lr) * shape


def lr_factor(iteration: int, schedule: ScheduleConfig, epoch_length: int) -> float:
    """The factor on the base learning rate for the optimizer step number `iteration` (from 0), by mmcv's policies.

    A schedule in epochs changes between epochs only, one in iterations with every step; the linear warm-up always
    counts iterations. min_lr_ratio is the floor of the cosine and polynomial policies as a share of the base rate.
    """
    by_epoch = schedule.epochs is not None
    progress = iteration // epoch_length if by_epoch else iteration
    length = schedule.epochs if schedule.epochs is not None else total_iterations(schedule, epoch_length)
    if schedule.policy == "step":
        factor = schedule.gamma ** sum(progress >= milestone for milestone in schedule.milestones)
    else:
        if schedule.policy == "cosine":
            shape = 0.5 * (1 + math.cos(math.pi * progress / length))
        else:
            shape = (1 - progress / length) ** schedule.power
        factor = schedule.min_lr_ratio + (1 - schedule.min_lr_ratio) * shape
    if iteration < schedule.warmup_iterations:
        factor *= 1 - (1 - iteration / schedule.warmup_iterations) * (1 - schedule.warmup_ratio)
    return factor


def describe_extension(
    base: float, old: ScheduleConfig, new: ScheduleConfig, *, iteration: int, epoch_length: int
) -> str:
    """What becomes of the learning rate of a run that goes on for longer than it was planned, from this iteration on.

    base: the full rate. old, new: the same schedule but for its length.
    """
    length = f"{new.epochs} epochs instead of {old.epochs}"
    if new.iterations is not None:
        length = f"{new.iterations} iterations instead of {old.iterations}"
    rate = learning_rate(base, iteration, new, epoch_length)
    if new.policy == "step":
        return (
            f"the run goes on to {length}; the milestones {list(new.milestones)} stay, the learning rate is {rate:.3g}"
        )
    before = learning_rate(base, iteration, old, epoch_length)
    return (
        f"the run goes on to {length}; the {new.policy} schedule is stretched over all of them, so that the learning "
        f"rate goes on at {rate:.3g} instead of {before:.3g}"
    )
