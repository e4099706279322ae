"""Records survive kills and resumptions, and become curves."""

from __future__ import annotations

import io
import json
import logging
import math
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from rich.console import Console
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from piip.engine.log import Bar, JsonLines, RunLog, logging_to
from piip.engine.run_dir import prepare_run
from tests.engine.tiny import environment, tiny_config


def train_record(step: int, loss: float = 1.0) -> dict[str, Any]:
    return {
        "step": step,
        "epoch": step / 10,
        "lr": 1e-4,
        "loss": loss,
        "losses": {"a": loss / 4, "b": loss * 3 / 4},
        "grad_norm": 2.0,
        "time": 0.1,
        "data_time": 0.01,
        "memory_mib": 100,
    }


def eval_record(step: int) -> dict[str, Any]:
    return {"step": step, "epoch": step / 10, "metrics": {"ap": 0.5, "small": None}, "seconds": 3.0}


def read(path: Path) -> list[tuple[str, int]]:
    records = [json.loads(line) for line in path.read_text().splitlines()]
    return [(record["event"], record["step"]) for record in records]


def test_a_record_is_in_the_file_at_once_and_whole(tmp_path: Path) -> None:
    lines = JsonLines(tmp_path / "x.jsonl", keep=lambda _: True)
    lines.write({"event": "train", "step": 1, "loss": math.nan})
    assert (tmp_path / "x.jsonl").read_text() == '{"event": "train", "step": 1, "loss": null}\n'
    lines.close()


@pytest.mark.parametrize("evaluated", [True, False])
def test_resuming_drops_damaged_lines_and_what_came_after_the_checkpoint(tmp_path: Path, evaluated: bool) -> None:
    log = RunLog(tmp_path)
    for step in (1, 2, 3):
        log.train(train_record(step))
        log.evaluation(eval_record(step))
    log.close()
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('17\n{"event": "train"}\n{"event": "train", "st')
    log = RunLog(tmp_path, resumed_step=2, evaluated=evaluated)
    log.train(train_record(3))
    log.close()
    kept = [("train", 1), ("eval", 1), ("train", 2), ("eval", 2)][: 4 if evaluated else 3]
    assert read(tmp_path / "metrics.jsonl") == [*kept, ("train", 3)]


def test_a_new_run_starts_with_an_empty_file(tmp_path: Path) -> None:
    for _ in range(2):
        log = RunLog(tmp_path)
        log.train(train_record(1))
        log.close()
    assert read(tmp_path / "metrics.jsonl") == [("train", 1)]


def test_tensorboard_gets_the_same_numbers(tmp_path: Path) -> None:
    log = RunLog(tmp_path)
    log.train(train_record(1, loss=4.0))
    log.evaluation(eval_record(1))
    log.close()
    events = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    found = {tag: events.Scalars(tag)[0].value for tag in events.Tags()["scalars"]}
    assert found["train/loss"] == 4.0
    assert found["losses/b"] == 3.0
    assert found["metrics/ap"] == 0.5


def test_curves_are_drawn_from_the_records_also_when_there_are_none(tmp_path: Path) -> None:
    log = RunLog(tmp_path)
    log.draw()
    empty = Image.open(tmp_path / "curves.png").convert("RGB")
    for step in range(1, 30):
        log.train(train_record(step, loss=5 / step))
    log.evaluation(eval_record(29))
    log.draw()
    log.close()
    drawn = Image.open(tmp_path / "curves.png").convert("RGB")
    assert drawn.size == empty.size
    assert drawn.width >= 1200
    # The line of the first panel, in its colour, which an empty picture does not have.
    colour = (0x33, 0x66, 0xCC)
    counts = [(np.asarray(image) == colour).all(axis=2).sum() for image in (empty, drawn)]
    assert counts[0] == 0
    assert counts[1] > 300


def test_the_bar_is_shown_on_terminals_only() -> None:
    for terminal in (True, False):
        output = io.StringIO()
        console = Console(file=output, force_terminal=terminal, width=100)
        with Bar(console, "training", total=3, done=1) as bar:
            bar.advance(note="loss 0.5")
            with bar.paused(), Bar(console, "evaluating", total=1) as inner:
                inner.advance()
        shown = output.getvalue()
        assert ("2/3" in shown and "loss 0.5" in shown and "evaluating" in shown) == terminal
        assert bool(shown) == terminal


