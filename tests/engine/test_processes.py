"""What whole processes do to one another: a second start, a signal before the first step, a rank that dies, a kill."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from piip.config.load import dump_config, load_config
from piip.data.sets.shapes.config import ShapesData
from piip.engine import distributed
from piip.engine.run_dir import locked
from piip.engine.state import RunState
from piip.engine.train import train
from piip.errors import ConfigError, PiipError, Stopped
from piip.signals import StopSignals
from piip.weights.find import checkpoints
from tests.engine.tiny import environment, tiny_config


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that would go on for long."""
    folder = tmp_path_factory.mktemp("config")
    file = folder / "tiny.yaml"
    file.write_text(dump_config(tiny_config(folder / "data", schedule={"epochs": 10_000}, train__ema=None)))
    return file


@contextmanager
def piip(*arguments: object, **variables: str) -> Iterator[subprocess.Popen[str]]:
    """The command in a process of its own, which does not outlive the block."""
    command = [sys.executable, "-m", "piip", *map(str, arguments)]
    process = subprocess.Popen(
        command, env=environment() | variables, text=True, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE
    )
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


def wait_for(condition: Callable[[], bool], process: subprocess.Popen[str]) -> None:
    end = time.monotonic() + 90
    while not condition():
        assert process.poll() is None, process.communicate()[1]
        assert time.monotonic() < end
        time.sleep(0.02)


def contents(folder: Path) -> dict[str, bytes]:
    """Of what a run does not change while it goes on between two of its saves."""
    return {name: (folder / name).read_bytes() for name in ("config.yaml", ".lock")}


def test_a_second_start_is_refused_and_the_first_run_goes_on(config: Path, tmp_path: Path) -> None:
    with piip("train", config, "--output", tmp_path) as first:
        wait_for((tmp_path / "checkpoints" / "last").exists, first)
        before = contents(tmp_path)
        owner = f"{tmp_path} is in use by another run, process {first.pid} on {socket.gethostname()}"
        for resume in (None, "auto"):
            with pytest.raises(ConfigError, match=re.escape(owner)):
                train(load_config(config, ["optim.lr=1"]), output=tmp_path, resume=resume)
        assert contents(tmp_path) == before
        last = os.readlink(tmp_path / "checkpoints" / "last")
        wait_for(lambda: os.readlink(tmp_path / "checkpoints" / "last") != last, first)
        first.send_signal(signal.SIGTERM)
        assert first.wait(timeout=60) == 75
    assert not (tmp_path / ".lock").exists()


def test_the_lock_of_a_killed_run_is_free_at_once_though_its_loaders_are_still_there(
    config: Path, tmp_path: Path
) -> None:
    with piip("train", config, "data.workers=2", "--output", tmp_path) as first:
        wait_for((tmp_path / "metrics.jsonl").exists, first)
        wait_for(lambda: (tmp_path / "metrics.jsonl").stat().st_size > 0, first)
        first.kill()
        first.wait()
    assert (tmp_path / ".lock").exists()
    with locked(tmp_path):
        assert str(os.getpid()) in (tmp_path / ".lock").read_text()
    assert not (tmp_path / ".lock").exists()


def test_a_file_system_without_locks_is_said_and_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("piip.engine.run_dir.lock", lambda _: None)
    with locked(tmp_path), locked(tmp_path):
        pass
    assert "this file system has no locks" in caplog.text


def test_a_lock_held_elsewhere_is_refused_on_every_way_in(tmp_path: Path) -> None:
    with locked(tmp_path / "run"), pytest.raises(ConfigError, match="in use by another run"), locked(tmp_path / "run"):
        pass
    (tmp_path / "victim").write_text("precious")
    (tmp_path / ".lock").symlink_to("victim")
    with pytest.raises(PiipError, match="cannot write to the run directory"), locked(tmp_path):
        pass
    assert (tmp_path / "victim").read_text() == "precious"


def test_a_signal_while_data_are_drawn_ends_the_run_and_leaves_no_half_set(config: Path, tmp_path: Path) -> None:
    root = tmp_path / "data"
    data = f"data.train={{type: shapes, root: {root}, split: train, images: 100000, size: 128}}"
    with piip("train", config, data, "--output", tmp_path / "run") as process:
        wait_for(lambda: root.exists() and any(root.rglob("*.jpg")), process)
        process.send_signal(signal.SIGTERM)
        message = process.communicate(timeout=30)[1]
    assert process.returncode == 75
    assert "stopped before the first step" in message
    assert "Traceback" not in message
    assert list(root.iterdir()) == []


@pytest.mark.parametrize("form", ["instances", "label_maps", "crops"])
@pytest.mark.parametrize(("number", "kind"), [(signal.SIGTERM, Stopped), (signal.SIGINT, KeyboardInterrupt)])
def test_every_form_of_drawn_data_looks_for_signals_between_images(
    tmp_path: Path, form: str, number: signal.Signals, kind: type[BaseException]
) -> None:
    data = ShapesData(root=tmp_path, form=form, images=1000, size=64)
    alarm = threading.Timer(0.3, os.kill, (os.getpid(), number))
    alarm.start()
    with StopSignals(), pytest.raises(kind, match="stopped before the first step"):
        data.build(training=True)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("number", "kind"), [(signal.SIGTERM, Stopped), (signal.SIGINT, KeyboardInterrupt)])
def test_a_signal_while_the_model_is_built_ends_the_run_before_its_first_step(
    config: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: signal.Signals, kind: type[BaseException]
) -> None:
    monkeypatch.setattr(RunState, "start", lambda *_, **__: os.kill(os.getpid(), number))
    with pytest.raises(kind, match="stopped before the first step; nothing was saved"):
        train(load_config(config), output=tmp_path)
    assert checkpoints(tmp_path / "checkpoints") == []
    assert "stopped before the first step" in (tmp_path / "train.log").read_text()


def test_a_rank_that_dies_is_named_by_the_others_with_what_to_do(config: Path, tmp_path: Path) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    common = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    arguments = ("train", config, "--output", tmp_path)
    with (
        piip(*arguments, **common, RANK="0", LOCAL_RANK="0") as main,
        piip(*arguments, **common, RANK="1", LOCAL_RANK="1") as other,
    ):
        wait_for((tmp_path / "checkpoints" / "last").exists, main)
        other.kill()
        message = main.communicate(timeout=60)[1]
    assert main.returncode == 1
    assert "another process of this run died; see what that process printed" in message
    assert "--resume" in message
    assert "gloo" not in message
    assert "unexpected" not in message
    assert "another process of this run died" in (tmp_path / "train.log").read_text()


def test_other_errors_are_not_taken_for_a_dead_rank(monkeypatch: pytest.MonkeyPatch) -> None:
    lost = RuntimeError("[/pytorch/third_party/gloo/gloo/transport/tcp/pair.cc:534] Connection closed by peer")
    assert distributed.explain_lost_process(lost) is None  # there is no other
    monkeypatch.setattr(distributed, "world_size", lambda: 2)
    assert distributed.explain_lost_process(lost) is not None
    assert distributed.explain_lost_process(RuntimeError("shape mismatch")) is None
