"""What a whole network takes on a device: inference, or a training step, and its parts."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from itertools import repeat
from typing import Any

import torch
from torch import nn

from piip.bench.measure import captured, peak_bytes, product_speed, synchronize, times
from piip.bench.operators import Operators
from piip.config.experiment import Config
from piip.data.batch import Batch
from piip.engine.optim import build_optimizer, parameter_groups
from piip.engine.step import Step, optimizer_step
from piip.errors import ConfigError
from piip.flops.actual import actual_count, parts_of
from piip.flops.costs import Count
from piip.load import build_model
from piip.model import Model
from piip.precision import compute_dtype, prepare
from piip.regions import compile_regions

_OBJECTS = 10  # of each image of a training step


@dataclass
class Part:
    """A part of a network in one forward pass, which is waited for before and after it: launches are operators."""

    name: str
    milliseconds: float = 0.0
    launches: int = 0
    macs: int = 0


@dataclass
class Measured:
    """What one network took. size: sides of its square images in pixels. milliseconds: of every repeat.

    peak_bytes: beyond weights and images. macs: of a forward pass of the batch. first_seconds: the first call, with
    compilation. product_speed: multiply-accumulates a second of a matrix product in the same dtype.
    """

    config: str
    size: int
    batch: int
    what: str
    dtype: str
    macs: int
    first_seconds: float
    product_speed: float
    milliseconds: list[float] = field(default_factory=list)
    peak_bytes: int | None = None
    parts: list[Part] = field(default_factory=list)

    @property
    def median(self) -> float:
        """Milliseconds."""
        return statistics.median(self.milliseconds)

    @property
    def p90(self) -> float:
        """The milliseconds that nine of ten repeats stay below."""
        return sorted(self.milliseconds)[min(len(self.milliseconds) - 1, int(0.9 * len(self.milliseconds)))]

    @property
    def images_per_second(self) -> float:
        """At the median."""
        return self.batch / self.median * 1e3

    @property
    def share_of_products(self) -> float:
        """How much of the device's speed in matrix products is reached; a training step is taken as three passes."""
        passes = 3 if self.what == "training step" else 1
        return passes * self.macs / (self.median / 1e3) / self.product_speed


def measure(
    configs: list[Config],
    *,
    device: torch.device,
    size: int | None = None,
    batch: int = 1,
    train: bool = False,
    graph: bool = False,
    compile: bool = False,
    repeats: int = 10,
) -> list[Measured]:
    """Measures networks with fresh weights on square images of random pixels, one repeat of each in turn.

    size: side of the images; by default as large as each finest branch sees them. train: a step of the engine with ten
    objects an image instead of inference. graph: backbone and neck alone, replayed from a CUDA graph. compile: as of
    `piip.regions.compile_regions`. Raises ConfigError for a graph of anything but inference on a GPU.
    """
    if graph and (train or device.type != "cuda"):
        raise ConfigError("--graph replays inference on a GPU: leave out --train, and choose --device cuda")
    found, calls = [], []
    speeds: dict[torch.dtype, float] = {}
    for config in configs:
        side = size or config.model.backbone.resolutions[0]
        dtype = compute_dtype(device, config.train.precision)
        if dtype not in speeds:
            speeds[dtype] = product_speed(device, dtype)
        torch.manual_seed(0)
        model = build_model(config.model).to(device)
        if not train:
            model = prepare(model, dtype)
        images = random_batch(config, batch, side).to(device)
        # The parts before compilation, whose code would be seen through and not be called.
        count = actual_count(config.model, (side, side))
        parts = _parts(model, images, count)
        if compile:
            compile_regions(model)
        call = _training(model.train(), config, images, device) if train else _inference(model, images, graph=graph)
        start = time.perf_counter()
        call()
        synchronize(device)
        first = time.perf_counter() - start
        what = "training step" if train else "features from a graph" if graph else "inference"
        macs = batch * count.total.macs
        name = str(dtype).removeprefix("torch.")
        one = Measured(config.name, side, batch, what, name, macs, first, speeds[dtype], parts=parts)
        one.peak_bytes = None if graph else peak_bytes(call, device)
        found.append(one)
        calls.append(call)
    for one, milliseconds in zip(found, times(calls, device, repeats)):
        one.milliseconds = milliseconds
    return found