def test_without_a_terminal_a_line_every_half_minute_says_how_far_it_is_and_what_is_left(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    caplog.set_level(logging.INFO, "piip")
    now = 1000.0
    monkeypatch.setattr("piip.engine.log.time.monotonic", lambda: now)
    with Bar(Console(file=io.StringIO()), "predicting", total=100, unit="images") as bar:
        for _ in range(80):
            now += 0.5
            bar.advance()
        assert bar.left() == "10 s"
    assert caplog.messages == ["predicting: 60 of 100 images, 20 s left"]
    for total, words in ((1000, "8 min"), (100_000, "13 h 53 min")):
        long = Bar(None, "training", total=total, done=10)
        now += 0.5
        long.advance()
        assert long.left() == words


def test_a_line_of_training_says_how_long_the_rest_takes(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "piip")
    log = RunLog(tmp_path)
    log.train(train_record(1), left="12 min")
    log.close()
    assert caplog.messages[-1].endswith(" 100 MiB, 12 min left")


def test_messages_go_to_stderr_and_to_the_file_and_handlers_do_not_stay(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    logger = logging.getLogger("piip.somewhere")
    before = list(logging.getLogger("piip").handlers)
    with logging_to(tmp_path / "train.log"):
        logger.info("hello [bracket]")
        logger.error("the end", extra={"at_end": True})
    logger.info("not heard")
    assert logging.getLogger("piip").handlers == before
    out, err = capsys.readouterr()
    assert out == ""
    assert "hello [bracket]" in err
    assert "the end" not in err
    text = (tmp_path / "train.log").read_text()
    assert "hello [bracket]" in text
    assert "ERROR the end" in text
    assert "not heard" not in text


def test_links_in_a_run_directory_are_not_written_through(tmp_path: Path) -> None:
    run, elsewhere = tmp_path / "run", tmp_path / "elsewhere"
    run.mkdir()
    elsewhere.mkdir()
    (elsewhere / "victim").write_text("precious")
    for name in ("train.log", "metrics.jsonl", "curves.png", "config.yaml"):
        (run / name).symlink_to(elsewhere / "victim")
    (run / "tensorboard").symlink_to(elsewhere)
    with pytest.raises(OSError, match=r"train\.log"), logging_to(run / "train.log"):
        pass
    prepare_run(run, tiny_config(tmp_path / "data"), "auto")
    with logging_to(run / "train.log"):
        logging.getLogger("piip").warning("hello")
        log = RunLog(run)
        log.train(train_record(1))
        log.draw()
        log.close()
    assert [path.name for path in elsewhere.iterdir()] == ["victim"]
    assert (elsewhere / "victim").read_text() == "precious"
    assert not any(path.is_symlink() for path in run.iterdir())
    assert "hello" in (run / "train.log").read_text()


def test_fifos_in_a_run_directory_are_not_waited_for(tmp_path: Path) -> None:
    for name in ("train.log", "metrics.jsonl", "config.yaml"):
        os.mkfifo(tmp_path / name)
    prepare_run(tmp_path, tiny_config(tmp_path / "data"), None)
    with logging_to(tmp_path / "train.log"):
        log = RunLog(tmp_path)
        log.train(train_record(1))
        log.close()
    assert all((tmp_path / name).is_file() for name in ("train.log", "metrics.jsonl", "config.yaml"))


def test_a_full_disk_is_one_message_with_the_remedy_and_no_traceback(tmp_path: Path) -> None:
    # A limit on file sizes stands in for the end of the disk; 50 bytes are less than TensorBoard's first record.
    script = f"""
import resource, signal
from pathlib import Path
from piip.engine.log import RunLog, logging_to
from piip.errors import PiipError
import torch.utils.tensorboard
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (50, 50))
with logging_to(Path({str(tmp_path / "train.log")!r})):
    import logging
    for _ in range(5):
        logging.getLogger("piip").info("x" * 40)
    try:
        RunLog(Path({str(tmp_path)!r}))
    except PiipError as error:
        print(error)
"""
    done = subprocess.run([sys.executable, "-c", script], env=environment(), capture_output=True, text=True, check=True)
    assert done.stdout.startswith(f"cannot write to the run directory {tmp_path}: File too large (")
    assert "free some space and continue with --resume" in done.stdout
    assert "Traceback" not in done.stderr
