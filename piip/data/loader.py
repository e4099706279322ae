"""From a data config to batches: datasets, transforms and loader processes put together."""

from __future__ import annotations

import atexit
import contextlib
import logging
import multiprocessing.connection
import multiprocessing.resource_tracker
import signal
import weakref
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import torch
import torch.distributed
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from piip.config import (
    ClassificationTransforms,
    CocoData,
    Config,
    DatasetConfig,
    ImageFolderData,
    LabelMapData,
    TransformConfig,
)
from piip.data.class_names import imagenet_classes, read_class_names
from piip.data.coco import CocoDataset
from piip.data.dataset import ImageDataset
from piip.data.image_folder import ImageFolderDataset
from piip.data.images import read_image
from piip.data.label_maps import LabelMapDataset
from piip.data.mixing import Mixing
from piip.data.sampler import SAMPLE_STREAM, EvalSampler, Key, TrainSampler
from piip.data.shape_crops import write_crops
from piip.data.shape_maps import MAP_CLASS_NAMES, write_shape_maps
from piip.data.shapes import write_shapes
from piip.data.transforms import Sample, generator, normalise_and_pad, prepare, transform
from piip.errors import DataError, PiipError
from piip.metrics import ImageId

__all__ = ["Batch", "Loader", "build_dataset", "build_loader", "explain_worker_death", "prepare", "read_image"]

logger = logging.getLogger(__name__)

_REPLACED = "undecodable image replaced by the next one in training"
# Images that cannot be read one after the other before training gives up: then it is the disk, not the image.
_MOST_FAILURES = 20
_SIGNALS = (signal.SIGINT, signal.SIGTERM)


