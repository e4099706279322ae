"""The weight file behind what a user names: a file, a checkpoint, a run, or one of a run's pointers to a checkpoint."""

from __future__ import annotations

import logging
import os
from pathlib import Path

from piip.errors import CheckpointError, MissingFile
from piip.weights.hub import fetch, is_on_hub
from piip.weights.integrity import read_meta

# Names in the folder of a run's checkpoints that lead to one of them.
POINTERS = ("last", "best")
# The weights in a pack, beside its config.yaml.
PACKED = "model.safetensors"

_log = logging.getLogger(__name__)


def follow(root: Path, name: str) -> Path | None:
    """The checkpoint that `last` or `best` leads to, or None."""
    pointer = root / name
    if pointer.is_symlink():
        target = root / os.readlink(pointer)
    elif pointer.is_file():
        target = root / pointer.read_text(encoding="utf-8", errors="replace").strip()
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


def find_weights(path: Path) -> Path:
    """The weight file behind a file, a checkpoint directory, a run directory, a pack, or the name of one on a hub.

    A run stands for its best checkpoint (its last one where none has been evaluated), a checkpoint for the moving
    average of its weights where there is one: what was evaluated during training. Raises CheckpointError.
    """
    if is_on_hub(path):
        path = fetch(path)
    if path.name in POINTERS and path.is_file():
        path = follow(path.parent, path.name) or path
    if path.is_file():
        return path
    if not path.exists():
        raise MissingFile(f"weights not found: {path}")
    if (packed := path / PACKED).is_file() and not (path / "meta.json").exists():
        return packed
    root = path / "checkpoints" if (path / "checkpoints").is_dir() else path
    if not (root / "meta.json").exists():
        checkpoint = follow(root, "best") or follow(root, "last") or newest_checkpoint(root)
        if checkpoint is None:
            raise MissingFile(f"{path} holds no checkpoint; expected a run directory, a checkpoint or a weight file")
        root = checkpoint
    meta = read_meta(root, only=())
    settings = meta["config"].get("train")
    # Checkpoints from before there was a choice do not say whether the average or the weights were evaluated.
    evaluated = settings.get("evaluate_ema", True) if isinstance(settings, dict) else True
    name = "ema.safetensors" if evaluated and "ema.safetensors" in meta["files"] else "model.safetensors"
    read_meta(root, only=(name,))
    return root / name


def _is_whole(path: Path) -> bool:
    try:
        read_meta(path)
    except CheckpointError as error:
        _log.warning("%s; trying an earlier one", error)
        return False
    return True
