"""However a run of two processes ends, so do the threads of its process group; takes a folder to work in."""

from __future__ import annotations

import gc
import os
import signal
import socket
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from piip.config.experiment import Config
from piip.engine import state, train
from piip.engine.evaluate import run_evaluation
from piip.errors import CheckpointError, NonFiniteLoss, PiipError, Stopped
from piip.model import Model
from tests.engine.tiny import tiny_config


def end(config: Config, folder: Path) -> None:
    train.train(config, output=folder / "end")


def evaluation(config: Config, folder: Path) -> None:
    run_evaluation(config, weights=folder / "end")


def in_step(number: int, act: Callable[[dict[str, Any]], object]) -> None:
    """Lets something happen to the losses of a step, counted from 1."""
    forward, calls = Model.forward, []

    def patched(model: Model, batch: Any) -> Any:
        calls.append(1)
        losses = forward(model, batch)
        if len(calls) == number:
            act(losses)
        return losses

    Model.forward = patched


def stop(config: Config, folder: Path) -> None:
    in_step(2, lambda _: os.kill(os.getpid(), signal.SIGTERM))
    train.train(config, output=folder / "stop")


def bad_loss(config: Config, folder: Path) -> None:
    in_step(2, lambda losses: losses.update(loss_cls=losses["loss_cls"] * float("nan")))
    train.train(config, output=folder / "bad_loss")


def broken_step(config: Config, folder: Path) -> None:
    in_step(2, lambda losses: losses["no such loss"])
    train.train(config, output=folder / "broken_step")


def lost_rank(config: Config, folder: Path) -> None:
    if os.environ["RANK"] == "1":
        in_step(2, lambda _: os._exit(0))
    train.train(config, output=folder / "lost_rank")


def full_disk(config: Config, folder: Path) -> None:
    def save(*_: object, **__: object) -> None:
        raise CheckpointError("full")

    state.save_checkpoint = save
    train.train(config, output=folder / "full_disk")


ENDS: dict[Callable[[Config, Path], None], type[Exception] | type[None]] = {
    end: type(None),
    evaluation: type(None),
    stop: Stopped,
    bad_loss: NonFiniteLoss,
    broken_step: KeyError,
    lost_rank: PiipError,
    full_disk: CheckpointError,
}


def threads_of_gloo() -> int:
    return sum("gloo" in task.read_text() for task in Path("/proc/self/task").glob("*/comm"))


def run(way: Callable[[Config, Path], None], config: Config, folder: Path, rank: int, port: int) -> None:
    os.environ.update(RANK=str(rank), WORLD_SIZE="2", MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    error: Exception | None = None
    try:
        way(config, folder)
    except Exception as caught:
        error = caught  # kept, as the command line keeps it until it has told it
    assert isinstance(error, ENDS[way]), repr(error)
    assert threads_of_gloo() == 0


def main(folder: Path) -> None:
    config = tiny_config(folder / "data", train__log_every=5)
    gc.disable()
    for way in ENDS:
        with socket.create_server(("127.0.0.1", 0)) as server:
            port = server.getsockname()[1]
        children = []
        for rank in range(2):
            if (child := os.fork()) == 0:
                run(way, config, folder, rank, port)
                os._exit(0)
            children.append(child)
        codes = [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]
        assert codes == [0, 0], (way.__name__, codes)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
