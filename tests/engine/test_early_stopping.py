"""A run that no longer gets better ends, and does not go on when it is resumed."""

from __future__ import annotations

from piip.engine.train import train
from piip.weights.find import checkpoints
from tests.engine.tiny import STEPS_PER_EPOCH, tiny_config


def steps(run) -> list[int]:
    return [int(path.name) for path in checkpoints(run / "checkpoints")]


def test_evaluations_without_a_better_one_end_the_run(tmp_path):
    # So small a rate changes no prediction: every evaluation is as good as the first.
    settings = {"schedule__epochs": 6, "train__early_stopping": 2, "train__ema": None, "optim__lr": 1e-30}
    config = tiny_config(tmp_path / "data", **settings)
    train(config, output=tmp_path / "run")
    assert max(steps(tmp_path / "run")) == 3 * STEPS_PER_EPOCH
    log = (tmp_path / "run" / "train.log").read_text()
    assert "ended early: 2 evaluations in a row are no better than box_ap" in log

    train(config, output=tmp_path / "run", resume="auto")
    assert max(steps(tmp_path / "run")) == 3 * STEPS_PER_EPOCH
    train(
        tiny_config(tmp_path / "data", **settings | {"train__early_stopping": 3}),
        output=tmp_path / "run",
        resume="auto",
    )
    assert max(steps(tmp_path / "run")) == 4 * STEPS_PER_EPOCH
