"""Weight files: writing them, and loading them into a model with errors that help."""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from hashlib import sha256
from itertools import chain
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import piip
from piip.errors import CheckpointError
from piip.files import replacing
from piip.weights.find import find_weights
from piip.weights.integrity import BLANK, KEY
from piip.weights.read import read_state_dict

_log = logging.getLogger(__name__)

# What safetensors calls the types.
_DTYPES = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.float8_e4m3fn: "F8_E4M3",
    torch.float8_e5m2: "F8_E5M2",
    torch.complex64: "C64",
    torch.int64: "I64",
    torch.int32: "I32",
    torch.int16: "I16",
    torch.int8: "I8",
    torch.uint64: "U64",
    torch.uint32: "U32",
    torch.uint16: "U16",
    torch.uint8: "U8",
    torch.bool: "BOOL",
}


@dataclass(frozen=True)
class LoadedWeights:
    """What the file of weights says of them, None where it says nothing."""

    class_names: list[str] | None = None
    config: dict[str, Any] | None = None
    step: int | None = None


def write_weights(
    path: Path,
    state: Mapping[str, Tensor],
    *,
    config: dict[str, Any] | None = None,
    class_names: list[str] | None = None,
    step: int | None = None,
) -> None:
    """Replaces `path` by a state dict as safetensors, with the config, the class names and a checksum in its header.

    Equal weights make equal files. Raises OSError when the disk is full or not writable, CheckpointError for odd types.
    """
    known = {"config": config, "class_names": class_names, "step": step}
    metadata = {key: json.dumps(value) for key, value in known.items() if value is not None}
    header: dict[str, Any] = {"__metadata__": {KEY: BLANK, "format": "pt", "piip": piip.__version__} | metadata}
    # Wide types first, so that every tensor begins where its type wants it.
    names = sorted(state, key=lambda name: (-state[name].element_size(), name))
    start = 0
    for name in names:
        tensor = state[name]
        if tensor.dtype not in _DTYPES:
            raise CheckpointError(f"{name} is {tensor.dtype}, which a safetensors file cannot hold")
        end = start + tensor.numel() * tensor.element_size()
        header[name] = {"dtype": _DTYPES[tensor.dtype], "shape": list(tensor.shape), "data_offsets": [start, end]}
        start = end
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    digest = sha256()
    data = (_bytes_of(state[name]) for name in names)
    blocks: Iterator[bytes | memoryview] = chain((len(text).to_bytes(8, "little"), text), data)
    with replacing(path) as file:
        for block in blocks:
            digest.update(block)
            file.write(block)
        file.seek(8 + text.index(BLANK.encode()))
        file.write(digest.hexdigest().encode())


def read_weights(file: Path) -> tuple[dict[str, Tensor], LoadedWeights]:
    """The tensors of a .safetensors file, or of a .pth file (unpickled with `weights_only=True`), on the CPU.

    Raises CheckpointError when the file is missing, half-written or of another kind.
    """
    state, beside = read_state_dict(file)
    return state, LoadedWeights(**_known(beside))


def load_weights(model: nn.Module, path: str | Path) -> LoadedWeights:
    """Loads a run, a checkpoint or a weight file (see `find_weights`) into the model; every tensor must be there.

    Raises CheckpointError; the model is then unchanged.
    """
    return load_file(model, find_weights(Path(path)))


def load_file(model: nn.Module, file: Path) -> LoadedWeights:
    """Loads a weight file into the model; every tensor must be there and fit.

    Raises CheckpointError; the model is then unchanged.
    """
    state, loaded = read_weights(file)
    own = model.state_dict()
    missing = [name for name in own if name not in state]
    unexpected = [name for name in state if name not in own]
    shapes = [
        f"{name}: file {tuple(state[name].shape)}, model {tuple(tensor.shape)}"
        for name, tensor in own.items()
        if name in state and state[name].shape != tensor.shape
    ]
    if missing or unexpected or shapes:
        lines = [f"{file} holds the weights of another network:"]
        for label, names in (("missing", missing), ("unexpected", unexpected), ("of another shape", shapes)):
            if names:
                lines.append(f"  {len(names)} {label}: {'; '.join(names[:3])}{'; ...' if len(names) > 3 else ''}")
        raise CheckpointError("\n".join([*lines, f"  {_hint(loaded, state)}"]))
    warn_of_non_finite(file, state)
    model.load_state_dict(state)
    return loaded


def warn_of_non_finite(source: Path | str, state: Mapping[str, Tensor]) -> None:
    """Warns of weights that are NaN or infinite, with the name of the first tensor and the number of all."""
    found = {name: count for name, tensor in state.items() if (count := _count_non_finite(tensor))}
    if found:
        first, more = next(iter(found)), len(found) - 1
        _log.warning(
            "%s: %d of the %d values of %s are not finite%s; what a network with them finds means nothing",
            source,
            found[first],
            state[first].numel(),
            first,
            f", nor {sum(found.values()) - found[first]} in {more} more tensors" if more else "",
        )


def _hint(loaded: LoadedWeights, state: dict[str, Tensor]) -> str:
    if loaded.config is not None:
        return f"they were trained with the config '{loaded.config.get('name')}'; give that one"
    if any(name.startswith("backbone.branch1.") for name in state):
        return "this is an official checkpoint; convert it first with `piip convert-ckpt SOURCE OUTPUT --config CONFIG`"
    return "give the config these weights were trained with"


def _known(metadata: Mapping[str, Any]) -> dict[str, Any]:
    """What a header of ours says, as written by `write_weights`; all else in it is ignored."""
    known: dict[str, Any] = {}
    for key, kind in (("class_names", list), ("config", dict), ("step", int)):
        text = metadata.get(key)
        try:
            value = json.loads(text) if isinstance(text, str) else None
        except (ValueError, RecursionError):
            continue
        if value and isinstance(value, kind):
            known[key] = value
    return known


def _bytes_of(tensor: Tensor) -> memoryview:
    return tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data


def _count_non_finite(tensor: Tensor) -> int:
    if not tensor.is_floating_point():
        return 0
    # A sum shows whether there are any in a fraction of the time; it may also overflow where there are none.
    total = tensor.sum() if tensor.dtype.itemsize > 2 else tensor.float().sum()
    return 0 if math.isfinite(total.item()) else int((~tensor.float().isfinite()).sum())
