"""Train, evaluate, predict and convert through the command line, on a few generated images."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.cli.chain import figures, run, small, succeed

ROOT = Path(__file__).parents[2]
NANO = "detection/mask_rcnn_piip_nano_shapes"
DEMO = "classification/piip_nano_shapes"


def settings(root: Path) -> list[str]:
    return [*small(root, "instances"), "model.head.rpn_proposals=20"]


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A finished run, the folder it lies in, and what the command printed."""
    root = tmp_path_factory.mktemp("chain")
    return root, succeed("train", NANO, *settings(root), "--output", root / "run")


def test_train_ends_with_its_metrics_and_where_everything_lies(trained):
    root, done = trained
    rows = figures(done.stdout)
    assert rows["metric"] == ["box", "mask"]
    assert {"ap", "ap50", "ap75"} <= rows.keys()
    assert rows["run"] == [str(root / "run")]
    assert Path(rows["best"][0]).is_dir()
    assert Path(rows["curves"][0]).stat().st_size > 0


def test_eval_of_the_run_gives_what_training_reported(trained):
    root, _ = trained
    done = succeed("eval", NANO, "--weights", root / "run", "--json", *settings(root), "--output", root / "eval")
    document = json.loads(done.stdout)
    recorded = [json.loads(line) for line in (root / "run" / "metrics.jsonl").read_text().splitlines()]
    assert document["metrics"] == pytest.approx(recorded[-1]["metrics"])
    assert [row["class"] for row in document["classes"]] == ["circle", "rectangle", "triangle", "star", "cross"]
    assert json.loads((root / "eval" / "metrics.json").read_text())["metrics"] == document["metrics"]
    charts = {f"{name}.png" for name in ("precision_recall", "errors", "confusion", "calibration")}
    assert {path.name for path in (root / "eval").iterdir()} == {"metrics.json", "images.jsonl", "worst", *charts}


def test_a_run_directory_is_a_config_that_brings_its_weights(trained, tmp_path, monkeypatch):
    root, _ = trained
    named = succeed("eval", NANO, "--weights", root / "run", "--json", *settings(root))
    images = next((root / "shapes").glob("val-*")) / "images"
    for config in (root / "run", root / "run" / "config.yaml"):
        alone = succeed("eval", config, "--json")
        assert json.loads(alone.stdout)["metrics"] == json.loads(named.stdout)["metrics"]
        assert json.loads(alone.stdout)["weights"] == str(root / "run")
    succeed("predict", root / "run", images / "000001.jpg", "--output", tmp_path / "out")
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs" / "first").symlink_to(root / "run")
    monkeypatch.chdir(tmp_path)
    succeed("predict", NANO, images / "000001.jpg", "--weights", "first", "--output", tmp_path / "out")


def test_a_finished_run_goes_on_for_longer(trained, tmp_path):
    root, _ = trained
    shutil.copytree(root / "run", tmp_path / "run", symlinks=True)
    done = succeed("train", tmp_path / "run", "schedule.iterations=3", "--output", tmp_path / "run", "--resume")
    assert "the run goes on to 3 iterations instead of 2" in done.stderr
    assert (tmp_path / "run" / "checkpoints" / "last").resolve().name == "3"


def test_training_starts_from_the_weights_of_a_run(trained, tmp_path):
    root, _ = trained
    start = ("train", NANO, *settings(root), "--weights", root / "run", "--output")
    done = succeed(*start, tmp_path / "run")
    assert "training starts from the weights of" in done.stderr
    done = run(*start, tmp_path / "wider", "model.head.fc_channels=32")
    assert done.exit_code == 1
    assert "of another shape" in done.stderr
    assert "--weights-partial takes over what fits" in done.stderr
    succeed(*start, tmp_path / "wider", "model.head.fc_channels=32", "--weights-partial")


def test_eval_prints_a_table_of_metrics_and_one_of_classes(trained):
    root, _ = trained
    done = succeed("eval", NANO, *settings(root), "--weights", root / "run", "--backend", "pycocotools")
    rows = figures(done.stdout)
    assert rows["metric"] == ["box", "mask"]
    assert rows.keys() >= {"ap50", "circle", "cross"}


def test_predict_writes_an_overlay_and_a_row_per_image(trained, tmp_path):
    root, _ = trained
    images = next((root / "shapes").glob("val-*")) / "images"
    done = succeed(
        "predict", NANO, images, "--weights", root / "run", "--output", tmp_path / "out", "--score-threshold", 0
    )
    document = json.loads((tmp_path / "out" / "predictions.json").read_text())
    assert len(document["images"]) == len(list((tmp_path / "out").glob("*.jpg"))) == 3
    rows = figures(done.stdout)
    counts = [0] * 3
    for annotation in document["annotations"]:
        counts[annotation["image_id"] - 1] += 1
    words = [rows[f"{number:06d}.jpg"] for number in (1, 2, 3)]
    assert [sum(int(word) for word in row if word.isdigit()) for row in words] == counts


