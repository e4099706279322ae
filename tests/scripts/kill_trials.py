"""Kills a process at random moments while it saves checkpoints, and looks at what is left each time.

Run as a script: `python kill_trials.py TRIALS FOLDER`. Prints how many trials left a whole `last`, and, for comparison,
how many left a readable file where a process writes over one file with torch.save.
"""

from __future__ import annotations

import os
import random
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch

from piip.engine.checkpoint import load_trainer_state, point, prune, save_checkpoint
from piip.weights.files import read_weights
from piip.weights.find import checkpoints, find_weights, follow
from piip.weights.integrity import read_meta

SIZE = 500_000


def save_ours(root: Path, step: int) -> None:
    weights = {"model": {"a": torch.full((SIZE,), float(step))}}
    save_checkpoint(
        root, step, weights=weights, trainer={"step": step, "b": torch.ones(SIZE)}, config={}, class_names=[]
    )
    if step % 3 == 0:
        point(root, "best", step)
    prune(root, 2)


def save_naively(root: Path, step: int) -> None:
    root.mkdir(exist_ok=True)
    torch.save({"step": step, "a": torch.full((SIZE,), float(step)), "b": torch.ones(SIZE)}, root / "last.pt")


def kill_while_saving(save: Callable[[Path, int], None], root: Path, first: int, delay: float) -> None:
    """Forks a process that saves without end, and kills it `delay` seconds after its first save was finished."""
    ready, written = os.pipe()
    child = os.fork()
    if child == 0:
        save(root, first)
        os.write(written, b"!")
        step = first
        while True:
            step += 1
            save(root, step)
    os.read(ready, 1)
    time.sleep(delay)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    os.close(ready)
    os.close(written)


def look_at_ours(root: Path) -> int:
    """Checks everything under a valid name, and returns the step of `last`."""
    for path in checkpoints(root):
        read_meta(path)
    for name in ("last", "best"):
        checkpoint = follow(root, name)
        if checkpoint is not None:
            state, loaded = read_weights(find_weights(root / name))
            assert loaded.step == int(checkpoint.name)
            assert torch.equal(state["a"], torch.full((SIZE,), float(checkpoint.name)))
            assert load_trainer_state(checkpoint)["step"] == int(checkpoint.name)
    last = follow(root, "last")
    assert last is not None
    return int(last.name)


def main(trials: int, folder: Path) -> None:
    torch.set_num_threads(1)
    generator = random.Random(0)
    whole = naive = leftovers = 0
    step = 1
    for _ in range(trials):
        delay = generator.uniform(0.0, 0.06)
        kill_while_saving(save_ours, folder / "checkpoints", step, delay)
        leftovers += any((folder / "checkpoints").glob(".tmp-*"))
        step = look_at_ours(folder / "checkpoints") + 1
        whole += 1
        kill_while_saving(save_naively, folder / "naive", step, delay)
        try:
            torch.load(folder / "naive" / "last.pt", weights_only=True)
            naive += 1
        except (RuntimeError, OSError, EOFError):
            pass
    print(f"whole {whole} naive {naive} interrupted {leftovers} of {trials}")  # noqa: T201


if __name__ == "__main__":
    main(int(sys.argv[1]), Path(sys.argv[2]))
