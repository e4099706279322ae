"""Weight files: writing them, and loading them into a model with errors that help."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from safetensors.torch import save_file
from torch import Tensor, nn

import piip
from piip.errors import CheckpointError


@dataclass(frozen=True)
class LoadedWeights:
    """Where weights came from, and what their file says of them (None where it says nothing)."""

    file: Path
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
    """Writes a state dict as safetensors, with the config and the class names in its header."""
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in state.items()}
    known = {"config": config, "class_names": class_names, "step": step}
    metadata = {key: json.dumps(value) for key, value in known.items() if value is not None}
    save_file(tensors, path, metadata={"format": "pt", "piip": piip.__version__} | metadata)
    _sort_metadata(path)


def _sort_metadata(path: Path) -> None:
    # safetensors writes the metadata in a random order, and equal runs should write equal files.
    with path.open("r+b") as file:
        size = int.from_bytes(file.read(8), "little")
        header = json.loads(file.read(size))
        header["__metadata__"] = dict(sorted(header["__metadata__"].items()))
        text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
        if len(text) <= size:
            file.seek(8)
            file.write(text.ljust(size))


def read_weights(file: Path) -> tuple[dict[str, Tensor], LoadedWeights]:
    """The tensors of a .safetensors file, or of a .pth file (unpickled with `weights_only=True`), on the CPU.

    Raises CheckpointError when the file is missing, half-written or of another kind.
    """
    # Imported here: the conversions build models, and most callers never need them.
    from piip.convert.sources import read_state_dict

    if not file.is_file():
        raise CheckpointError(f"weights not found: {file}")
    state, beside = read_state_dict(file)
    return state, LoadedWeights(file, **_known(beside))


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
    model.load_state_dict(state)
    return loaded


def _hint(loaded: LoadedWeights, state: dict[str, Tensor]) -> str:
    if loaded.config is not None:
        return f"they were trained with the config '{loaded.config.get('name')}'; give that one"
    if any(name.startswith("backbone.branch1.") for name in state):
        return "this is an official checkpoint; convert it first with `piip convert-ckpt SOURCE OUTPUT --config CONFIG`"
    return "give the config these weights were trained with"


def _known(metadata: Mapping[str, Any]) -> dict[str, Any]:
    """What a header of ours says, as written by `write_weights` or by the conversion; any other is not believed."""
    known: dict[str, Any] = {}
    for key, kind in (("class_names", list), ("config", dict), ("step", int)):
        text = metadata.get(key)
        try:
            value = yaml.safe_load(text) if isinstance(text, str) else None
        except yaml.YAMLError:
            continue
        if value and isinstance(value, kind):
            known[key] = value
    return known
