"""Checkpoints are whole or not there; weights load with errors that help."""

from __future__ import annotations

import errno
import os
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from piip.engine import checkpoint as checkpoint_module
from piip.engine.checkpoint import load_trainer_state, point, prune, read_evaluation, save_checkpoint, write_evaluation
from piip.errors import CheckpointError
from piip.weights.files import load_weights
from piip.weights.find import checkpoints, find_weights, follow, newest_checkpoint
from piip.weights.integrity import read_meta
from tests.engine.tiny import SCRIPTS, run_python

NAMES = ["cat", "dog"]


def network() -> nn.Sequential:
    return nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2))


def save(root: Path, step: int, model: nn.Module | None = None, **weights: Any) -> Path:
    state = (model or network()).state_dict()
    trainer = {"step": step, "nested": [{"x": torch.arange(3)}, None, (1, "two")]}
    return save_checkpoint(
        root, step, weights={"model": state, **weights}, trainer=trainer, config={"name": "tiny"}, class_names=NAMES
    )


def test_everything_saved_comes_back(tmp_path: Path) -> None:
    model, average, other = network(), network(), network()
    path = save(tmp_path, 7, model, ema=average.state_dict())
    assert sorted(file.name for file in path.iterdir()) == [
        "ema.safetensors", "meta.json", "model.safetensors", "trainer.pt"
    ]  # fmt: skip
    meta = read_meta(path)
    assert (meta["step"], meta["class_names"], meta["config"]) == (7, NAMES, {"name": "tiny"})
    assert (meta["torch"], set(meta["files"])) == (
        torch.__version__,
        {"ema.safetensors", "model.safetensors", "trainer.pt"},
    )
    state = load_trainer_state(path)
    assert torch.equal(state["nested"][0]["x"], torch.arange(3))
    assert state["nested"][1:] == [None, (1, "two")]
    loaded = load_weights(other, path / "model.safetensors")
    assert (loaded.class_names, loaded.step, loaded.config) == (NAMES, 7, {"name": "tiny"})
    assert all(torch.equal(a, b) for a, b in zip(other.parameters(), model.parameters(), strict=True))
    write_evaluation(path, {"ap": float("nan"), "best": 1.5})
    assert read_evaluation(path) == {"ap": None, "best": 1.5}


def test_a_run_stands_for_its_best_checkpoint_and_that_for_the_moving_average(tmp_path: Path) -> None:
    root = tmp_path / "checkpoints"
    save(root, 1, ema=network().state_dict())
    save(root, 2)
    assert find_weights(tmp_path) == root / "2" / "model.safetensors"
    point(root, "best", 1)
    assert find_weights(tmp_path) == find_weights(root) == root / "1" / "ema.safetensors"
    assert find_weights(root / "last").resolve() == (root / "2" / "model.safetensors").resolve()


def test_pointers_also_work_where_there_are_no_links(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise OSError(errno.EPERM, "no links here")

    monkeypatch.setattr(Path, "symlink_to", refuse)
    save(tmp_path, 1)
    save(tmp_path, 2)
    assert not (tmp_path / "last").is_symlink()
    assert follow(tmp_path, "last") == tmp_path / "2"
    assert find_weights(tmp_path / "last") == tmp_path / "2" / "model.safetensors"


def test_pruning_keeps_the_newest_the_best_and_the_last(tmp_path: Path) -> None:
    for step in (9, 10, 11, 100):
        save(tmp_path, step)
    point(tmp_path, "best", 9)
    (tmp_path / ".tmp-12-1").mkdir()
    prune(tmp_path, 1)
    assert [path.name for path in checkpoints(tmp_path)] == ["9", "100"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["100", "9", "best", "last"]


@pytest.mark.parametrize("name", ["model.safetensors", "trainer.pt", "meta.json"])
@pytest.mark.parametrize("damage", ["truncated", "flipped", "missing"])
def test_a_damaged_checkpoint_is_named_and_passed_over(tmp_path: Path, name: str, damage: str) -> None:
    save(tmp_path, 1)
    file = save(tmp_path, 2) / name
    data = file.read_bytes()
    if damage == "truncated":
        file.write_bytes(data[: len(data) // 2])
    elif damage == "flipped":
        file.write_bytes(data[:40] + bytes([data[40] ^ 255]) + data[41:])
    else:
        file.unlink()
    with pytest.raises(CheckpointError, match=r"2 is (damaged|not a whole checkpoint).*"):
        read_meta(tmp_path / "2")
    assert newest_checkpoint(tmp_path) == tmp_path / "1"


def test_a_full_disk_leaves_the_previous_checkpoint_and_says_so(tmp_path: Path) -> None:
    # A limit on file sizes stands in for the end of the disk: the same failing write, without the need for a small one.
    script = f"""
import resource, sys
from pathlib import Path
import torch
from piip.engine.checkpoint import save_checkpoint
from piip.errors import CheckpointError
resource.setrlimit(resource.RLIMIT_FSIZE, (400_000, 400_000))
small, large = torch.zeros(10_000), torch.zeros(1_000_000)
root = Path({str(tmp_path)!r})
save_checkpoint(root, 1, weights={{"model": {{"a": small}}}}, trainer={{"b": small}}, config={{}}, class_names=[])
for step, a, b in ((2, large, small), (3, small, large)):
    try:
        save_checkpoint(root, step, weights={{"model": {{"a": a}}}}, trainer={{"b": b}}, config={{}}, class_names=[])
        sys.exit("no error")
    except CheckpointError as error:
        assert f"cannot save checkpoint {{root}}/{{step}}" in str(error), error
        assert "MiB free); free some space" in str(error), error
        assert len(str(error)) < 500, error
"""
    run_python(["-c", script])
    assert sorted(path.name for path in tmp_path.iterdir()) == ["1", "last"]
    assert newest_checkpoint(tmp_path) == follow(tmp_path, "last") == tmp_path / "1"


def test_no_space_for_the_last_file_leaves_nothing_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save(tmp_path, 1)

    def full(*_: Any) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(checkpoint_module, "write_document", full)
    with pytest.raises(CheckpointError, match=r"cannot save checkpoint .*2: No space left on device \(\d+ MiB free\)"):
        save(tmp_path, 2)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["1", "last"]


def test_a_killed_process_leaves_whole_checkpoints(tmp_path: Path) -> None:
    words = run_python([SCRIPTS / "kill_trials.py", "20", tmp_path]).split()
    assert words[:2] == ["whole", "20"]
    # Else the kills came between the saves, and the trials show nothing.
    assert int(words[5]) >= 3


def test_a_damaged_checkpoint_of_the_same_step_is_replaced(tmp_path: Path) -> None:
    save(tmp_path, 1)
    shutil.copytree(tmp_path / "1", tmp_path / "2")
    (tmp_path / "2" / "trainer.pt").unlink()
    save(tmp_path, 2)
    assert read_meta(tmp_path / "2")["step"] == 2


def test_weights_are_those_that_training_evaluates(tmp_path: Path) -> None:
    for choice, name in ((True, "ema.safetensors"), (False, "model.safetensors")):
        weights = {"model": network().state_dict(), "ema": network().state_dict()}
        config = {"train": {"evaluate_ema": choice}}
        path = save_checkpoint(tmp_path / name, 1, weights=weights, trainer={}, config=config, class_names=NAMES)
        assert find_weights(path).name == name
