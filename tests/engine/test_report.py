"""images.jsonl and the worst images of an evaluation, on generated shapes with a network that knows nothing."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Literal

import pytest
import torch
from PIL import Image
from torchvision.ops import box_iou

from piip.config.experiment import Config
from piip.conventions import ImageId
from piip.engine.evaluate import run_evaluation
from piip.errors import PiipError
from piip.load import build_model, load_model
from piip.metrics.base import Metric
from piip.metrics.config import MetricConfig
from piip.weights.files import write_weights
from tests.engine.tiny import tiny_config


@pytest.fixture(scope="module")
def experiment(tmp_path_factory: pytest.TempPathFactory) -> tuple[Config, Path, Path]:
    """A config with 15 validation images, of which one is damaged, its weights, and the evaluation's folder."""
    root = tmp_path_factory.mktemp("report")
    val = {"type": "shapes", "root": str(root / "data"), "split": "val", "images": 15, "size": 64}
    config = tiny_config(root / "data", data__val=val, data__eval_batch_size=4)
    torch.manual_seed(0)
    write_weights(root / "tiny.safetensors", build_model(config.model).state_dict())
    dataset = config.data.val.build(training=False)
    (dataset.folder / dataset.record(3).file_name).write_bytes(b"damaged")
    (root / "out" / "worst").mkdir(parents=True)
    (root / "out" / "worst" / "12.jpg").write_bytes(b"of an earlier evaluation")
    run_evaluation(config, weights=root / "tiny.safetensors", output=root / "out")
    return config, root / "tiny.safetensors", root / "out"


def lines_of(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "images.jsonl").read_text().splitlines()]


def hits(found: Mapping[str, torch.Tensor], boxes: torch.Tensor, labels: torch.Tensor) -> int:
    """How many objects are found, each by the surest box with an IoU of 0.5 and its class."""
    free, count = torch.ones(len(boxes), dtype=torch.bool), 0
    for index in found["scores"].argsort(descending=True, stable=True).tolist():
        ious = box_iou(found["boxes"][index : index + 1], boxes)[0] * (labels == found["labels"][index]) * free
        if len(ious) and ious.max() >= 0.5:
            free[ious.argmax()], count = False, count + 1
    return count


def test_every_image_has_a_line_with_counts_of_its_predictions(experiment: tuple[Config, Path, Path]) -> None:
    config, weights, folder = experiment
    dataset = config.data.val.build(training=False)
    model = load_model(config, weights, device=torch.device("cpu"), precision="fp32")
    lines = lines_of(folder)
    assert [line["id"] for line in lines] == [dataset.image_id(index) for index in range(15)]
    assert lines[0].keys() == {
        *("id", "file", "badness", "hits", "misses", "false_alarms", "mean_iou", "worst_class", "score_threshold")
    }
    for index, line in enumerate(lines):
        assert (dataset.folder / line["file"]).is_file()
        target = dataset.target(index)
        if index == 3:
            assert "cannot" in line["unread"] or "not an image" in line["unread"]
            assert (line["hits"], line["misses"], line["false_alarms"]) == (0, len(target["labels"]), 0)
            continue
        (found,) = model.predict([dataset.image(index)])
        kept = found["scores"] >= line["score_threshold"]
        found = {name: value[kept] for name, value in found.items()}
        right = hits(found, target["boxes"], target["labels"])
        assert line["hits"] == right
        assert line["misses"] == len(target["labels"]) - right
        assert line["false_alarms"] == int(kept.sum()) - right
        lacking = right * (1 - line["mean_iou"]) if right else 0
        assert line["badness"] == pytest.approx(line["misses"] + line["false_alarms"] + lacking)
    details = json.loads((folder / "metrics.json").read_text())["details"]
    assert {line["score_threshold"] for line in lines} == {details["score_threshold"]}
    assert details.keys() >= {"calibration_error", "box_ap50_lost", "mask_ap50_lost"}


def test_the_worst_images_that_can_be_read_are_drawn_in_order(experiment: tuple[Config, Path, Path]) -> None:
    *_, folder = experiment
    ranked = sorted(lines_of(folder), key=lambda line: -line["badness"])
    expected = [line["file"] for line in ranked if "unread" not in line and line["badness"]][:12]
    page = (folder / "worst" / "index.html").read_text()
    assert [part.partition(":")[0] for part in page.split('alt="')[1:]] == expected
    assert "worst of 15 images by their badness: objects missed + false alarms" in page
    pictures = sorted(path.name for path in (folder / "worst").glob("*.jpg"))
    assert pictures == [f"{rank:02}.jpg" for rank in range(1, len(expected) + 1)]
    for name in pictures:
        with Image.open(folder / "worst" / name) as picture:
            assert picture.width > 1.5 * picture.height


class NumbersConfig(MetricConfig):
    """Calls the image with the highest id the worst."""

    type: Literal["numbers of a test"] = "numbers of a test"

    def build(self, class_names: Sequence[str]) -> Numbers:
        return Numbers()


class Numbers(Metric[int]):
    badness: ClassVar = "the number of the image"

    def update(self, results: Sequence[Any], truths: Sequence[Mapping[str, Any]], image_ids: Sequence[ImageId]) -> None:
        self._found |= {image_id: len(truth["labels"]) for image_id, truth in zip(image_ids, truths, strict=True)}

    def compute(self) -> dict[str, float | None]:
        return {"images": float(len(self._found))}

    def table(self) -> list[dict[str, Any]]:
        return [{"class": "all", "images": len(self._found)}]

    def records(self) -> dict[ImageId, dict[str, Any]]:
        return {image_id: {"badness": float(image_id), "objects": found} for image_id, found in self._found.items()}

    def details(self) -> dict[str, Any]:
        return {"objects": sum(self._found.values())}


def test_the_badness_of_the_first_metric_decides_and_lines_hold_the_records_of_all(
    experiment: tuple[Config, Path, Path], tmp_path: Path
) -> None:
    config, weights, folder = experiment
    metrics = (NumbersConfig(), *config.chosen_metrics)
    run_evaluation(config.model_copy(update={"metrics": metrics}), weights=weights, output=tmp_path)
    alone, lines = lines_of(folder), lines_of(tmp_path)
    for line, other in zip(lines, alone, strict=True):
        if "unread" not in line:  # which this metric leaves out
            assert line == other | {"badness": line["id"], "objects": line["hits"] + line["misses"]}
    page = (tmp_path / "worst" / "index.html").read_text()
    assert "badness: the number of the image" in page
    assert page.split('alt="')[1].startswith(lines[-1]["file"])
    details = json.loads((tmp_path / "metrics.json").read_text())["details"]
    assert details["objects"] == sum(line["objects"] for line in lines if "unread" not in line)
    assert "box_ap50_lost" in details


def test_the_figures_outlast_a_report_that_cannot_be_written(
    experiment: tuple[Config, Path, Path], tmp_path: Path
) -> None:
    config, weights, folder = experiment
    (tmp_path / "images.jsonl").mkdir()
    with pytest.raises(PiipError, match=f"cannot write to {tmp_path}: "):
        run_evaluation(config, weights=weights, output=tmp_path)
    assert (tmp_path / "metrics.json").read_text() == (folder / "metrics.json").read_text()
