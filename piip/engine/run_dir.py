"""The run directory before the first step: is it free, is there something to resume, and is it the same run?"""

from __future__ import annotations

import logging
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
from piip.errors import CheckpointError, ConfigError, MissingFile, PiipError
from piip.files import lock, write_file
from piip.weights.find import POINTERS, checkpoints, follow, newest_checkpoint
from piip.weights.integrity import read_meta

_log = logging.getLogger(__name__)

_LOCK = ".lock"
# What is opened for appending, and so would be written through a link; other files are replaced.
_APPENDED = ("train.log", "tensorboard")

# What may differ between a run and its continuation: it changes no step.
_HARMLESS = (
    "name",
    "official",
    "published",
    "data.workers",
    "data.eval_batch_size",
    "train.eval_every",
    "train.checkpoint_every",
    "train.keep_checkpoints",
    "train.log_every",
)
_SHOWN = 4


@contextmanager
def locked(output: Path) -> Iterator[None]:
    """Holds the run directory, made if need be, for one run; its main process keeps a lock on a file in it.

    The lock ends with the process, however that ends. Raises ConfigError, on all ranks, while another run has it.
    """
    with ExitStack() as stack:
        distributed.on_main(lambda: stack.enter_context(_held(output)))
        yield


@contextmanager
def _held(output: Path) -> Iterator[None]:
    path = output / _LOCK
    try:
        output.mkdir(parents=True, exist_ok=True)
        descriptor = _open_lock(path)
    except OSError as error:
        raise PiipError(f"cannot write to the run directory {output}: {error.strerror}") from None
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
        # The run before removes its file at its end, perhaps after it was opened here.
        if os.fstat(descriptor).st_nlink:
            return descriptor
        os.close(descriptor)


# Loader processes that are forked share the lock, and would keep it for a while after the main process was killed.
_inherited: set[int] = set()


def _close_inherited() -> None:
    for descriptor in _inherited:
        os.close(descriptor)
    _inherited.clear()


os.register_at_fork(after_in_child=_close_inherited)


def prepare_run(output: Path, config: Config, resume: str | None) -> Path | None:
    """Makes the run directory with its config.yaml. Returns the checkpoint to resume from, or None to start anew.

    resume: None refuses a directory that holds a run; 'auto' takes the newest whole checkpoint in it, if there is any;
    else a checkpoint, or a run directory with one.
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
        _check_same(read_meta(checkpoint, only=())["config"], config.model_dump(mode="json"), checkpoint)
    try:
        root.mkdir(parents=True, exist_ok=True)
        remove_leftovers(root)
        for name in (*_APPENDED, records.name):
            path = output / name
            irregular = path.exists() and not path.is_file() and not path.is_dir()  # a FIFO would be waited for
            if irregular or (path.is_symlink() and name in _APPENDED):
                path.unlink()
        write_file(output / "config.yaml", dump_config(config))
    except OSError as error:
        raise PiipError(f"cannot write to the run directory {output}: {error.strerror}") from None
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


def _check_same(old: dict[str, Any], new: dict[str, Any], checkpoint: Path) -> None:
    # Settings that came up since then have their defaults, which leave everything as it was.
    with suppress(ConfigError):
        old = config_from_dict(old).model_dump(mode="json")
    before, after = _flatten(old), _flatten(new)
    keys = [key for key in {**before, **after} if not key.startswith(_HARMLESS)]
    changed = [key for key in keys if before.get(key) != after.get(key)]
    if changed:
        shown = ", ".join(f"{key} was {before.get(key)!r} and is {after.get(key)!r}" for key in changed[:_SHOWN])
        more = f" and {len(changed) - _SHOWN} more" if len(changed) > _SHOWN else ""
        raise ConfigError(f"{checkpoint} belongs to another config: {shown}{more}; undo this, or start a new run")


def _flatten(value: Any, prefix: str = "") -> dict[str, Any]:
    if isinstance(value, dict):
        items = [(str(key), item) for key, item in value.items()]
    elif isinstance(value, list):
        items = [(str(index), item) for index, item in enumerate(value)]
    else:
        return {prefix: value}
    return {
        key: leaf
        for name, item in items
        for key, leaf in _flatten(item, f"{prefix}.{name}" if prefix else name).items()
    }  # fmt: skip