def random_batch(config: Config, count: int, side: int) -> Batch:
    """Images of random pixels with all that the heads of this package learn from, ten objects an image."""
    generator = torch.Generator().manual_seed(0)
    classes = config.model.head.num_classes
    targets = []
    for _ in range(count):
        corners = torch.rand(_OBJECTS, 2, 2, generator=generator).sort(1).values * (side - side // 8 - 1)
        boxes = torch.cat([corners[:, 0], corners[:, 1] + side // 8], 1)
        masks = torch.zeros(_OBJECTS, side, side, dtype=torch.uint8)
        for mask, (x0, y0, x1, y1) in zip(masks, boxes.int().tolist()):
            mask[y0:y1, x0:x1] = 1
        target = {
            "boxes": boxes,
            "labels": torch.randint(classes, (_OBJECTS,), generator=generator),
            "masks": masks,
            "crowd_boxes": torch.zeros(0, 4),
            "label_map": torch.randint(min(classes, 255), (side, side), dtype=torch.uint8, generator=generator),
            "label": torch.randint(classes, (), generator=generator),
        }
        targets.append(target)
    images = torch.randint(0, 256, (count, 3, side, side), dtype=torch.uint8, generator=generator)
    sizes = [(side, side)] * count
    return Batch(images, sizes, sizes, list(range(count)), targets)


def _inference(model: Model, batch: Batch, *, graph: bool) -> Callable[[], Any]:
    if not graph:
        return lambda: model.infer(batch.images, batch.image_sizes)
    with torch.inference_mode():
        return captured(lambda: model.features(batch.images, batch.image_sizes))


def _training(model: Model, config: Config, batch: Batch, device: torch.device) -> Callable[[], None]:
    """A step of the engine, which reads what the step before said."""
    groups = parameter_groups(model.named_parameters(), model.layer_ids(), model.num_layers, config.optim)
    optimizer = build_optimizer(groups, config.optim)
    unread: list[Step] = []

    def read() -> None:
        while unread:
            unread.pop().result()

    def step() -> None:
        taken = optimizer_step(
            model,
            optimizer,
            repeat(batch),
            config=config.optim,
            device=device,
            precision=config.train.precision,
            signal=0,
            before_update=read,
        )
        unread.append(taken)

    return step


@torch.inference_mode()
def _parts(model: Model, batch: Batch, count: Count) -> list[Part]:
    """The parts of one forward pass, in the order of `piip flops`, after one that does not count."""
    training = model.training
    model.eval()
    model.infer(batch.images, batch.image_sizes)
    macs = {part.name: part.cost.macs for part in count.parts}
    parts = {label: Part(label, macs=len(batch.images) * macs.get(label, 0)) for label, _ in parts_of(model)}
    other = Part("other", macs=len(batch.images) * macs.get("other", 0))
    device = batch.images.device
    with _watched(model, lambda: 1e3 * _now(device)) as milliseconds:
        model.infer(batch.images, batch.image_sizes)
    # In a pass of its own, since counting takes time.
    with Operators() as operators, _watched(model, lambda: operators.total) as launches:
        model.infer(batch.images, batch.image_sizes)
    for name, part in (parts | {"": other}).items():
        part.milliseconds, part.launches = milliseconds[name], int(launches[name])
    model.train(training)
    return [*parts.values(), other]


def _now(device: torch.device) -> float:
    synchronize(device)
    return time.perf_counter()


@contextmanager
def _watched(model: Model, read: Callable[[], float]) -> Iterator[dict[str, float]]:
    """How much a meter advances in the block during the outermost calls of each part, and, as "", outside of all."""
    found = dict.fromkeys([label for label, _ in parts_of(model)], 0.0)
    entered: list[float] = []

    def enter(*_: Any) -> None:
        entered.append(read())

    def leave(label: str, *_: Any) -> None:
        start = entered.pop()
        if not entered:
            found[label] += read() - start

    handles = []
    for label, name in parts_of(model):
        module = model.get_submodule(name)
        for below in module if isinstance(module, nn.ModuleList) else [module]:
            handles.append(below.register_forward_pre_hook(enter))
            handles.append(below.register_forward_hook(partial(leave, label)))
        if name.startswith("backbone.branches."):  # the backbone calls these two methods of a branch
            for method in ("embed", "run_blocks"):
                module.__dict__[method] = _timed(getattr(module, method), enter, partial(leave, label))
    start = read()
    try:
        yield found
    finally:
        found[""] = max(0.0, read() - start - sum(found.values()))
        for handle in handles:
            handle.remove()
        for branch in model.backbone.branches:
            branch.__dict__.pop("embed", None)
            branch.__dict__.pop("run_blocks", None)


def _timed(call: Callable[..., Any], enter: Callable[[], None], leave: Callable[[], None]) -> Callable[..., Any]:
    def timed(*args: Any) -> Any:
        enter()
        try:
            return call(*args)
        finally:
            leave()

    return timed
