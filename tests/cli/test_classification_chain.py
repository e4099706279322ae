"""Train, evaluate and predict labelled images through the command line, and tables of many classes."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from rich.console import Console
from typer.testing import CliRunner

from piip.cli.main import app
from piip.cli.metrics import class_table

NANO = "classification/piip_nano_shapes"


def run(*arguments: object):
    return CliRunner().invoke(app, list(map(str, arguments)), prog_name="piip")


def small(root: Path) -> list[str]:
    """Overrides that make the demo's config a matter of seconds."""
    shapes = f"type: shapes, form: crops, root: {root}/shapes, size: 64"
    return [
        f"data.train={{{shapes}, split: train, images: 8}}",
        f"data.val={{{shapes}, split: val, images: 6}}",
        "data.workers=0",
        "data.batch_size=4",
        "schedule={iterations: 2, warmup_iterations: 1}",
        "train.eval_every=2",
        "train.checkpoint_every=2",
        "train.log_every=1",
    ]


def figures(table: str) -> dict[str, list[str]]:
    """The rows of a printed table by their first word."""
    return {words[0]: words[1:] for line in table.splitlines() if (words := line.split())}


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    root = tmp_path_factory.mktemp("chain")
    done = run("train", NANO, *small(root), "--output", root / "run")
    assert done.exit_code == 0, done.stderr
    return root, done


def test_train_eval_and_metrics_json_agree(trained):
    root, done = trained
    top1 = float(figures(done.stdout)["top1"][0])
    done = run("eval", NANO, "--weights", root / "run", "--json", *small(root), "--output", root / "eval")
    assert done.exit_code == 0, done.stderr
    document = json.loads(done.stdout)
    assert document["metrics"]["top1"] == pytest.approx(top1, abs=5e-5)
    assert [row["class"] for row in document["classes"]] == ["circle", "cross", "rectangle", "star", "triangle"]
    assert sum(row["images"] for row in document["classes"]) == 6
    assert json.loads((root / "eval" / "metrics.json").read_text())["metrics"] == document["metrics"]
    assert (root / "eval" / "confusion.png").stat().st_size > 0


def test_eval_prints_a_row_per_class_and_says_what_it_wrote(trained, tmp_path):
    root, _ = trained
    done = run("eval", NANO, *small(root), "--weights", root / "run", "--output", tmp_path / "out")
    assert done.exit_code == 0, done.stderr
    rows = figures(done.stdout)
    assert rows["class"] == ["images", "top1", "most", "confused", "with"]
    assert sum(int(rows[name][0]) for name in ("circle", "cross", "rectangle", "star", "triangle")) == 6
    assert done.stdout.rstrip().endswith(f"metrics.json, confusion.png written to {tmp_path / 'out'}")


def test_predict_prints_scores_and_names_and_draws_each_image(trained, tmp_path):
    root, _ = trained
    images = list(next((root / "shapes").glob("crops-val-*")).rglob("*.jpg"))[:3]
    done = run("predict", NANO, *images, "--weights", root / "run", "--output", tmp_path / "out")
    assert done.exit_code == 0, done.stderr
    document = json.loads((tmp_path / "out" / "predictions.json").read_text())
    assert len(list((tmp_path / "out").glob("*.jpg"))) == len(document["images"]) == 3
    rows = figures(done.stdout)
    for image in document["images"]:
        words = rows[Path(image["file_name"]).name]
        assert (float(words[0]), words[1].rstrip(",")) == (
            pytest.approx(image["scores"][0], abs=5e-3),
            image["names"][0],
        )


def printed(rows: list[dict[str, object]]) -> list[list[str]]:
    console = Console(width=120)
    with console.capture() as capture:
        console.print(class_table(rows))
    return [line.split() for line in capture.get().splitlines() if line.strip() and "─" not in line][1:]


def test_of_many_classes_the_worst_are_shown_worst_first_and_unmeasured_ones_last():
    rows = [{"class": f"c{n}", "images": n, "top1": (n * 37 % 100) / 100} for n in range(100)]
    assert len(printed(rows[:40])) == 40
    shown = printed(rows)
    assert [row[0] for row in shown] == [row["class"] for row in sorted(rows, key=lambda row: row["top1"])[:20]]
    unmeasured = [{"class": f"u{n}", "images": 0, "top1": None} for n in range(30)] + rows[:15]
    names = [row[0] for row in printed(unmeasured)]
    assert sorted(names[:15]) == sorted(row["class"] for row in rows[:15])
    assert all(name.startswith("u") for name in names[15:])


def test_a_long_table_says_where_all_classes_are(trained, monkeypatch):
    root, _ = trained
    monkeypatch.setattr("piip.cli.metrics.MOST_ROWS", 4)
    monkeypatch.setattr("piip.cli.metrics.WORST_ROWS", 2)
    done = run("eval", NANO, *small(root), "--weights", root / "run")
    assert done.exit_code == 0, done.stderr
    assert "the 2 worst of 5 classes; --json and metrics.json of --output have all" in done.stdout
