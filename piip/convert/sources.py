"""Reading checkpoints that others wrote, without executing anything in them."""

from __future__ import annotations

import pickle
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from piip.errors import CheckpointError

# Where the usual training programs keep the weights inside their files, tried in this order at every level.
_CONTAINERS = ("state_dict", "model", "module")
_EMA_CONTAINERS = ("state_dict_ema", "model_ema", "ema_state_dict", "ema")
# What wrappers put before every key.
_PREFIXES = ("module.", "model.", "_orig_mod.")


def read_state_dict(path: Path, *, ema: bool = False) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The tensors of a checkpoint by key, and the other entries beside them.

    path: `.safetensors`, `.npz`, or a file of torch.save. That is unpickled with `weights_only=True`; classes outside
    torch's own list are replaced by inert stand-ins, so nothing of the file is executed and nothing foreign imported.
    Tensors of a torch.save file are mapped, not read: they take memory only where they are used.
    ema: take the averaged weights that training programs store beside the weights.
    Raises CheckpointError when the file is missing, damaged, asks for what may not be loaded, or holds no tensors.
    """
    if not path.is_file():
        raise CheckpointError(f"checkpoint not found: {path}")
    if path.suffix == ".safetensors":
        return _read_safetensors(path)
    if path.suffix == ".npz":
        return _read_npz(path), {}
    data = _read_pickle(path)
    containers = _EMA_CONTAINERS if ema else _CONTAINERS
    beside: dict[str, Any] = {}
    while isinstance(data, dict) and not any(isinstance(value, Tensor) for value in data.values()):
        inner = next((key for key in containers if isinstance(data.get(key), dict)), None)
        if inner is None:
            break
        beside |= {key: value for key, value in data.items() if key != inner}
        data = data[inner]
        containers = _CONTAINERS
    tensors = {key: value for key, value in data.items() if isinstance(value, Tensor)} if isinstance(data, dict) else {}
    if not tensors or (ema and not beside):
        kind = "averaged weights" if ema else "tensors, neither at the top nor"
        raise CheckpointError(f"{path} holds no {kind} under {', '.join(_EMA_CONTAINERS if ema else _CONTAINERS)}")
    return strip_prefix(tensors), beside


def _read_safetensors(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    try:
        with safe_open(path, framework="pt") as opened:
            tensors = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118 - not a mapping
            return tensors, dict(opened.metadata() or {})
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"{path} is not a whole safetensors file: {error}") from None


def _read_npz(path: Path) -> dict[str, Tensor]:
    try:
        with np.load(path, allow_pickle=False) as arrays:
            return {name: torch.from_numpy(arrays[name]) for name in arrays.files}
    except (ValueError, OSError, EOFError, zipfile.BadZipFile, TypeError) as error:
        raise CheckpointError(f"{path} is damaged or not an archive of numpy arrays: {error}") from None


def _read_pickle(path: Path) -> Any:
    mapped = zipfile.is_zipfile(path)  # older files of torch.save are plain pickles, which cannot be mapped
    try:
        foreign = torch.serialization.get_unsafe_globals_in_checkpoint(path) if mapped else []
        with torch.serialization.safe_globals([_stand_in(name) for name in foreign]):
            return torch.load(path, map_location="cpu", weights_only=True, mmap=mapped)
    except pickle.UnpicklingError as error:
        raise CheckpointError(f"{path} asks for code to be run, and is not loaded: {error}") from None
    except (RuntimeError, EOFError, OSError, ValueError) as error:
        raise CheckpointError(f"{path} is damaged or not a checkpoint of torch.save: {error}") from None


class _StandIn:
    """Takes the place of a foreign object (an argparse.Namespace, a numpy scalar, ...) and drops what it held."""

    def __init__(self, *args: Any) -> None:
        pass

    def __setstate__(self, state: Any) -> None:
        pass


def _stand_in(name: str) -> type[_StandIn]:
    """A class that torch takes for the one of this full name."""
    module, _, last = name.rpartition(".")
    return type(last, (_StandIn,), {"__module__": module})


def strip_prefix(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Removes a wrapper's prefix when every key has it."""
    for prefix in _PREFIXES:
        if all(key.startswith(prefix) for key in tensors):
            return strip_prefix({key.removeprefix(prefix): value for key, value in tensors.items()})
    return tensors
