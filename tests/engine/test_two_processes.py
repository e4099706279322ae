"""Two processes under torchrun do what one does."""

from __future__ import annotations

import json
from pathlib import Path

from piip.engine.evaluate import run_evaluation
from tests.engine.tiny import SCRIPTS, run_python, tiny_config


def test_two_processes_train_evaluate_stop_and_resume_as_one(tmp_path: Path) -> None:
    data = tmp_path / "data"
    arguments = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    run_python([*arguments, SCRIPTS / "two_processes.py", tmp_path, data], timeout=300)
    assert (tmp_path / "done").exists()
    # One image leaves a rank without any, as do two of which one cannot be read; three are divided unevenly.
    for images in (1, 2, 3):
        val = {"type": "shapes", "root": str(data), "split": "val", "images": images, "size": 64}
        config, output = tiny_config(data, data__val=val), tmp_path / f"one_{images}"
        alone = run_evaluation(config, weights=tmp_path / "whole", output=output).metrics
        report = json.loads((tmp_path / f"two_{images}" / "metrics.json").read_text())
        assert report["metrics"] == alone
        assert report["images"] == images
        assert len(report["unread"]) == (images == 2)
        assert report["details"] == json.loads((output / "metrics.json").read_text())["details"]
        lines = (tmp_path / f"two_{images}" / "images.jsonl").read_text()
        assert lines == (output / "images.jsonl").read_text()
        assert len(lines.splitlines()) == images


def test_no_thread_of_a_process_group_outlives_its_run_however_that_ends(tmp_path: Path) -> None:
    run_python([SCRIPTS / "ends_of_groups.py", tmp_path])