@dataclass
class Batch:
    """Images as the network takes them, and what belongs to them.

    images: (B, 3, H, W) float32, normalised, zero-padded at the bottom and right; H and W are multiples of pad_divisor.
    image_sizes: valid (h, w) of each image in the batch. original_sizes: (h, w) of each image as read, upright.
    targets: one an image; empty in evaluation, where the metric has the truth. For detection boxes (n, 4) float32 xyxy
    in batch pixels, labels (n,) int64, masks (n, h, w) uint8 at the image's valid size where the data has any,
    crowd_boxes (m, 4); for segmentation label_map (h, w) uint8 at the image's valid size, 255 for no label; for
    classification label () int64 or probabilities (classes,) float32.
    replaced: a message for each damaged image that gave its place to another one.
    """

    images: Tensor
    image_sizes: list[tuple[int, int]]
    original_sizes: list[tuple[int, int]]
    image_ids: list[ImageId]
    targets: list[dict[str, Tensor]]
    replaced: list[str] = field(default_factory=list)

    def to(self, device: torch.device | str, non_blocking: bool = False) -> Batch:
        """A copy on a device."""
        targets = [{k: v.to(device, non_blocking=non_blocking) for k, v in target.items()} for target in self.targets]
        return replace(self, images=self.images.to(device, non_blocking=non_blocking), targets=targets)

    def pin_memory(self) -> Batch:
        """A copy in page-locked memory; called by the loader."""
        targets = [{k: v.pin_memory() for k, v in target.items()} for target in self.targets]
        return replace(self, images=self.images.pin_memory(), targets=targets)


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
) -> Loader:
    """The batches of one rank: of training (shuffled, augmented) or of evaluation (each image once over all ranks).

    rank, world: default to those of torch.distributed, or to one process.
    pin_memory: prepare batches for asynchronous copies to a GPU.
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
    loader: DataLoader[Batch] = DataLoader(
        _Samples(dataset, transforms, config.train.seed, training),
        batch_sampler=sampler,
        num_workers=data.workers,
        collate_fn=partial(
            _collate,
            mean=config.model.mean,
            std=config.model.std,
            divisor=transforms.pad_divisor,
            mixing=mixing,
        ),
        pin_memory=pin_memory,
        worker_init_fn=_leave_signals_to_parent,
        persistent_workers=training and data.workers > 0,
        # A generator of its own: the loader would draw from the global one at every epoch, also at a resumed one.
        generator=torch.Generator(),
    )
    return Loader(dataset, loader, sampler)


class Loader:
    """Iterates over batches, and tells what happened to the data on the way.

    After `set_epoch(epoch)`, and `set_start(iteration)` to enter it midway, an iteration yields the rest of that epoch;
    the batches are bit for bit those of an uninterrupted run. len() is the number of batches of a whole epoch.
    Damaged images are logged once each and counted in `dataset.report`.
    Raises DataError naming the image when it is damaged (in evaluation) or when many are (in training), and PiipError
    when a loader process dies.
    """

    def __init__(self, dataset: ImageDataset, loader: DataLoader[Batch], sampler: TrainSampler | EvalSampler) -> None:
        self.dataset = dataset
        self._loader, self._sampler = loader, sampler
        self._iterator: Any = None
        self._told: set[str] = set()
        # Loader processes ignore SIGTERM, with which multiprocessing would end those that are left when Python exits.
        atexit.register(_close, weakref.ref(self))

    def __len__(self) -> int:
        return len(self._loader)

    def set_epoch(self, epoch: int) -> None:
        """Goes to the beginning of an epoch, counted from 0."""
        if isinstance(self._sampler, TrainSampler):
            self._sampler.set_epoch(epoch)

    def set_start(self, iteration: int) -> None:
        """Goes to a batch of the current epoch: the number of batches of it already trained on."""
        if isinstance(self._sampler, TrainSampler):
            self._sampler.set_start(iteration)

    def __iter__(self) -> Iterator[Batch]:
        try:
            with _signals_held():
                self._iterator = iter(self._loader)
            for batch in self._iterator:
                if isinstance(batch, PiipError):
                    raise batch
                for message in batch.replaced:
                    if message not in self._told:
                        self._told.add(message)
                        self.dataset.report.add(_REPLACED, message)
                        logger.warning("%s: %s", _REPLACED, message)
                yield batch
        except (RuntimeError, OSError, EOFError) as error:
            death = explain_worker_death(error) or self._find_dead_worker()
            if death is None:
                raise
            self._close_after_death()
            raise death from None

    def close(self) -> None:
        """Ends the loader processes; another iteration starts them again."""
        shut_down = getattr(self._iterator, "_shutdown_workers", None)
        self._iterator = self._loader._iterator = None
        if shut_down is not None:
            shut_down()

    def _find_dead_worker(self) -> PiipError | None:
        """A worker that dies while handing over a batch shows as a broken connection."""
        workers = {worker.sentinel: worker for worker in getattr(self._iterator, "_workers", ())}
        for sentinel in multiprocessing.connection.wait(workers, timeout=1):
            worker = workers[sentinel]
            worker.join(timeout=1)
            return _death(f"process {worker.pid} ended with code {worker.exitcode}")
        return None

    def _close_after_death(self) -> None:
        # torch raises in the main thread whenever it learns of the death, be it now; after closing it has forgotten it.
        with contextlib.suppress(RuntimeError):
            self.close()
            return
        self.close()


def _close(reference: weakref.ref[Loader]) -> None:
    loader = reference()
    if loader is not None:
        loader.close()


def explain_worker_death(error: Exception) -> PiipError | None:
    """The error to show when torch reports, anywhere in the main process, that a loader process died; else None."""
    text = str(error)
    if "DataLoader worker" not in text or not ("killed by signal" in text or "exited unexpectedly" in text):
        return None
    return _death(text.splitlines()[0].strip())


def _death(what: str) -> PiipError:
    return PiipError(
        f"a data loader process died ({what}); most often memory or shared memory ran out: lower data.workers or "
        "data.batch_size, or set data.workers=0 to load in the main process"
    )


class _Samples(Dataset[Any]):
    """Transformed samples by (epoch, index); in training a damaged image is replaced by the next one.

    Errors are returned, not raised: torch would turn them into tracebacks on the way to the parent process.
    """

    def __init__(self, dataset: ImageDataset, transforms: TransformConfig, seed: int, training: bool) -> None:
        self._dataset, self._transforms, self._seed, self._training = dataset, transforms, seed, training

    def __len__(self) -> int:
        return len(self._dataset)

    def __getitem__(self, key: Key) -> Sample | PiipError:
        epoch, index = key
        if not self._training:
            try:
                image = self._dataset.image(index)
            except PiipError as error:
                return error
            sample: Sample = {"image": image, "image_id": self._dataset.image_id(index), "replaced": []}
            return transform(sample, self._transforms, None)

        rng = generator(self._seed, SAMPLE_STREAM, epoch, index)
        replaced: list[str] = []
        for offset in range(min(len(self._dataset), _MOST_FAILURES)):
            try:
                sample = self._dataset[(index + offset) % len(self._dataset)]
            except DataError as error:
                replaced.append(str(error))
                continue
            return transform(sample | {"key": key, "replaced": replaced}, self._transforms, rng)
        return DataError(f"{len(replaced)} images in a row cannot be read; the first: {replaced[0]}")


def _collate(
    samples: list[Sample | PiipError],
    *,
    mean: tuple[float, ...],
    std: tuple[float, ...],
    divisor: int,
    mixing: Mixing | None,
) -> Batch | PiipError:
    whole: list[Sample] = []
    for sample in samples:
        if isinstance(sample, PiipError):
            return sample
        whole.append(sample)
    images = [sample["image"] for sample in whole]
    normalised = normalise_and_pad(images, mean, std, divisor)
    targets = [sample["target"] for sample in whole if "target" in sample]
    if mixing is not None:
        normalised, targets = mixing(normalised, targets, whole[0]["key"])
    return Batch(
        images=normalised,
        image_sizes=[(image.shape[1], image.shape[2]) for image in images],
        original_sizes=[sample["original_size"] for sample in whole],
        image_ids=[sample["image_id"] for sample in whole],
        targets=targets,
        replaced=[message for sample in whole for message in sample["replaced"]],
    )


@contextlib.contextmanager
def _signals_held() -> Iterator[None]:
    """Processes started in here are not reached by a signal to the whole group before they have begun to ignore it.

    They inherit that the signals are blocked; this process gets its own at the end.
    """
    if multiprocessing.get_start_method() != "fork":
        # Queues for spawned processes start it, and its start unblocks the signals.
        multiprocessing.resource_tracker.ensure_running()
    before = signal.pthread_sigmask(signal.SIG_BLOCK, _SIGNALS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _leave_signals_to_parent(_: int) -> None:
    for number in _SIGNALS:
        signal.signal(number, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, _SIGNALS)
