"""Processes that share a network train it as those that each have all of it."""

from __future__ import annotations

from pathlib import Path

import pytest

from piip.load import build_model
from piip.weights.files import load_weights
from tests.engine.tiny import SCRIPTS, run_python
from tests.scripts.sharded import classifier


def launch(processes: int, folder: Path, part: str) -> None:
    arguments = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"]
    run_python([*arguments, SCRIPTS / "sharded.py", folder, part], timeout=400)
    assert (folder / "done").exists()


def test_two_processes_share_networks_of_all_tasks_resume_and_compile(tmp_path: Path) -> None:
    launch(2, tmp_path, "all")
    # What a sharded run saves is a run like any other.
    config = classifier(tmp_path / "data")
    load_weights(build_model(config.model), tmp_path / "classifier_sharded")


@pytest.mark.slow
def test_two_pairs_of_processes_repeat_each_other(tmp_path: Path) -> None:
    launch(4, tmp_path, "hybrid")
