"""Train, evaluate and predict labelled images through the command line, and tables of many classes."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from rich.console import Console

from piip.cli.tables import class_table
from tests.cli.chain import figures, small, succeed

NANO = "classification/piip_nano_shapes"


def settings(root: Path) -> list[str]:
    return small(root, "crops", train=8, val=6)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    root = tmp_path_factory.mktemp("chain")
    return root, succeed("train", NANO, *settings(root), "--output", root / "run")


def test_train_eval_and_metrics_json_agree(trained):
    root, done = trained
    top1 = float(figures(done.stdout)["top1"][0])
    done = succeed("eval", NANO, "--weights", root / "run", "--json", *settings(root), "--output", root / "eval")
    document = json.loads(done.stdout)
    assert document["metrics"]["top1"] == pytest.approx(top1, abs=5e-5)
    assert [row["class"] for row in document["classes"]] == ["circle", "cross", "rectangle", "star", "triangle"]
    assert sum(row["images"] for row in document["classes"]) == 6
    assert json.loads((root / "eval" / "metrics.json").read_text())["metrics"] == document["metrics"]
    assert (root / "eval" / "confusion.png").stat().st_size > 0
    records = [json.loads(line) for line in (root / "eval" / "images.jsonl").read_text().splitlines()]
    assert len(records) == len(list((root / "eval" / "worst").glob("*.jpg"))) == 6
    first = [next(iter(record["top5"])) == record["label"] for record in records]
    assert sum(first) / 6 == document["metrics"]["top1"]


def test_eval_prints_a_row_per_class_and_says_what_it_wrote(trained, tmp_path):
    root, _ = trained
    done = succeed("eval", NANO, *settings(root), "--weights", root / "run", "--output", tmp_path / "out")
    rows = figures(done.stdout)
    assert rows["class"] == ["images", "top1", "most", "confused", "with"]
    assert sum(int(rows[name][0]) for name in ("circle", "cross", "rectangle", "star", "triangle")) == 6
    names = "metrics.json, confusion.png, calibration.png, images.jsonl, worst/index.html"
    assert " ".join(done.stdout.split()).endswith(f"{names} written to {tmp_path / 'out'}")


def test_predict_prints_scores_and_names_and_draws_each_image(trained, tmp_path):
    root, _ = trained
    images = list(next((root / "shapes").glob("crops-val-*")).rglob("*.jpg"))[:3]
    done = succeed("predict", NANO, *images, "--weights", root / "run", "--output", tmp_path / "out")
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
    monkeypatch.setattr("piip.cli.tables.MOST_ROWS", 4)
    monkeypatch.setattr("piip.cli.tables.WORST_ROWS", 2)
    done = succeed("eval", NANO, *settings(root), "--weights", root / "run")
    assert "the 2 worst of 5 classes; --json and metrics.json of --output have all" in done.stdout
