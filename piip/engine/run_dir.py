"""The run directory before the first step: is it free, is there a checkpoint to resume, is it of the same run?"""

from __future__ import annotations

import logging
import math
import os
import socket
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

from piip.config.experiment import Config
from piip.config.load import config_from_dict, dump_config
from piip.engine import distributed
from piip.engine.checkpoint import remove_leftovers
from piip.errors import CheckpointError, ConfigError, MissingFile
from piip.files import lock, write_file, writing
from piip.weights.find import POINTERS, checkpoints, follow, newest_checkpoint
from piip.weights.integrity import read_meta

_log = logging.getLogger(__name__)

_LOCK = ".lock"
# These are opened for appending, and would be written through a link; all other files are replaced.
_APPENDED = ("train.log", "tensorboard")

# Settings that may differ between a run and its continuation, because they change no step.
_HARMLESS = (
    "name",
    "official",
    "published",
    "data.workers",
    "data.eval_batch_size",
    "train.eval_every",
    "train.early_stopping",
    "train.checkpoint_every",
    "train.keep_checkpoints",
    "train.log_every",
    "train.compile",
    "train.checkpoint_activations",
    "parallel",
)
# Settings that may grow, for a run that is to go on beyond its former end.
_GROWING = ("schedule.epochs", "schedule.iterations")
_SHOWN = 4


@contextmanager
def locked(output: Path) -> Iterator[None]:
    """Reserves the run directory for one run, whose main process keeps a lock on a file in it. It is made if need be.

    The lock ends with the process, however that ends. Raises ConfigError, on all ranks, while another run holds it.
    """
    with ExitStack() as stack:
        distributed.on_main(lambda: stack.enter_context(_held(output)))
        yield


@contextmanager
def _held(output: Path) -> Iterator[None]:
    path = output / _LOCK
    with writing(f"to the run directory {output}"):
        output.mkdir(parents=True, exist_ok=True)
        descriptor = _open_lock(path)
    _inherited.add(descriptor)
    try:
        with suppress(OSError):  # on a full disk the lock holds without a name
            os.ftruncate(descriptor, 0)
            os.pwrite(descriptor, f"process {os.getpid()} on {socket.gethostname()}".encode(), 0)
        yield
    finally:
        path.unlink(missing_ok=True)
        _inherited.discard(descriptor)
        os.close(descriptor)


def _open_lock(path: Path) -> int:
    """The descriptor of the lock file, locked. Raises OSError, and ConfigError naming the process that has the lock."""
    while True:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK, 0o666)
        taken = lock(descriptor)
        if taken is False:
            owner = os.pread(descriptor, 200, 0).decode(errors="replace") or "another process"
            os.close(descriptor)
            raise ConfigError(
                f"{path.parent} is in use by another run, {owner}; wait for its end, or choose another --output"
            )
        if taken is None:
            _log.warning("%s: this file system has no locks; start no second run there", path.parent)
        # The run before removes its file when it ends, perhaps after the file was opened here: then try again.
        if os.fstat(descriptor).st_nlink:
            return descriptor
        os.close(descriptor)


# Forked loader processes share the lock, and would hold it for a while after the main process was killed.
_inherited: set[int] = set()


def _close_inherited() -> None:
    for descriptor in _inherited:
        os.close(descriptor)
    _inherited.clear()


os.register_at_fork(after_in_child=_close_inherited)


