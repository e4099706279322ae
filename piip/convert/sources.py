"""Reading checkpoints that others wrote, without executing anything in them."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from piip.errors import CheckpointError

# Where the usual training programs keep the weights inside their files, tried in this order at every level.
_CONTAINERS = ("state_dict", "model", "module")
# What wrappers put before every key.
_PREFIXES = ("module.", "model.")


def read_state_dict(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The tensors of a checkpoint by key, and the other entries beside them.

    path: `.safetensors`, or a file of torch.save, read with `weights_only=True`.
    Raises CheckpointError when the file is missing, damaged, holds code, or holds no tensors.
    """
    if not path.is_file():
        raise CheckpointError(f"checkpoint not found: {path}")
    if path.suffix == ".safetensors":
        try:
            return load_file(path), {}
        except (SafetensorError, OSError) as error:
            raise CheckpointError(f"{path} is damaged or not a safetensors file: {error}") from None
    try:
        data = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except pickle.UnpicklingError as error:
        raise CheckpointError(f"{path} holds more than tensors and plain values, and is not loaded: {error}") from None
    except (RuntimeError, EOFError, OSError, ValueError) as error:
        raise CheckpointError(f"{path} is damaged or not a checkpoint of torch.save: {error}") from None
    beside: dict[str, Any] = {}
    while isinstance(data, dict) and not any(isinstance(value, Tensor) for value in data.values()):
        inner = next((key for key in _CONTAINERS if isinstance(data.get(key), dict)), None)
        if inner is None:
            break
        beside |= {key: value for key, value in data.items() if key != inner}
        data = data[inner]
    tensors = {key: value for key, value in data.items() if isinstance(value, Tensor)} if isinstance(data, dict) else {}
    if not tensors:
        raise CheckpointError(f"{path} holds no tensors, neither at the top nor under {', '.join(_CONTAINERS)}")
    return strip_prefix(tensors), beside


def strip_prefix(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Removes a wrapper's prefix when every key has it."""
    for prefix in _PREFIXES:
        if all(key.startswith(prefix) for key in tensors):
            return strip_prefix({key.removeprefix(prefix): value for key, value in tensors.items()})
    return tensors
