"""`piip data check`, `piip init` and `--data`, as they are typed."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from piip.config.load import load_config
from tests.data.exports import coco, save_images
from tests.data.test_find import coco_alone, coco_roboflow, folders_alone, maps_alone, yolo


def run(*arguments: object, code: int = 0) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "piip", *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == code, done.stderr
    assert "Traceback" not in done.stderr
    return done


def test_sound_data_end_with_0_and_others_with_3_and_one_document(tmp_path: Path) -> None:
    coco_roboflow(tmp_path / "sound")
    assert "nothing found" in run("data", "check", tmp_path / "sound").stdout
    data = coco(save_images(tmp_path / "photos", 2))
    data["annotations"][0]["id"] = data["annotations"][1]["id"]
    (tmp_path / "train.json").write_text(json.dumps(data))
    done = run("data", "check", tmp_path / "train.json", "--json", "--repair", tmp_path / "clean.json", code=3)
    document = json.loads(done.stdout)
    assert document["ok"] is False
    assert document["splits"][0]["findings"] == [
        {
            "kind": "annotation id that repeats numbered anew",
            "effect": "repaired",
            "count": 1,
            "examples": ["annotation number 2"],
        }
    ]
    assert document["repaired"][1].strip() == "repaired: 1 x annotation id that repeats numbered anew"
    run("data", "check", tmp_path / "clean.json", "--images", tmp_path / "photos")


def test_data_are_checked_without_torch(tmp_path: Path) -> None:
    coco_roboflow(tmp_path)
    code = f"from piip.cli.main import app; app(['data', 'check', {str(tmp_path)!r}], standalone_mode=False)"
    subprocess.run([sys.executable, "-c", f"{code}; import sys; assert 'torch' not in sys.modules"], check=True)


@pytest.mark.parametrize("write", [coco_alone, yolo, maps_alone, folders_alone])
def test_init_writes_a_config_that_loads_and_finds_its_data(tmp_path: Path, write: object) -> None:
    write(tmp_path / "photos")  # type: ignore[operator]
    file = tmp_path / "mine.yaml"
    assert "piip train" in run("init", tmp_path / "photos", "--output", file).stdout
    config = load_config(file)
    assert config.model.head.num_classes == 2
    config.data.train.check_files("data.train")
    assert len(config.data.train.build(training=True)) >= 2
    assert "exists; choose another --output" in run("init", tmp_path / "photos", "--output", file, code=2).stderr


def test_init_writes_nothing_for_data_that_cannot_be_read(tmp_path: Path) -> None:
    maps_alone(tmp_path / "photos")
    next((tmp_path / "photos" / "masks").glob("*.png")).unlink()
    done = run("init", tmp_path / "photos", "--output", tmp_path / "mine.yaml", code=2)
    assert str(tmp_path / "photos") in done.stderr
    assert not (tmp_path / "mine.yaml").exists()


def test_one_line_trains_on_a_folder_and_another_evaluates(tmp_path: Path) -> None:
    yolo(tmp_path / "photos")
    short = ["schedule.iterations=2", "train.eval_every=2", "train.checkpoint_every=2", "data.workers=0"]
    config, run_folder = "detection/mask_rcnn_piip_nano_shapes", tmp_path / "run"
    sizes = ["data.batch_size=2", "schedule.warmup_iterations=1", *short]
    done = run("train", config, "--data", tmp_path / "photos", "--output", run_folder, *sizes)
    assert "YOLO labels (data.yaml), with a split; 2 classes (box, disc), boxes without masks" in done.stderr
    assert "mask" not in done.stdout.partition("run ")[0]
    run("eval", run_folder, "--weights", run_folder, "--data", tmp_path / "photos", "--json")
