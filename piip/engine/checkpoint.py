"""Checkpoints that are either whole or not there.

A run keeps them below `checkpoints/`, each in a directory named after its step:

    model.safetensors   the weights            ema.safetensors   their moving average, if there is one
    trainer.pt          everything else that a resumed run needs, loadable with `weights_only=True`
    meta.json           step, config, class names, fingerprints of the data, versions, size and SHA-256 of every file
    evaluation.json     the metrics, once they have been computed

All of them are covered by checksums (see `piip.weights.integrity`). A checkpoint is written into a temporary directory
beside its final place, every file is flushed to the disk, and the directory is renamed. A kill or a full disk leaves
the earlier checkpoints untouched. `last` and `best` are links (small files where the file system has no links). They
are replaced in one step, after the checkpoint that they point at has been written as a whole.
"""

from __future__ import annotations

import logging
import os
import shutil
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import piip
from piip.errors import CheckpointError
from piip.files import free_space, sync, write_file
from piip.weights.files import write_weights
from piip.weights.find import POINTERS, checkpoints, follow
from piip.weights.integrity import describe_files, read_document, write_document
from piip.weights.unpickle import load_pickle

_log = logging.getLogger(__name__)


def save_checkpoint(
    root: Path,
    step: int,
    *,
    weights: dict[str, dict[str, Tensor]],
    trainer: dict[str, Any],
    config: dict[str, Any],
    class_names: list[str],
    data: dict[str, str] | None = None,
) -> Path:
    """Writes `root/<step>/` and points `last` at it.

    weights: 'model' and perhaps 'ema' -> state dict. trainer: tensors, numbers, strings and containers of them. data:
    the fingerprints of the training and validation data. Raises CheckpointError when the disk is full or not writable;
    what was there before is then untouched.
    """
    target, temporary = root / str(step), root / f".tmp-{step}-{os.getpid()}"
    try:
        temporary.mkdir(parents=True)
        for name, state in weights.items():
            write_weights(temporary / f"{name}.safetensors", state, config=config, class_names=class_names, step=step)
        torch.save(trainer, temporary / "trainer.pt")
        sync(temporary / "trainer.pt")
        meta = {"step": step, "piip": piip.__version__, "torch": torch.__version__, "files": describe_files(temporary)}
        meta |= {} if data is None else {"data": data}
        write_document(temporary / "meta.json", meta | {"class_names": class_names, "config": config})
        if target.exists():
            # This one must be damaged: the run would have been resumed from a whole checkpoint of the same step.
            shutil.rmtree(target)
        temporary.rename(target)
        sync(root)
        point(root, "last", step)
    except (OSError, RuntimeError) as error:
        shutil.rmtree(temporary, ignore_errors=True)
        reason = (error.strerror if isinstance(error, OSError) else None) or str(error)
        raise CheckpointError(f"cannot save checkpoint {target}: {reason}{_remedy(root)}") from error
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


def prune(root: Path, keep: int) -> None:
    """Removes all but the newest `keep` checkpoints, what `last` and `best` lead to, and leftovers of killed saves."""
    protected = {follow(root, name) for name in POINTERS}
    for path in checkpoints(root)[:-keep]:
        if path not in protected:
            # It is renamed first, so that a kill in between leaves no half checkpoint under a valid name.
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


def load_trainer_state(path: Path, *, mapped: bool = False) -> dict[str, Any]:
    """The `trainer` that `save_checkpoint` was given, on the CPU. Raises CheckpointError when it cannot be read.

    mapped: tensors take memory only where they are used.
    """
    state = load_pickle(path / "trainer.pt", mapped=mapped)
    if not isinstance(state, dict):
        raise CheckpointError(f"{path / 'trainer.pt'} does not hold the state of a training run")
    return state


def write_evaluation(path: Path, record: dict[str, Any]) -> None:
    """Stores the metrics of a checkpoint beside it. Raises CheckpointError when the disk is full or not writable."""
    try:
        write_document(path / "evaluation.json", record)
    except OSError as error:
        raise CheckpointError(f"cannot write {path / 'evaluation.json'}: {error.strerror}{_remedy(path)}") from error


def read_evaluation(path: Path) -> dict[str, Any] | None:
    """The record that `write_evaluation` stored; None if there is none or it cannot be read."""
    file = path / "evaluation.json"
    try:
        record = read_document(file)
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        _log.warning("%s is damaged (%s); this checkpoint counts as not evaluated", file, error)
        return None
    return record


def _remedy(path: Path) -> str:
    return f"{free_space(path)}; free some space and continue with --resume"
