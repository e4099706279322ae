"""Metrics are chosen in a config, by default those that belong to the validation data."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from piip.config.experiment import Config
from piip.config.load import config_from_dict, load_config
from piip.errors import ConfigError
from piip.metrics.accuracy import AccuracyMetric
from piip.metrics.average_precision import CocoMetric
from piip.metrics.config import AccuracyConfig, CocoMetricConfig, MetricConfig, MIoUConfig
from piip.metrics.miou import MIoUMetric
from tests.engine.tiny import tiny_config


@pytest.mark.parametrize(
    ("name", "config", "kind"),
    [
        ("detection/mask_rcnn_piip_tsb_1568_1120_672", CocoMetricConfig(), CocoMetric),
        ("detection/mask_rcnn_piip_nano_shapes", CocoMetricConfig(), CocoMetric),
        ("segmentation/upernet_piip_h6b_512_512", MIoUConfig(), MIoUMetric),
        ("segmentation/upernet_piip_nano_shapes", MIoUConfig(), MIoUMetric),
        ("classification/piip_tsb_368_192_128", AccuracyConfig(), AccuracyMetric),
        ("classification/piip_nano_shapes", AccuracyConfig(), AccuracyMetric),
    ],
)
def test_without_metrics_in_the_config_those_of_the_data_are_taken(
    name: str, config: MetricConfig, kind: type[Any]
) -> None:
    (chosen,) = load_config(name).chosen_metrics
    assert chosen == config
    assert type(chosen.build(["one", "two"])) is kind


def test_metrics_of_the_config_replace_those_of_the_data_and_survive_a_run_directory() -> None:
    override = "metrics=[{type: coco, backend: pycocotools}]"
    config = load_config("detection/mask_rcnn_piip_nano_shapes", [override])
    assert config.chosen_metrics == (CocoMetricConfig(backend="pycocotools"),)
    assert config_from_dict(yaml.safe_load(yaml.safe_dump(config.model_dump(mode="json")))) == config
    # A run directory of before there was such a key.
    document = load_config("detection/mask_rcnn_piip_nano_shapes").model_dump(mode="json")
    del document["metrics"]
    assert config_from_dict(document).chosen_metrics == (CocoMetricConfig(),)


@pytest.mark.parametrize(
    ("metrics", "message"),
    [
        ("[{type: cocos}]", r"metrics\.0\.type: unknown type 'cocos', not among .*; did you mean 'coco'\?"),
        ("[{type: coco, backend: mine}]", r"metrics\.0\.backend: give one of 'faster' or 'pycocotools'"),
        ("[{type: miou, backend: faster}]", r"metrics\.0\.backend: unknown key 'backend'"),
        (
            "[{type: coco}, {type: miou}]",
            "metrics: miou is for segmentation, model.head mask_rcnn for detection",
        ),
    ],
)
def test_mistakes_in_metrics_are_named(metrics: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        load_config("detection/mask_rcnn_piip_nano_shapes", [f"metrics={metrics}"])


def test_data_without_metrics_of_its_own_needs_some_in_the_config(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    config: Config = tiny_config(tmp_path)
    monkeypatch.setattr(type(config.data.val), "default_metrics", lambda _: ())
    with pytest.raises(ConfigError, match="data of type shapes has no metrics of its own; name some in metrics"):
        _ = config.chosen_metrics
    assert config.model_copy(update={"metrics": (MIoUConfig(),)}).chosen_metrics == (MIoUConfig(),)
