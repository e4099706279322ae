"""Training whose batches do not come: it ends with a word, as it was asked to, and leaves no process behind."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import yaml

from piip.config.experiment import Config
from piip.data.batch import Batch
from piip.data.loader import Loader
from piip.engine.train import train
from piip.errors import Stopped
from piip.weights.find import checkpoints
from tests.engine.test_training import assert_same_run, wait_for
from tests.engine.tiny import environment, tiny_config

# Loader processes that never come to the second epoch.
STUCK = """
import sys
import time
from pathlib import Path
from piip.config.load import load_config
from piip.data.samples import Samples
from piip.engine.train import train
from piip.errors import PiipError

original = Samples.__getitem__

def get(samples, key):
    if key[0] == 1:
        time.sleep(1e6)
    return original(samples, key)

Samples.__getitem__ = get
try:
    train(load_config(sys.argv[1]), output=Path(sys.argv[2]))
except PiipError as error:
    print(error, file=sys.stderr)
    sys.exit(error.exit_code)
"""


def write(config: Config, path: Path) -> Path:
    path.write_text(yaml.safe_dump(config.model_dump(mode="json")))
    return path


def never_saved(root: Path, **changes: Any) -> Config:
    """Two epochs of three steps, the first of which ends without a checkpoint."""
    return tiny_config(root, data__workers=1, train__eval_every=9, train__checkpoint_every=9, **changes)


def start(config: Path, output: Path) -> subprocess.Popen[str]:
    """Trains until the second epoch, and waits for it."""
    process = subprocess.Popen(
        [sys.executable, "-c", STUCK, config, output],
        env=environment(), stderr=subprocess.PIPE, text=True, start_new_session=True,
    )  # fmt: skip
    records = output / "metrics.jsonl"
    wait_for(lambda: records.exists() and records.read_text().count('"train"') == 3, process)
    time.sleep(0.3)
    return process


def assert_gone(process: subprocess.Popen[str]) -> None:
    """No process of its group is left, such as a loader."""
    with pytest.raises(ProcessLookupError):
        os.killpg(process.pid, 0)


def test_a_run_terminated_while_it_waits_for_data_is_saved_and_continues_bit_for_bit(tmp_path: Path) -> None:
    config = never_saved(tmp_path / "data")
    train(config, output=tmp_path / "whole")
    process = start(write(config, tmp_path / "config.yaml"), tmp_path / "run")
    os.killpg(process.pid, signal.SIGTERM)
    _, message = process.communicate(timeout=60)
    assert process.returncode == 75, message
    assert "stopped at step 3 of 6; saved" in message
    assert_gone(process)
    assert [path.name for path in checkpoints(tmp_path / "run" / "checkpoints")] == ["3"]
    train(config, output=tmp_path / "run", resume="auto")
    assert_same_run(tmp_path / "whole", tmp_path / "run")


@pytest.mark.parametrize(
    ("accumulate", "waits", "message"),
    [
        (1, 1, "stopped at step 0 of 6; saved .*/0, go on with --resume"),
        (2, 2, "stopped at step 0 of 6, within a step; nothing was saved yet, start again"),
        (2, 3, "stopped at step 1 of 6; saved .*/1, go on with --resume"),
        (2, 8, "stopped at step 3 of 6, within a step; go on from .*/2 with --resume"),
    ],
)
def test_a_step_that_has_begun_is_not_saved_while_it_waits_for_more_data(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, accumulate: int, waits: int, message: str
) -> None:
    """Its passes have changed batch norms and drawn random numbers: a resumed run would not take the step it was."""
    original, waited = Loader._next, []

    def wait(loader: Loader) -> Batch | None:
        waited.append(1)
        if len(waited) == waits:
            signal.raise_signal(signal.SIGTERM)
            assert loader._check is not None
            loader._check()
        return original(loader)

    monkeypatch.setattr(Loader, "_next", wait)
    config = tiny_config(
        tmp_path / "data", optim__accumulate=accumulate, train={"eval_every": 9, "checkpoint_every": 2},
        schedule={"iterations": 6},
    )  # fmt: skip
    with pytest.raises(Stopped, match=message):
        train(config, output=tmp_path / "run")


def test_the_death_of_a_loader_that_is_waited_for_is_told(tmp_path: Path) -> None:
    process = start(write(never_saved(tmp_path / "data"), tmp_path / "config.yaml"), tmp_path / "run")
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    assert len(children) == 1
    os.kill(int(children[0]), signal.SIGKILL)
    _, message = process.communicate(timeout=60)
    assert process.returncode == 1, message
    assert "a data loader process died" in message
    assert_gone(process)


@pytest.mark.parametrize(
    ("size", "message"),
    [
        ("400k", r"a data loader process died (a batch of 1."),
        ("48k", "cannot start 2 data loader processes: No space left on device; lower data.workers"),
    ],
)
def test_too_little_shared_memory_is_told(tmp_path: Path, size: str, message: str) -> None:
    large = {"type": "detection", "resize": [[384, 384]]}
    config = tiny_config(tmp_path / "data", data__workers=2, data__batch_size=3, data__train_transforms=large)
    mount = f'mount -t tmpfs -o size={size} tmpfs /dev/shm || exit 99; exec "$@"'
    train_it = [
        sys.executable,
        "-m",
        "piip",
        "train",
        write(config, tmp_path / "config.yaml"),
        "--output",
        tmp_path / "run",
    ]
    process = subprocess.Popen(
        ["unshare", "-m", "sh", "-c", mount, "sh", *train_it],
        env=environment(), stderr=subprocess.PIPE, text=True, start_new_session=True,
    )  # fmt: skip
    _, errors = process.communicate(timeout=60)
    if process.returncode == 99 or "unshare" in errors:
        pytest.skip("needs the right to mount")
    assert process.returncode == 1, errors
    assert message in errors
    assert "Traceback" not in errors
    assert_gone(process)
