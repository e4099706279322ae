"""The device of a run, and the precision that depends on the device."""

from __future__ import annotations

import os
import resource
import sys
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext

import torch

from piip.errors import ConfigError
from piip.precision import compute_dtype


def choose_device(name: str | None) -> torch.device:
    """The device named 'auto' (or None), 'cpu', 'cuda' or 'cuda:N'; under torchrun 'cuda' is the GPU of the local rank.

    Raises ConfigError when there is no such device.
    """
    local_rank = int(os.environ.get("LOCAL_RANK", "0"))
    if name is None or name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
    except RuntimeError:
        raise ConfigError(f"unknown device '{name}'; use auto, cpu, cuda or cuda:N") from None
    if device.type == "cuda":
        count = torch.cuda.device_count() if torch.cuda.is_available() else 0
        index = local_rank if device.index is None else device.index
        if index >= count:
            raise ConfigError(
                f"device cuda:{index} does not exist, {count} CUDA devices are available; use --device cpu"
            )
        return torch.device("cuda", index)
    if device.type not in ("cpu", "mps") or (device.type == "mps" and not torch.backends.mps.is_available()):
        raise ConfigError(f"device '{name}' is not available; use auto, cpu, cuda or cuda:N")
    return device


def autocast(device: torch.device, precision: str) -> AbstractContextManager[object]:
    """The context of a forward pass in training, for the precision of a config, see `compute_dtype`."""
    dtype = compute_dtype(device, precision)
    return nullcontext() if dtype == torch.float32 else torch.autocast(device.type, dtype=dtype)


@contextmanager
def tf32(wanted: bool | None) -> Iterator[None]:
    """In the block, float32 matrix products and convolutions on GPUs use TF32 or not; None keeps torch's settings."""
    if wanted is None:
        yield
        return
    cuda = torch.backends.cuda.matmul
    before = cuda.allow_tf32, torch.backends.cudnn.allow_tf32
    try:
        cuda.allow_tf32 = torch.backends.cudnn.allow_tf32 = wanted
        yield
    finally:
        cuda.allow_tf32, torch.backends.cudnn.allow_tf32 = before


def peak_memory_mib(device: torch.device) -> float:
    """The peak memory so far: what was allocated on a GPU, or was resident in this process."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**20
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (2**20 if sys.platform == "darwin" else 2**10)
