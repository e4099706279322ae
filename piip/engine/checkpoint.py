"""Checkpoints that are either whole or not there.

A run keeps them below `checkpoints/`, each in a directory named after its step:

    model.safetensors   the weights            ema.safetensors   their moving average, if there is one
    trainer.pt          all else that a resumed run needs, loadable with `weights_only=True`
    meta.json           step, config, class names, versions, and size and SHA-256 of every file
    evaluation.json     metrics, once they have been computed

A checkpoint is written into a temporary directory beside, every file is flushed to the disk, and the directory is
renamed. A kill or a full disk leaves the earlier ones untouched. `last` and `best` are links (small files where the
file system has no links) and are replaced in one step, after the checkpoint they point at is whole.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import shutil
from collections.abc import Collection
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import Tensor, nn

import piip
from piip.engine.weights import LoadedWeights, load_file, write_weights
from piip.errors import CheckpointError
from piip.files import sync, to_json, write_file

POINTERS = ("last", "best")
_WEIGHTS = ("ema.safetensors", "model.safetensors")

_log = logging.getLogger(__name__)


def save_checkpoint(
    root: Path,
    step: int,
    *,
    weights: dict[str, dict[str, Tensor]],
    trainer: dict[str, Any],
    config: dict[str, Any],
    class_names: list[str],
) -> Path:
    """Writes `root/<step>/` and points `last` at it.

    weights: 'model' and perhaps 'ema' -> state dict. trainer: tensors, numbers, strings and containers of them.
    Raises CheckpointError when the disk is full or not writable; what was there before is then untouched.
    """
    target, temporary = root / str(step), root / f".tmp-{step}-{os.getpid()}"
    try:
        temporary.mkdir(parents=True)
        for name, state in weights.items():
            write_weights(temporary / f"{name}.safetensors", state, config=config, class_names=class_names, step=step)
        torch.save(trainer, temporary / "trainer.pt")
        files = {}
        for file in sorted(temporary.iterdir()):
            sync(file)
            files[file.name] = {"bytes": file.stat().st_size, "sha256": _digest(file)}
        meta = {"step": step, "piip": piip.__version__, "torch": torch.__version__, "files": files}
        write_file(temporary / "meta.json", to_json(meta | {"class_names": class_names, "config": config}, indent=1))
        if target.exists():
            # A damaged one of the same step: a whole one would have been resumed from.
            shutil.rmtree(target)
        temporary.rename(target)
        sync(root)
        point(root, "last", step)
    except (OSError, SafetensorError, RuntimeError) as error:
        shutil.rmtree(temporary, ignore_errors=True)
        reason = (error.strerror if isinstance(error, OSError) else None) or str(error)
        raise CheckpointError(f"cannot save checkpoint {target}: {reason}{_free_space(root)}") from error
    return target


def point(root: Path, name: str, step: int) -> None:
    """Makes `root/<name>` lead to the checkpoint of `step`."""
    temporary = root / f".tmp-{name}-{os.getpid()}"
    temporary.unlink(missing_ok=True)
    try:
        temporary.symlink_to(str(step), target_is_directory=True)
    except (OSError, NotImplementedError):
        write_file(root / name, f"{step}\n")
        return
    temporary.replace(root / name)
    sync(root)


def follow(root: Path, name: str) -> Path | None:
    """The checkpoint that `last` or `best` leads to, or None."""
    pointer = root / name
    if pointer.is_symlink():
        target = root / os.readlink(pointer)
    elif pointer.is_file():
        target = root / pointer.read_text(encoding="utf-8").strip()
    else:
        return None
    return target if target.is_dir() else None


def checkpoints(root: Path) -> list[Path]:
    """The checkpoint directories below `root`, oldest step first; they may be damaged."""
    if not root.is_dir():
        return []
    found = [path for path in root.iterdir() if path.name.isdigit() and path.is_dir() and not path.is_symlink()]
    return sorted(found, key=lambda path: int(path.name))


def newest_checkpoint(root: Path) -> Path | None:
    """The newest whole checkpoint below `root`, or None; damaged ones are passed over with a warning."""
    return next((path for path in reversed(checkpoints(root)) if _is_whole(path)), None)


def prune(root: Path, keep: int) -> None:
    """Removes all but the newest `keep` checkpoints, what `last` and `best` lead to, and leftovers of killed saves."""
    protected = {follow(root, name) for name in POINTERS}
    for path in checkpoints(root)[:-keep]:
        if path not in protected:
            # Renamed first: a kill in between must not leave half a checkpoint under a valid name.
            doomed = path.rename(root / f".tmp-{path.name}-{os.getpid()}")
            shutil.rmtree(doomed, ignore_errors=True)
    remove_leftovers(root)


def remove_leftovers(root: Path) -> None:
    """Removes what a killed save left behind."""
    for path in root.glob(".tmp-*"):
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)


def read_meta(path: Path, only: Collection[str] | None = None) -> dict[str, Any]:
    """meta.json of a checkpoint, after its files (or `only` those) have been held against their sizes and checksums.

    Raises CheckpointError when the checkpoint is missing or damaged.
    """
    try:
        meta = json.loads((path / "meta.json").read_text(encoding="utf-8"))
        files = {str(name): (int(entry["bytes"]), str(entry["sha256"])) for name, entry in meta["files"].items()}
    except FileNotFoundError:
        raise CheckpointError(f"{path} is not a whole checkpoint: it has no meta.json") from None
    except (ValueError, KeyError, TypeError, AttributeError):
        raise CheckpointError(f"checkpoint {path} is damaged: meta.json is not readable") from None
    for name, (size, digest) in files.items():
        if only is not None and name not in only:
            continue
        file = path / name
        found = file.stat().st_size if file.is_file() else 0
        if found != size:
            raise CheckpointError(f"checkpoint {path} is damaged: {name} has {found} of {size} bytes")
        if _digest(file) != digest:
            raise CheckpointError(f"checkpoint {path} is damaged: the checksum of {name} is wrong")
    return dict(meta)


def find_weights(path: Path) -> Path:
    """The weight file behind a file, a checkpoint directory or a run directory.

    A run stands for its best checkpoint (its last one where none has been evaluated), a checkpoint for the moving
    average of its weights where there is one: what was evaluated during training. Raises CheckpointError.
    """
    if path.name in POINTERS and path.is_file():
        path = follow(path.parent, path.name) or path
    if path.is_file():
        return path
    if not path.exists():
        raise CheckpointError(f"weights not found: {path}")
    root = path / "checkpoints" if (path / "checkpoints").is_dir() else path
    if not (root / "meta.json").exists():
        checkpoint = follow(root, "best") or follow(root, "last") or newest_checkpoint(root)
        if checkpoint is None:
            raise CheckpointError(
                f"{path} holds no checkpoint; expected a run directory, a checkpoint or a weight file"
            )
        root = checkpoint
    meta = read_meta(root, only=_WEIGHTS)
    # What was evaluated during training; checkpoints from before there was a choice hold no word of it.
    averaged = meta["config"].get("train", {}).get("evaluate_ema", True) and "ema.safetensors" in meta["files"]
    return root / ("ema.safetensors" if averaged else "model.safetensors")


def load_weights(model: nn.Module, path: str | Path) -> LoadedWeights:
    """Loads a run, a checkpoint or a weight file (see `find_weights`) into the model; every tensor must be there.

    Returns where the weights came from and the class names they were trained on, to be compared with those of the data.
    Raises CheckpointError; the model is then unchanged.
    """
    return load_file(model, find_weights(Path(path)))


def load_trainer_state(path: Path) -> dict[str, Any]:
    """What `save_checkpoint` was given as `trainer`, on the CPU. Raises CheckpointError when it cannot be read."""
    try:
        state = torch.load(path / "trainer.pt", map_location="cpu", weights_only=True)
    except (OSError, RuntimeError, ValueError, EOFError) as error:
        raise CheckpointError(f"cannot read {path / 'trainer.pt'}: {error}") from None
    return dict(state)


def write_evaluation(path: Path, record: dict[str, Any]) -> None:
    """Stores the metrics of a checkpoint beside it. Raises CheckpointError when the disk is full or not writable."""
    try:
        write_file(path / "evaluation.json", to_json(record, indent=1))
    except OSError as error:
        raise CheckpointError(
            f"cannot write {path / 'evaluation.json'}: {error.strerror}{_free_space(path)}"
        ) from error


def read_evaluation(path: Path) -> dict[str, Any] | None:
    """What `write_evaluation` stored, or None when this checkpoint has not been evaluated."""
    file = path / "evaluation.json"
    return dict(json.loads(file.read_text(encoding="utf-8"))) if file.is_file() else None


def _is_whole(path: Path) -> bool:
    try:
        read_meta(path)
    except CheckpointError as error:
        _log.warning("%s; trying an earlier one", error)
        return False
    return True


def _digest(file: Path) -> str:
    digest = hashlib.sha256()
    with file.open("rb") as stream:
        while block := stream.read(1 << 22):
            digest.update(block)
    return digest.hexdigest()


def _free_space(path: Path) -> str:
    while not path.exists():
        path = path.parent
    return f" ({shutil.disk_usage(path).free / 2**20:.0f} MiB free); free some space and continue with --resume"
