"""What a training step needs on each GPU, worked out without one: states by arithmetic, activations by a fake run.

A forward pass of fake tensors, which take the kernels of real ones but hold no values, shows every tensor that autograd
keeps for the backward pass. Heads are run at their limits, as `piip flops` counts them.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode

from piip.config.experiment import Config
from piip.engine.freezing import freeze, frozen_parts
from piip.engine.parallel import checkpoint_regions, units
from piip.load import build_model
from piip.model import Model
from piip.regions import regions

_FLOAT = 4  # bytes


@dataclass(frozen=True)
class Need:
    """Bytes on each GPU. shard: how many GPUs share the states. checkpointed: whether regions compute again.

    transient: a unit that is gathered, the next one, and a gradient, and the activations of a region that computes
    again.
    """

    shard: int
    checkpointed: bool
    parameters: float
    gradients: float
    optimizer: float
    average: float
    activations: float
    transient: float

    @property
    def peak(self) -> float:
        """All of it."""
        states = self.parameters + self.gradients + self.optimizer + self.average
        return states + self.activations + self.transient


def needs(config: Config, *, gpus: int, batch: int) -> list[Need]:
    """What each layout needs, those that compute nothing again first.

    batch: images on each GPU, of the largest size that the training transforms make, in float32. Layouts are states on
    every GPU, and states shared by all.
    """
    found = []
    for checkpointed in (False, True):
        mode = FakeTensorMode(allow_non_fake_inputs=True)
        model = fake_model(config, mode)
        freeze(model, config.train.freeze)
        for part in frozen_parts(model):
            part.eval()
        kind = "all" if checkpointed else config.train.checkpoint_activations
        largest = 0 if not checkpointed else _largest_region(config, batch)
        checkpoint_regions(model, kind)
        with mode:
            kept = _kept(model, torch.empty(batch, 3, *training_size(config)))
        every = sum(parameter.numel() for parameter in model.parameters()) * _FLOAT
        trained = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad) * _FLOAT
        average = every if config.train.ema is not None else 0
        sizes = [sum(p.numel() for p in unit.parameters()) * _FLOAT for unit in units(model)]
        rest = every - sum(sizes)
        for shard in sorted({1, gpus}):
            gathered = 0 if shard == 1 else rest + 3 * max(sizes, default=0)
            states = (every / shard, trained / shard, 2 * trained / shard, average / shard)
            found.append(Need(shard, checkpointed, *states, kept, gathered + largest))
    return found


def fake_model(config: Config, mode: FakeTensorMode) -> Model:
    """The model in training mode, as on a CPU but without values."""
    with torch.device("meta"):
        model = build_model(config.model)
    with mode:
        return model.to_empty(device="cpu").train()


def training_size(config: Config) -> tuple[int, int]:
    """The largest (h, w) that the training transforms make: their crop, or their largest scale with its padding."""
    transforms: Any = config.data.train_transforms
    crop, resize = getattr(transforms, "crop", None), getattr(transforms, "resize", None)
    if isinstance(crop, int):
        return crop, crop
    pairs = [pair for pair in resize or () if isinstance(pair, tuple) and None not in pair]
    long, short = max(pairs, default=(transforms.long_side, transforms.long_side))
    divisor = transforms.pad_divisor
    return tuple(-(-side // divisor) * divisor for side in sorted((long, short)))


def _largest_region(config: Config, batch: int) -> int:
    """The activations of the region that keeps most."""
    by_region: dict[str, int] = {}
    mode = FakeTensorMode(allow_non_fake_inputs=True)
    model = fake_model(config, mode)
    with mode:
        _kept(model, torch.empty(batch, 3, *training_size(config)), by_region)
    return max(by_region.values(), default=0)


def _kept(model: Model, images: Tensor, by_region: dict[str, int] | None = None) -> int:
    """Bytes that autograd keeps of a forward pass, beside parameters and images; also by region, if asked for."""
    seen = {_storage(tensor) for tensor in (*model.parameters(), *model.buffers(), images)}
    alive: list[Tensor] = []
    current: list[str] = [""]
    total = 0

    def keep(tensor: Tensor) -> Tensor:
        nonlocal total
        if (key := _storage(tensor)) not in seen:
            seen.add(key)
            alive.append(tensor)  # so that no other storage gets its place
            total += tensor.untyped_storage().nbytes()
            if by_region is not None and current[-1]:
                by_region[current[-1]] = by_region.get(current[-1], 0) + tensor.untyped_storage().nbytes()
        return tensor

    with _within(regions(model), current), torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        maps = model.neck(model.backbone(images))
        model.head.run_for_count(maps, [(images.shape[2], images.shape[3])] * len(images))
    return total


@contextmanager
def _within(parts: dict[str, nn.Module], current: list[str]) -> Iterator[None]:
    """Notes which part is running."""
    handles = []
    for name, part in parts.items():
        handles.append(part.register_forward_pre_hook(lambda *_, name=name: current.append(name)))
        handles.append(part.register_forward_hook(lambda *_: current.pop() and None))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _storage(tensor: Tensor) -> int:
    return tensor.untyped_storage()._cdata
