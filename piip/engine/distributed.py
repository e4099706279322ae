"""One process or many: the group that `torchrun` describes, and the few collectives the engine needs.

Every function also works without a process group, where it behaves as a group of one.
"""

from __future__ import annotations

import gc
import logging
import os
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import nn

from piip.engine.device import choose_device
from piip.errors import PiipError
from piip.signals import check_stop, default_signals

T = TypeVar("T")

_log = logging.getLogger(__name__)

# A rank may have to wait while another one scores the whole validation set.
_TIMEOUT = timedelta(hours=2)


def rank() -> int:
    return dist.get_rank() if dist.is_initialized() else 0


def world_size() -> int:
    return dist.get_world_size() if dist.is_initialized() else 1


def is_main() -> bool:
    return rank() == 0


@contextmanager
def session(device: str | None = None) -> Iterator[torch.device]:
    """Joins the process group that torchrun describes, if any, and leaves it at the end; yields the device.

    The frames that an error has passed through lose their locals then, since these may hold the group.
    """
    chosen = choose_device(device)
    if chosen.type == "cuda":
        torch.cuda.set_device(chosen)
    launched = {"RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"} <= os.environ.keys()
    owner = launched and not dist.is_initialized()
    if owner:
        backend = "cpu:gloo,cuda:nccl" if chosen.type == "cuda" else "gloo"
        # The call waits for the other ranks outside Python, where only a signal's default action can end it.
        with default_signals():
            dist.init_process_group(backend, timeout=_TIMEOUT)
    try:
        yield chosen
    except BaseException as error:
        if owner:
            _clear_frames(error)
        lost = explain_lost_process(error)
        if lost is None:
            raise
        raise lost from error
    finally:
        if owner:
            # Gloo's threads end with the group, and the group ends when nothing refers to it, not even a reference
            # cycle with a wrapped model. A thread that still frees a tensor while Python ends would abort the process.
            gc.collect()
            dist.destroy_process_group()


def _clear_frames(error: BaseException | None) -> None:
    """Forgets the locals of all frames that an error, and those that it followed from, have left."""
    while error is not None:
        traceback.clear_frames(error.__traceback__)
        error = error.__context__


def explain_lost_process(error: BaseException) -> PiipError | None:
    """The error to raise when a collective failed because another process of the run has ended; None for others."""
    # Gloo raises plain RuntimeErrors, which name its source file or the state of the connection.
    told = isinstance(error, dist.DistError) or any(words in str(error) for words in ("/gloo/", "Connection closed by"))
    if world_size() == 1 or not (isinstance(error, RuntimeError) and told):
        return None
    return PiipError(
        f"rank {rank()} lost its connection: another process of this run died; see what that process printed, and "
        "start again (training goes on with --resume)"
    )


def gather(value: T) -> list[T]:
    """Every rank's picklable `value`, in rank order, on every rank."""
    if not dist.is_initialized():
        return [value]
    values: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(values, value)
    return values


def synchronize_norms(model: nn.Module, device: torch.device) -> None:
    """Makes the batch norms of a training model see the images of all ranks, which torch can do on GPUs only."""
    if world_size() == 1 or not any(isinstance(module, nn.modules.batchnorm._BatchNorm) for module in model.modules()):
        return
    if device.type == "cuda":
        nn.SyncBatchNorm.convert_sync_batchnorm(model)
    else:
        _log.info("batch norms see the images of one process only: torch cannot synchronise them on the CPU")


def align_gradients(model: nn.Module) -> None:
    """Gives gradients the strides of their parameters along dimensions of size 1 too.

    Strides mean nothing there, but DistributedDataParallel compares them: it would copy the gradients of depthwise
    convolutions into its buckets, and warn of it.
    """
    for parameter in model.parameters():
        if parameter.requires_grad and 1 in parameter.shape:
            parameter.register_hook(lambda gradient: gradient.view(gradient.shape))


def share_buffers(model: nn.Module) -> None:
    """Gives every rank the main process's buffers, such as the running statistics of batch norm."""
    if dist.is_initialized():
        for buffer in model.buffers():
            dist.broadcast(buffer, 0)


def largest(value: int) -> int:
    """The largest value of any rank. The ranks compare it between hosts; no device is waited for."""
    tensor = torch.tensor([value])
    if dist.is_initialized():
        dist.all_reduce(tensor, op=dist.ReduceOp.MAX)
    return int(tensor)


def minimum_(tensor: torch.Tensor) -> torch.Tensor:
    """Replaces the tensor, in place, by its element-wise minimum over the ranks."""
    if dist.is_initialized():
        dist.all_reduce(tensor, op=dist.ReduceOp.MIN)
    return tensor


def mean_(tensor: torch.Tensor) -> torch.Tensor:
    """Replaces the floating tensor, in place, by its mean over the ranks."""
    if dist.is_initialized():
        dist.all_reduce(tensor)
        tensor /= dist.get_world_size()
    return tensor


def on_main(function: Callable[[], T]) -> T:
    """Calls the function on the main process only and returns its (picklable) result on every rank.

    What it raises is raised on every rank, so that no rank waits for one that has given up.
    """
    if not dist.is_initialized():
        return function()
    failure: Exception | None = None
    outcome: list[Any] = [None, None]
    if is_main():
        try:
            outcome[0] = function()
        except Exception as error:
            failure = error
            # Only our own errors are sure to survive pickling on the way to the other ranks.
            told = error if isinstance(error, PiipError) else PiipError(f"the main process failed: {error!r}")
            outcome[1] = type(told)(str(told))
    dist.broadcast_object_list(outcome)
    if failure is not None:
        raise failure
    if outcome[1] is not None:
        raise outcome[1]
    result: T = outcome[0]
    return result


@contextmanager
def main_process_first() -> Iterator[None]:
    """Runs the block in the main process first, which may write a cache, and then in the others, which read it.

    A failure of the main process is a PiipError on the others.
    """
    if not is_main() and any(gather(False)):
        check_stop()
        raise PiipError("the main process failed")
    failed = True
    try:
        yield
        failed = False
    finally:
        if is_main():
            gather(failed)
