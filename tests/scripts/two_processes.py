"""What two processes must get right together; run by torchrun, with a folder to work in."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch.nn.parallel import DistributedDataParallel

from piip.config.experiment import OptimConfig
from piip.data.batch import Batch
from piip.engine import distributed
from piip.engine import train as train_module
from piip.engine.evaluate import run_evaluation
from piip.engine.step import optimizer_step
from piip.engine.train import train
from piip.errors import ConfigError, NonFiniteLoss, PiipError, Stopped
from piip.weights.find import find_weights, follow, newest_checkpoint
from tests.engine.test_step import Regression, batches
from tests.engine.test_training import assert_same_run
from tests.engine.tiny import tiny_config, tiny_segmentation_config


def same_on_all(value: Any) -> None:
    values = distributed.gather(value)
    assert all(other == values[0] for other in values), values


def a_step(model: Regression, data: Iterator[Batch], accumulate: int = 1) -> None:
    wrapped = DistributedDataParallel(model)
    optimizer_step(
        wrapped,
        torch.optim.SGD(model.parameters(), lr=1.0, fused=True),
        data,
        config=OptimConfig(accumulate=accumulate),
        device=torch.device("cpu"),
        precision="fp32",
        signal=0,
    ).result()


def check_collectives(folder: Path) -> None:
    rank = distributed.rank()
    assert distributed.gather(rank) == [0, 1]
    assert distributed.minimum_(torch.tensor([1.0 + rank, -rank])).tolist() == [1.0, -1.0]
    assert distributed.largest(7 * rank) == 7
    assert distributed.mean_(torch.tensor([float(rank)])).item() == 0.5
    assert distributed.on_main(lambda: os.getpid()) == distributed.gather(os.getpid())[0]

    def fail() -> None:
        raise ConfigError("told to all")

    with pytest.raises(ConfigError, match="told to all"):
        distributed.on_main(fail)
    with pytest.raises((ZeroDivisionError, PiipError)):
        distributed.on_main(lambda: 1 / 0)

    file = folder / "cache"
    with distributed.main_process_first():
        if not file.exists():
            assert distributed.is_main()
            file.write_text("written once")

    def fail_first() -> None:
        with distributed.main_process_first():
            raise ValueError

    with pytest.raises(ValueError if distributed.is_main() else PiipError):
        fail_first()


def check_steps() -> None:
    rank = distributed.rank()
    model, alone = Regression(), Regression()
    # Four passes over the world, against one large batch in one process.
    a_step(model, batches([rank], [2 + rank]), accumulate=2)
    alone_optimizer = torch.optim.SGD(alone.parameters(), lr=1.0)
    sum(alone(next(batches([0, 1, 2, 3]))).values()).backward()
    alone_optimizer.step()
    torch.testing.assert_close(model.linear.weight, alone.linear.weight)
    same_on_all(model.linear.weight.tolist())

    # Only one rank sees the bad image; both stop, with the same message, and neither changes a weight.
    model, start = Regression(), Regression()
    with pytest.raises(NonFiniteLoss) as caught:
        a_step(model, batches([13] if rank else [1]))
    same_on_all(str(caught.value))
    assert "rank 1: square" in str(caught.value)
    assert "on the images 13" in str(caught.value)
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), start.parameters(), strict=True))


def check_training(folder: Path, data: Path) -> None:
    # With steps that are read when the next one is computed, and a record of steps before and after the interruption.
    config = tiny_config(data, train__log_every=2)
    metrics = train(config, output=folder / "whole")
    same_on_all(metrics)

    # One rank alone is told to stop; both do, at the same step, and the run goes on as if nothing had happened.
    original: Callable[..., Any] = train_module.optimizer_step
    calls: list[int] = []

    def step(*args: Any, **kwargs: Any) -> Any:
        calls.append(1)
        if len(calls) == 4 and distributed.rank() == 1:
            os.kill(os.getpid(), signal.SIGTERM)
        return original(*args, **kwargs)

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(train_module, "optimizer_step", step)
        with pytest.raises(Stopped):
            train(config, output=folder / "stopped")
    newest = newest_checkpoint(folder / "stopped" / "checkpoints")
    assert newest is not None
    assert newest.name in ("4", "5")
    distributed.gather(None)
    train(config, output=folder / "stopped", resume="auto")
    if distributed.is_main():
        assert_same_run(folder / "whole", folder / "stopped")
    # A user's mistake is told by both, and none waits for the other.
    with pytest.raises(ConfigError, match="already holds a run"):
        train(config, output=folder / "whole")


def check_batch_norm(folder: Path, data: Path) -> None:
    """The ranks' batch norms have seen other images, but all evaluate what the main process saves."""
    # Four images a step are two a rank, the fewest for the mean over a map.
    config = tiny_segmentation_config(data, data__batch_size=4, schedule__epochs=3)
    metrics = train(config, output=folder / "normed")
    same_on_all(metrics)
    last = follow(folder / "normed" / "checkpoints", "last")
    assert last is not None
    assert run_evaluation(config, weights=last).metrics == metrics


def check_freezing(folder: Path, data: Path) -> None:
    """Parts that do not train have no gradients to exchange, and keep every bit."""
    config = tiny_config(data, schedule__epochs=1, train={"freeze": ["backbone.branches.0", "head.rpn"]})
    train(config, output=folder / "frozen", weights=folder / "whole")
    start, end = (load_file(find_weights(folder / name)) for name in ("whole", "frozen"))
    same = {name for name in start if torch.equal(start[name], end[name])}
    assert same >= {name for name in start if name.startswith(("backbone.branches.0.", "head.rpn."))}
    assert "backbone.branches.1.patch_embed.proj.weight" not in same


def check_evaluation(folder: Path, data: Path) -> None:
    for images in (1, 2, 3):
        config = tiny_config(
            data, data__val={"type": "shapes", "root": str(data), "split": "val", "images": images, "size": 64}
        )
        if images == 2:  # of which the only one of the second process cannot be read
            with distributed.main_process_first():
                dataset = config.data.val.build(training=False)
                (dataset.folder / dataset.record(1).file_name).write_bytes(b"damaged")
        found = run_evaluation(config, weights=folder / "whole", output=folder / f"two_{images}")
        same_on_all((found.metrics, found.tables))


def main(folder: Path, data: Path) -> None:
    with distributed.session("cpu"):
        assert distributed.world_size() == 2
        check_collectives(folder)
        check_steps()
        check_training(folder, data)
        check_batch_norm(folder, data)
        check_freezing(folder, data)
        check_evaluation(folder, data)
        distributed.gather(None)
        if distributed.is_main():
            (folder / "done").touch()


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
