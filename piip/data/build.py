"""From a data config to batches: data sets, transforms and loader processes put together."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
import torch.distributed
from torch.utils.data import DataLoader

from piip.config.experiment import Config
from piip.data.batch import Batch, collate
from piip.data.loader import Loader
from piip.data.sampler import EvalSampler, TrainSampler
from piip.data.samples import Samples
from piip.data.sets.base import ImageDataset
from piip.data.workers import SLICE, hand_over, leave_signals_to_parent


def build_loader(
    config: Config,
    dataset: ImageDataset,
    *,
    training: bool,
    as_read: bool = False,
    pin_memory: bool = False,
    check: Callable[[], None] | None = None,
) -> Loader:
    """The batches of this process: of training (shuffled, augmented) or of evaluation (each image once over all).

    as_read: leave images as they are read, instead of the transforms of evaluation.
    pin_memory: prepare batches for asynchronous copies to a GPU.
    check: called from time to time while a batch of the loader processes is waited for; what it raises ends the wait.
    Raises ConfigError when the batch size does not fit processes, accumulation or data.
    """
    distributed = torch.distributed.is_available() and torch.distributed.is_initialized()
    rank, world = (torch.distributed.get_rank(), torch.distributed.get_world_size()) if distributed else (0, 1)
    data = config.data
    transforms = data.train_transforms if training else data.val_transforms
    sampler: TrainSampler | EvalSampler
    mixing = None
    if training:
        sampler = TrainSampler(
            aspect_ratios=dataset.aspect_ratios,
            batch_size=data.batch_size,
            accumulate=config.optim.accumulate,
            seed=config.train.seed,
            rank=rank,
            world=world,
        )
        mixing = transforms.build_mixing(
            num_classes=len(dataset.class_names),
            batch_size=data.batch_size // (world * config.optim.accumulate),
            seed=config.train.seed,
        )
    else:
        sampler = EvalSampler(images=len(dataset), batch_size=data.eval_batch_size, rank=rank, world=world)
    model = config.model
    batches = partial(
        collate, mean=model.mean, std=model.std, divisor=1 if as_read else transforms.pad_divisor, mixing=mixing
    )
    loader: DataLoader[Batch] = DataLoader(
        Samples(dataset, None if as_read else transforms, config.train.seed, training),
        batch_sampler=sampler,
        num_workers=data.workers,
        collate_fn=partial(hand_over, batches) if data.workers else batches,
        pin_memory=pin_memory,
        timeout=SLICE if data.workers else 0,
        worker_init_fn=leave_signals_to_parent,
        persistent_workers=training and data.workers > 0,
        # A generator of its own: the loader would draw from the global one at every epoch, also at a resumed one.
        generator=torch.Generator(),
    )
    return Loader(dataset, loader, sampler, check)