def test_predict_prints_one_document_and_finds_what_it_needs_by_itself(trained, tmp_path, monkeypatch):
    root, _ = trained
    monkeypatch.chdir(tmp_path)
    images = next((root / "shapes").glob("val-*")) / "images"
    done = succeed("predict", root / "run", images, "--score-threshold", 0, "--classes", "circle, star", "--json")
    document = json.loads(done.stdout)
    assert document == json.loads(Path("predictions/predictions.json").read_text())
    names = {category["id"]: category["name"] for category in document["categories"]}
    assert {names[annotation["category_id"]] for annotation in document["annotations"]} == {"circle", "star"}


def test_predict_says_which_image_is_broken_does_the_others_and_exits_2(trained, tmp_path):
    root, _ = trained
    good = next((root / "shapes").glob("val-*")) / "images" / "000001.jpg"
    shutil.copy(good, tmp_path / "good.jpg")
    (tmp_path / "bad.jpg").write_bytes(good.read_bytes()[:200])
    done = run("predict", NANO, tmp_path, "--weights", root / "run", "--output", tmp_path / "out")
    assert done.exit_code == 2
    assert "1 of 2 images could not be read" in done.stderr
    assert "bad.jpg" in done.stdout
    assert (tmp_path / "out" / "good.jpg").is_file()


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["predict", NANO, "nowhere.jpg", "--weights", "{run}", "--output", "{run}/out"], 2, "not found: nowhere.jpg"),
        (["predict", NANO, "{run}/checkpoints", "--weights", "{run}", "--output", "{run}/out"], 2, "no images in"),
        (["eval", NANO, "--weights", "nowhere"], 2, "weights not found: nowhere"),
        (["eval", NANO, "model.head.num_classes=7", "--weights", "{run}"], 1, "another network"),
        (["predict", NANO, "{run}/curves.png", "--weights", "{run}", "--classes", ""], 2, "knows no class ''"),
        (["eval", NANO, "--weights", "{run}", "--device", "abacus"], 2, "unknown device 'abacus'"),
        (["eval", DEMO, "--weights", "{run}", "--backend", "faster"], 2, "leave --backend out"),
        (["train", NANO, "--output", "{run}"], 2, "already holds a run; continue it with --resume"),
        (["train", NANO, "--output", "{run}", "--resume", "nowhere"], 2, "no checkpoint to resume from: nowhere"),
        (["train", NANO, "--output", "{run}/new", "data.train.images=0"], 2, "data.train.images"),
        (["convert-ckpt", "nowhere.pth", "{run}/out.safetensors", "--config", NANO], 2, "nowhere.pth"),
    ],
)  # fmt: skip
def test_what_cannot_be_done_is_said_in_a_few_lines(trained, arguments, code, words):
    root, _ = trained
    done = run(*(argument.format(run=root / "run") for argument in arguments))
    assert done.exit_code == code, done.stderr
    assert words in done.stderr
    assert "Traceback" not in done.stderr
    assert done.stdout == ""


@pytest.mark.parametrize("place", [0, 1, 4])
def test_a_bare_resume_may_stand_anywhere_and_a_finished_run_repeats_its_result(trained, place):
    root, first = trained
    words = [NANO, *settings(root), "--output", str(root / "run")]
    words.insert(place, "--resume")
    done = succeed("train", *words)
    assert done.stdout == first.stdout


@pytest.mark.parametrize(
    ("sent", "code", "words"), [(signal.SIGTERM, 75, "error: stopped"), (signal.SIGINT, 130, "interrupted: stopped")]
)
def test_a_stopped_training_saves_says_how_to_go_on_and_exits_75_or_130(tmp_path, sent, code, words):
    overrides = [*settings(tmp_path), "schedule={iterations: 1000, warmup_iterations: 1}", "train.eval_every=1000"]
    arguments = ["piip", "train", NANO, *overrides, "--output", str(tmp_path / "run")]
    script = f"import sys; sys.argv = {arguments!r}; from piip.cli.main import app; app()"
    with subprocess.Popen(
        [sys.executable, "-c", script], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        lines = []
        for line in process.stderr:
            lines.append(line)
            if " step 1 " in line:
                os.kill(process.pid, sent)
        assert process.stdout.read() == ""
    assert process.returncode == code, "".join(lines)
    assert lines[-1].startswith(words)
    assert "--resume" in lines[-1]
    assert (tmp_path / "run" / "checkpoints" / "last" / "model.safetensors").is_file()


def test_convert_reports_what_became_of_every_weight(monkeypatch, tmp_path):
    """The report's own correctness is the converter's matter; here is what of it is shown."""
    from piip.official import checkpoints

    report = checkpoints.ConversionReport(
        loaded=["a", "b"], resized=["pos"], unused=[f"key{index}" for index in range(12)], unknown=[], missing=["w"]
    )
    (tmp_path / "a.pth").touch()
    monkeypatch.setattr(checkpoints, "convert_checkpoint", lambda *_, **settings: report)
    done = succeed("convert-ckpt", tmp_path / "a.pth", tmp_path / "b.safetensors", "--config", NANO, "--no-strict")
    rows = figures(done.stdout)
    assert rows["written"] == [str(tmp_path / "b.safetensors")]
    assert [rows[name][0] for name in ("loaded", "resized", "unused", "unknown", "missing")] == [
        "2",
        "1",
        "12",
        "0",
        "1",
    ]
    assert rows["unused"][-1] == "..."
    assert rows["missing"] == ["1", "w"]
