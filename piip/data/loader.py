"""Iteration over batches, with a report of damaged images in training and of dead loader processes."""

from __future__ import annotations

import atexit
import logging
import multiprocessing
import weakref
from collections.abc import Callable, Iterator
from multiprocessing.process import BaseProcess
from typing import Any

from torch.utils.data import DataLoader

from piip.data import workers
from piip.data.batch import Batch
from piip.data.sampler import EvalSampler, TrainSampler
from piip.data.sets.base import ImageDataset
from piip.errors import PiipError

logger = logging.getLogger(__name__)

_REPLACED = "undecodable image replaced by the next one in training"


class Loader:
    """Iterates over batches.

    After `set_epoch(epoch)`, and `set_start(iteration)` to enter it midway, an iteration yields the rest of that epoch;
    the batches are bit for bit those of an uninterrupted run. len() is the number of batches of a whole epoch.
    Damaged images of training are logged once each and counted in `dataset.report`; those of evaluation are in
    `Batch.unread`.
    check: called while a batch is waited for, about once per second; what it raises ends the wait.
    Raises DataError when many images are damaged in training or an annotation is in evaluation, and PiipError when a
    loader process dies or cannot be started. No loader process outlives an error.
    """

    def __init__(
        self,
        dataset: ImageDataset,
        loader: DataLoader[Batch],
        sampler: TrainSampler | EvalSampler,
        check: Callable[[], None] | None = None,
    ) -> None:
        self.dataset = dataset
        self._loader, self._sampler, self._check = loader, sampler, check
        self._iterator: Any = None
        self._processes: list[BaseProcess] = []
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
            self._start()
            while (batch := self._next()) is not None:
                for message in batch.replaced:
                    if message not in self._told:
                        self._told.add(message)
                        self.dataset.report.add(_REPLACED, message)
                        logger.warning("%s: %s", _REPLACED, message)
                yield batch
        except GeneratorExit:  # the processes wait for the next epoch
            raise
        except BaseException as error:
            death = workers.explain_worker_death(error)
            if death is None and isinstance(error, (RuntimeError, OSError, EOFError)):
                death = workers.find_death(self._processes)
            self.close()
            if death is None:
                raise
            raise death from None

    def close(self) -> None:
        """Ends the loader processes; another iteration starts them again."""
        shut_down = getattr(self._iterator, "_shutdown_workers", None)  # there is no public way
        self._iterator = self._loader._iterator = None
        workers.end(self._processes, shut_down)
        self._processes = []

    def _start(self) -> None:
        """Begins an iteration; starts the loader processes unless those of the last iteration go on."""
        running = set(multiprocessing.active_children())
        try:
            with workers.signals_held():
                self._iterator = iter(self._loader)
        except RuntimeError as error:
            if not workers.timed_out(error):
                raise
            # They are still at something that was given up: new ones begin at once.
            self.close()
            self._start()
        except OSError as error:
            workers.take_down(error)
            raise PiipError(
                f"cannot start {self._loader.num_workers} data loader processes: {error.strerror or error}; lower "
                "data.workers, make more room in /dev/shm, or set data.workers=0 to load in the main process"
            ) from None
        finally:
            children = multiprocessing.active_children()
            self._processes = [child for child in children if child in self._processes or child not in running]

    def _next(self) -> Batch | None:
        """The next batch, None after the last one."""
        while True:
            try:
                batch = next(self._iterator, None)
            except RuntimeError as error:
                if not workers.timed_out(error):
                    raise
                pinning = getattr(self._iterator, "_pin_memory_thread", None)
                if pinning is not None and not pinning.is_alive():
                    raise workers.death("the thread that takes its batches ended") from None
                if self._check is not None:
                    self._check()
                continue
            if isinstance(batch, PiipError):
                raise batch
            return batch


def _close(reference: weakref.ref[Loader]) -> None:
    loader = reference()
    if loader is not None:
        loader.close()
