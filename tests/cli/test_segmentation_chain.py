"""Segmentation through the command line: train, evaluate and predict on a few generated images."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.cli.chain import figures, small, succeed

NANO = "segmentation/upernet_piip_nano_shapes"
CLASSES = ["background", "circle", "rectangle", "triangle", "star", "cross"]


def settings(root: Path) -> list[str]:
    return small(root, "label_maps")


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    root = tmp_path_factory.mktemp("segmentation")
    return root, succeed("train", NANO, *settings(root), "--output", root / "run")


def test_train_ends_with_its_metrics(trained):
    _, done = trained
    assert [name for name in figures(done.stdout) if name in ("miou", "aacc", "macc")] == ["miou", "aacc", "macc"]


def test_eval_gives_what_training_reported_with_a_row_per_class_and_a_chart(trained):
    root, _ = trained
    words = ["eval", NANO, "--weights", root / "run", *settings(root)]
    done = succeed(*words, "--json", "--output", root / "eval")
    document = json.loads(done.stdout)
    recorded = [json.loads(line) for line in (root / "run" / "metrics.jsonl").read_text().splitlines()]
    assert document["metrics"] == pytest.approx(recorded[-1]["metrics"])
    assert [row["class"] for row in document["classes"]] == CLASSES
    assert sum(row["pixels"] for row in document["classes"]) == pytest.approx(1)
    assert {path.name for path in (root / "eval").iterdir()} == {"metrics.json", "iou.png", "images.jsonl", "worst"}
    records = [json.loads(line) for line in (root / "eval" / "images.jsonl").read_text().splitlines()]
    assert len(records) == len(list((root / "eval" / "worst").glob("*.jpg"))) == 3
    assert records[0].keys() == {"id", "file", "badness", "miou", "pixel_accuracy", "worst_class"}
    rows = figures(succeed(*words).stdout)
    assert rows["class"] == ["iou", "acc", "pixels"]
    assert rows.keys() >= {"miou", *CLASSES}


def test_predict_writes_a_label_map_and_an_overlay_of_every_image(trained, tmp_path):
    root, _ = trained
    folder = next((root / "shapes").glob("*val-*")) / "images"
    with Image.open(folder / "000001.jpg") as image:
        image.resize((90, 50)).save(tmp_path / "wide.jpg")
    done = succeed(
        "predict", NANO, folder, tmp_path / "wide.jpg", "--weights", root / "run", "--output", tmp_path / "out"
    )
    document = json.loads((tmp_path / "out" / "predictions.json").read_text())
    assert [entry["name"] for entry in document["classes"]] == CLASSES
    assert [entry["label_map"] for entry in document["images"]] == [
        "000001.png",
        "000002.png",
        "000003.png",
        "wide.png",
    ]
    for entry in document["images"]:
        with Image.open(tmp_path / "out" / entry["label_map"]) as image:
            labels = np.asarray(image)
        assert labels.shape == (entry["height"], entry["width"])
        shares = np.bincount(labels.flatten(), minlength=6) / labels.size
        assert {found["id"]: found["share"] for found in entry["classes"]} == pytest.approx(
            {label: share for label, share in enumerate(shares) if share}
        )
        assert (tmp_path / "out" / entry["label_map"]).with_suffix(".jpg").stat().st_size > 1000
    assert document["images"][3]["width"] == 90
    assert "% background" in done.stdout or any(f"% {name}" in done.stdout for name in CLASSES)
