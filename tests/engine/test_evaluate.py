"""Evaluation: by the metrics of the config, of whatever images can be read, and in lower precision."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import pytest
import torch

from piip.config.experiment import Config
from piip.conventions import ImageId
from piip.engine.evaluate import run_evaluation
from piip.engine.train import train
from piip.errors import ConfigError, DataError
from piip.load import build_model
from piip.metrics.base import Metric
from piip.metrics.config import MetricConfig
from piip.model import Model
from piip.weights.files import load_file, write_weights
from piip.weights.find import follow
from tests.engine.tiny import tiny_config


def test_evaluation_in_bfloat16_holds_such_weights_and_leaves_those_in_training_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = tiny_config(tmp_path / "data", train__precision="bf16", train__ema=None, schedule__epochs=1)
    held: list[set[torch.dtype]] = []
    infer = Model.infer_batch

    def spy(self: Model, batch: object) -> object:
        held.append({parameter.dtype for parameter in self.backbone.parameters()})
        return infer(self, batch)

    monkeypatch.setattr(Model, "infer_batch", spy)
    metrics = train(config, output=tmp_path / "run")
    assert run_evaluation(config, weights=tmp_path / "run").metrics == metrics
    assert held
    assert all(dtypes == {torch.float32, torch.bfloat16} for dtypes in held)
    saved = follow(tmp_path / "run" / "checkpoints", "last")
    assert saved is not None
    model = build_model(config.model)
    load_file(model, saved / "model.safetensors")
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}


class ImagesConfig(MetricConfig):
    """How many images came: a metric that nothing outside this file knows."""

    type: Literal["images of a test"] = "images of a test"
    name: str = "images"

    def build(self, class_names: Sequence[str]) -> ImagesMetric:
        return ImagesMetric(self.name)


class ImagesMetric(Metric[int]):
    def __init__(self, name: str) -> None:
        super().__init__()
        self.name = name

    def update(self, results: Sequence[Any], truths: Sequence[Mapping[str, Any]], image_ids: Sequence[ImageId]) -> None:
        for result, truth, image_id in zip(results, truths, image_ids, strict=True):
            assert result.keys() >= {"boxes", "scores", "labels"}
            self._found[image_id] = len(truth["labels"])

    def compute(self) -> dict[str, float | None]:
        return {self.name: float(len(self._found))}

    def table(self) -> list[dict[str, Any]]:
        return [{"class": "all", "objects": sum(self._found.values())}]


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    file = tmp_path_factory.mktemp("weights") / "tiny.safetensors"
    write_weights(file, build_model(tiny_config(file.parent).model).state_dict())
    return file


def test_metrics_of_the_config_are_computed_side_by_side_the_first_one_first(tmp_path: Path, weights: Path) -> None:
    metrics = [{"type": "images of a test"}, {"type": "coco", "backend": "pycocotools"}]
    found = run_evaluation(
        tiny_config(tmp_path, metrics=metrics, data__eval_batch_size=2), weights=weights, output=tmp_path / "out"
    )
    default = run_evaluation(tiny_config(tmp_path), weights=weights)
    assert (found.unread, found.document["unread"]) == ({}, [])
    assert list(found.metrics) == ["images", *default.metrics]
    assert found.metrics["images"] == 3
    assert {name: found.metrics[name] for name in default.metrics} == pytest.approx(default.metrics)
    assert len(found.tables) == 2
    assert found.tables[0] == [{"class": "all", "objects": sum(row["objects"] for row in default.tables[0])}]
    assert [row["class"] for row in found.tables[1]] == [row["class"] for row in default.tables[0]]
    report = json.loads((tmp_path / "out" / "metrics.json").read_text())
    assert report["metrics"] == found.metrics
    assert report["classes"] == found.tables[0]
    assert report["more_classes"] == found.tables[1:]
    assert report["measured_by"] == [{"type": "images of a test", "name": "images"}, metrics[1]]


def test_the_first_figure_of_the_first_metric_says_which_checkpoint_is_the_best(tmp_path: Path) -> None:
    metrics = [{"type": "images of a test"}, {"type": "coco"}]
    train(tiny_config(tmp_path / "data", metrics=metrics, schedule__epochs=1), output=tmp_path / "run")
    saved = follow(tmp_path / "run" / "checkpoints", "best")
    assert saved is not None
    record = json.loads((saved / "evaluation.json").read_text())
    assert record["best"] == {"step": 3, "name": "images", "value": 3.0}
    assert [row.keys() >= {"class", "box_ap"} for row in record["more_classes"][0]] == [True] * 5


def test_two_metrics_with_a_figure_of_the_same_name_are_refused(tmp_path: Path, weights: Path) -> None:
    config = tiny_config(tmp_path, metrics=[{"type": "coco"}, {"type": "images of a test", "name": "box_ap75"}])
    with pytest.raises(ConfigError, match="two metrics have figures of one name, box_ap75; take one out of metrics"):
        run_evaluation(config, weights=weights)


def damage(config: Config, *numbers: int) -> list[Path]:
    dataset = config.data.val.build(training=False)
    paths = [dataset.folder / dataset.record(number).file_name for number in numbers]
    for path in paths:
        path.write_bytes(path.read_bytes()[:500])
    return paths


def test_an_unreadable_validation_image_counts_as_without_detections_and_ends_no_run(tmp_path: Path) -> None:
    config = tiny_config(tmp_path / "data", schedule__epochs=1)
    (path,) = damage(config, 1)
    metrics = train(config, output=tmp_path / "run")
    message = f"1 of 3 images cannot be read and count as without results: cannot decode image {path}: "
    assert message in (tmp_path / "run" / "train.log").read_text()
    found = run_evaluation(config, weights=tmp_path / "run", output=tmp_path / "out")
    assert found.metrics == metrics
    (reason,) = found.document["unread"]
    assert reason.startswith(f"cannot decode image {path}: ")
    assert json.loads((tmp_path / "out" / "metrics.json").read_text())["unread"] == found.document["unread"]
    # Its objects are among those that count.
    dataset = config.data.val.build(training=False)
    objects = sum(len(dataset.truth(index)["labels"]) for index in range(3))
    assert sum(row["objects"] for row in found.tables[0]) == objects


def test_an_evaluation_without_any_readable_image_is_an_error(tmp_path: Path, weights: Path) -> None:
    config = tiny_config(tmp_path)
    first, *_ = damage(config, 0, 1, 2)
    with pytest.raises(DataError, match=f"none of the 3 images can be read; the first: cannot decode image {first}"):
        run_evaluation(config, weights=weights)