def prepare_run(output: Path, config: Config, resume: str | None) -> Path | None:
    """Makes the run directory with its config.yaml. Returns the checkpoint to resume from, or None to start anew.

    resume: None refuses a directory that holds a run; 'auto' takes its newest whole checkpoint, if there is any; any
    other value is the path of a checkpoint or of a run directory with one.
    Raises ConfigError and CheckpointError naming what is in the way.
    """
    root, records = output / "checkpoints", output / "metrics.jsonl"
    if resume is None:
        # A run that failed before its first record leaves only its config and log; that is no loss.
        if checkpoints(root) or (records.exists() and records.stat().st_size > 0):
            raise ConfigError(f"{output} already holds a run; continue it with --resume, or choose another --output")
        checkpoint = None
    elif resume == "auto":
        checkpoint = newest_checkpoint(root)
    else:
        checkpoint = _named_checkpoint(Path(resume))
        _check_place(checkpoint, output)
    if checkpoint is not None:
        _check_same(read_meta(checkpoint, only=()), config, checkpoint)
    with writing(f"to the run directory {output}"):
        root.mkdir(parents=True, exist_ok=True)
        remove_leftovers(root)
        for name in (*_APPENDED, records.name):
            path = output / name
            irregular = path.exists() and not path.is_file() and not path.is_dir()  # opening a FIFO would block
            if irregular or (path.is_symlink() and name in _APPENDED):
                path.unlink()
        write_file(output / "config.yaml", dump_config(config))
    return checkpoint


def _named_checkpoint(path: Path) -> Path:
    if path.name in POINTERS:
        path = follow(path.parent, path.name) or path
    if (path / "checkpoints").is_dir():
        newest = newest_checkpoint(path / "checkpoints")
        if newest is None:
            raise CheckpointError(f"{path} holds no whole checkpoint to resume from")
        return newest
    if not path.is_dir():
        raise MissingFile(f"no checkpoint to resume from: {path} is not a checkpoint or run directory")
    read_meta(path)
    return path


def _check_place(checkpoint: Path, output: Path) -> None:
    """A run goes on in its own directory from its newest checkpoint, or in a new directory from any."""
    root = (output / "checkpoints").resolve()
    if checkpoint.resolve().parent == root:
        newest = newest_checkpoint(root)
        if newest is not None and newest.name != checkpoint.name:
            raise CheckpointError(
                f"{output} already holds a later checkpoint ({newest.name}); branch off from {checkpoint.name} with "
                "another --output, or remove the later ones"
            )
    elif checkpoints(root):
        raise CheckpointError(
            f"{output} already holds another run; choose another --output to continue {checkpoint} in"
        )


def _check_same(meta: dict[str, Any], config: Config, checkpoint: Path) -> None:
    """Raises ConfigError naming the settings in which a config differs from that of a checkpoint, if it is another run.

    A run may go on for longer. Where its data lie is no part of it: that they are the same is seen when they are read.
    Checkpoints from before data had fingerprints are held to the paths of theirs.
    """
    old = meta["config"]
    # Settings that came up since then have their defaults, which leave everything as it was.
    with suppress(ConfigError):
        old = config_from_dict(old).model_dump(mode="json")
    before, after = _flatten(old), _flatten(config.model_dump(mode="json"))
    paths = {key for key, value in _flatten(config.model_dump()).items() if isinstance(value, Path)}
    places = {key for key in paths if key.startswith("data.")} if "data" in meta else set()
    changed = [
        key
        for key in {**before, **after}
        if before.get(key) != after.get(key)
        and not key.startswith(_HARMLESS)
        and key not in places
        and not (key in _GROWING and (before.get(key) or math.inf) < (after.get(key) or 0))
    ]
    if changed:
        shown = ", ".join(f"{key} was {before.get(key)!r} and is {after.get(key)!r}" for key in changed[:_SHOWN])
        more = f" and {len(changed) - _SHOWN} more" if len(changed) > _SHOWN else ""
        raise ConfigError(
            f"{checkpoint} belongs to another config: {shown}{more}; undo this, or start a new run, with --weights to "
            "keep what was learned"
        )


def _flatten(value: Any, prefix: str = "") -> dict[str, Any]:
    if isinstance(value, dict):
        items = [(str(key), item) for key, item in value.items()]
    elif isinstance(value, (list, tuple)):
        items = [(str(index), item) for index, item in enumerate(value)]
    else:
        return {prefix: value}
    return {
        key: leaf
        for name, item in items
        for key, leaf in _flatten(item, f"{prefix}.{name}" if prefix else name).items()
    }  # fmt: skip
