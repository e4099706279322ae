"""Reading checkpoints that others wrote, without executing anything in them."""

from __future__ import annotations

import struct
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from piip.errors import CheckpointError, MissingFile, first_line
from piip.weights.integrity import check_weight_file
from piip.weights.unpickle import load_pickle

# Where the usual training programs keep the weights inside their files, tried in this order at every level.
_CONTAINERS = ("state_dict", "model", "module")
_EMA_CONTAINERS = ("state_dict_ema", "model_ema", "ema_state_dict", "ema")
# What wrappers put before every key.
_PREFIXES = ("module.", "model.", "_orig_mod.")

# What is often taken for weights by mistake, by its first bytes.
_MISTAKEN = {
    b"version https://git-lfs": "is a pointer of Git LFS, not the file itself; fetch that with `git lfs pull`",
    b"\xff\xd8\xff": "is a JPEG image, not weights",
    b"\x89PNG": "is a PNG image, not weights",
    b"GIF8": "is a GIF image, not weights",
    b"\x1f\x8b": "is compressed by gzip; unpack it first",
    b"\x89HDF": "is an HDF5 file, as Keras writes them; a file of PyTorch is needed",
}
_HEAD = 512

# A deflated archive may announce a thousand times its size; weights hardly shrink.
_MAX_UNPACKED = 100 << 20
_MAX_RATIO = 50


def read_state_dict(path: Path, *, ema: bool = False) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The tensors of a checkpoint by key, and the other entries beside them.

    path: a safetensors file, an archive of numpy arrays, or a file of torch.save, told apart by their first bytes. The
    last is unpickled with `weights_only=True`; classes outside torch's own list are replaced by inert stand-ins, so
    nothing of the file is executed and nothing foreign imported. Its tensors are mapped, not read: they take memory
    only where they are used. Files with a checksum are held against it.
    ema: take the averaged weights that training programs store beside the weights.
    Raises CheckpointError when the file is missing, damaged, asks for what may not be loaded, or holds no tensors.
    """
    if not path.is_file():
        raise MissingFile(f"checkpoint not found: {path}")
    try:
        kind = _kind(path)
    except OSError as error:
        raise CheckpointError(f"cannot read {path}: {error.strerror}") from None
    if kind == "safetensors":
        return _read_safetensors(path)
    if kind == "npz":
        return _read_npz(path), {}
    data = load_pickle(path, foreign=True)
    if isinstance(data, dict) and data.keys() >= {"optimizer", "rng", "epoch_length"}:
        raise CheckpointError(f"{path} is the rest of a checkpoint, not its weights; give its folder {path.parent}")
    containers = _EMA_CONTAINERS if ema else _CONTAINERS
    beside: dict[str, Any] = {}
    while isinstance(data, dict) and not any(map(_is_weight, data.items())):
        inner = next((key for key in containers if isinstance(data.get(key), dict)), None)
        if inner is None:
            break
        beside |= {key: value for key, value in data.items() if key != inner}
        data = data[inner]
        containers = _CONTAINERS
    tensors = dict(filter(_is_weight, data.items())) if isinstance(data, dict) else {}
    if not tensors or (ema and not beside):
        kind = "averaged weights" if ema else "tensors, neither at the top nor"
        raise CheckpointError(f"{path} holds no {kind} under {', '.join(_EMA_CONTAINERS if ema else _CONTAINERS)}")
    return strip_prefix(tensors), beside


def _kind(path: Path) -> str:
    """'safetensors', 'npz' or 'pickle'. Raises CheckpointError for what is none of them."""
    with path.open("rb") as file:
        head = file.read(_HEAD)
    for magic, what in _MISTAKEN.items():
        if head.startswith(magic):
            raise CheckpointError(f"{path} {what}")
    if head.lstrip()[:9].lower().startswith((b"<!doctype", b"<html", b"<?xml")):
        raise CheckpointError(f"{path} is a web page, not weights: what was downloaded is a message; fetch it again")
    if head[8:9] == b"{":
        return "safetensors"
    if head.startswith(b"PK"):
        return "npz" if _holds_arrays(path) else "pickle"
    if len(head) > 8 and _is_text(head):
        start = head.decode(errors="ignore").split("\n")[0][:40]
        raise CheckpointError(
            f"{path} is text, not weights, and begins with {start!r}; a run, one of its checkpoints or a weight file "
            "is needed"
        )
    return path.suffix[1:] if path.suffix in (".safetensors", ".npz") else "pickle"


def _holds_arrays(path: Path) -> bool:
    try:
        with zipfile.ZipFile(path) as archive:
            return all(name.endswith(".npy") for name in archive.namelist())
    except (zipfile.BadZipFile, ValueError, OSError, struct.error, NotImplementedError):
        return path.suffix == ".npz"


def _is_text(head: bytes) -> bool:
    try:
        text = head.decode()
    except UnicodeDecodeError as error:
        if error.start < len(head) - 3:  # the end may cut a letter in two
            return False
        text = head[: error.start].decode()
    return all(letter.isprintable() or letter.isspace() for letter in text)


def _is_weight(item: tuple[Any, Any]) -> bool:
    """Whether an entry is a tensor under a name, and of the plain kind that a network's weights are."""
    key, value = item
    return (
        isinstance(key, str)
        and isinstance(value, Tensor)
        and value.layout == torch.strided
        and value.device.type == "cpu"
        and not value.is_quantized
    )


def _read_safetensors(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    try:
        with safe_open(path, framework="pt") as opened:
            check_weight_file(path)
            tensors = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118 - not a mapping
            return tensors, dict(opened.metadata() or {})
    except (SafetensorError, OSError, ValueError, TypeError, AttributeError) as error:
        raise CheckpointError(f"{path} is not a whole safetensors file: {error}") from None


def _read_npz(path: Path) -> dict[str, Tensor]:
    try:
        with zipfile.ZipFile(path) as archive:
            size, unpacked = path.stat().st_size, sum(member.file_size for member in archive.infolist())
        if unpacked > max(_MAX_UNPACKED, _MAX_RATIO * size):
            raise ValueError(f"its {size} bytes claim to unpack to {unpacked}")
        with np.load(path, allow_pickle=False) as arrays:
            return {name: torch.from_numpy(arrays[name]) for name in arrays.files}
    except Exception as error:  # a damaged or hostile archive makes zipfile, zlib and numpy raise anything
        raise CheckpointError(f"{path} is damaged or not an archive of numpy arrays: {first_line(error)}") from None


def strip_prefix(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Removes a wrapper's prefix when every key has it."""
    for prefix in _PREFIXES:
        if all(key.startswith(prefix) for key in tensors):
            return strip_prefix({key.removeprefix(prefix): value for key, value in tensors.items()})
    return tensors
