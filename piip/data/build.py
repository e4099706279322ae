"""From a data config to batches: data sets, transforms and loader processes put together."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
import torch.distributed
from torch.utils.data import DataLoader

from piip.config import (
    ClassificationTransforms,
    CocoData,
    Config,
    DatasetConfig,
    ImageFolderData,
    LabelMapData,
)
from piip.data.batch import Batch, collate
from piip.data.class_names import imagenet_classes, read_class_names
from piip.data.coco import CocoDataset
from piip.data.dataset import ImageDataset
from piip.data.image_folder import ImageFolderDataset
from piip.data.label_maps import LabelMapDataset
from piip.data.loader import Loader
from piip.data.mixing import Mixing
from piip.data.sampler import EvalSampler, TrainSampler
from piip.data.samples import Samples
from piip.data.shape_crops import write_crops
from piip.data.shape_maps import MAP_CLASS_NAMES, write_shape_maps
from piip.data.shapes import write_shapes
from piip.data.workers import SLICE, hand_over, leave_signals_to_parent


def build_dataset(config: DatasetConfig, *, training: bool) -> ImageDataset:
    """The data set of a config; generated ones are written first. Raises DataError naming file and entry at fault."""
    if isinstance(config, CocoData):
        return CocoDataset(
            images=config.images,
            annotations=config.annotations,
            training=training,
            keep_empty=config.keep_empty,
            min_side=config.min_side,
            max_image_pixels=config.max_image_pixels,
            masks=config.masks,
        )
    if isinstance(config, ImageFolderData):
        return ImageFolderDataset(
            root=config.root, class_names=config.class_names, max_image_pixels=config.max_image_pixels
        )
    if isinstance(config, LabelMapData):
        return LabelMapDataset(
            images=config.images,
            labels=config.labels,
            class_names=read_class_names(config.class_names),
            reduce_zero_label=config.reduce_zero_label,
            max_image_pixels=config.max_image_pixels,
        )
    if config.form == "crops":
        return ImageFolderDataset(root=write_crops(config))
    if config.form == "label_maps":
        images, labels = write_shape_maps(config)
        return LabelMapDataset(images=images, labels=labels, class_names=MAP_CLASS_NAMES)
    images, annotations = write_shapes(config)
    return CocoDataset(images=images, annotations=annotations, training=training)


def known_class_names(config: DatasetConfig) -> list[str] | None:
    """The names of a public data set's classes, in label order, where the config says which it is; no file is read."""
    if isinstance(config, ImageFolderData) and config.class_names == "imagenet":
        return imagenet_classes()
    if isinstance(config, LabelMapData) and config.class_names == "ade20k":
        return read_class_names(config.class_names)
    return None


def build_loader(
    config: Config,
    dataset: ImageDataset,
    *,
    training: bool,
    rank: int | None = None,
    world: int | None = None,
    pin_memory: bool = False,
    check: Callable[[], None] | None = None,
) -> Loader:
    """The batches of one rank: of training (shuffled, augmented) or of evaluation (each image once over all ranks).

    rank, world: default to those of torch.distributed, or to one process.
    pin_memory: prepare batches for asynchronous copies to a GPU.
    check: called from time to time while a batch of the loader processes is waited for; what it raises ends the wait.
    Raises ConfigError when the batch size does not fit processes, accumulation or data.
    """
    distributed = torch.distributed.is_available() and torch.distributed.is_initialized()
    rank = rank if rank is not None else torch.distributed.get_rank() if distributed else 0
    world = world if world is not None else torch.distributed.get_world_size() if distributed else 1
    data = config.data
    sampler: TrainSampler | EvalSampler
    if training:
        sampler = TrainSampler(
            aspect_ratios=dataset.aspect_ratios,
            batch_size=data.batch_size,
            accumulate=config.optim.accumulate,
            seed=config.train.seed,
            rank=rank,
            world=world,
        )
    else:
        sampler = EvalSampler(images=len(dataset), batch_size=data.eval_batch_size, rank=rank, world=world)
    transforms = data.train_transforms if training else data.val_transforms
    mixing: Mixing | None = None
    if training and isinstance(transforms, ClassificationTransforms):
        mixing = Mixing(
            config=transforms,
            num_classes=len(dataset.class_names),
            batch_size=data.batch_size // (world * config.optim.accumulate),
            seed=config.train.seed,
        )
    batches = partial(
        collate, mean=config.model.mean, std=config.model.std, divisor=transforms.pad_divisor, mixing=mixing
    )
    loader: DataLoader[Batch] = DataLoader(
        Samples(dataset, transforms, config.train.seed, training),
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
