"""From a config, and weights, to a model that is ready."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from piip.backbone.build import build_backbone
from piip.config.experiment import ModelConfig
from piip.config.load import load_config
from piip.engine.checkpoint import load_weights
from piip.model import Model


def create_model(name: str | Path, weights: str | Path | None = None, **overrides: Any) -> Model:
    """Builds the model of a config, in evaluation mode.

    name: a shipped config name, an official file stem, or a path to a YAML file.
    weights: a checkpoint or exported file to load; None leaves the fresh initialisation.
    overrides: config values by dotted key, for example `**{"model.head.num_classes": 3}`.
    Raises ConfigError, CheckpointError.
    """
    config = load_config(name, [f"{key}={_as_yaml(value)}" for key, value in overrides.items()])
    model = build_model(config.model)
    model.transforms = config.data.val_transforms
    if weights is not None:
        model.class_names = load_weights(model, weights).class_names or []
    return model.eval()


def _as_yaml(value: Any) -> str:
    return yaml.safe_dump(value, default_flow_style=True).removesuffix("...\n").strip()


def build_model(config: ModelConfig) -> Model:
    """A freshly initialised model; no file is read."""
    backbone = build_backbone(config.backbone, last_interaction=config.head.reads_last_interaction)
    neck = config.neck.build(backbone.specs)
    return Model(backbone=backbone, neck=neck, head=config.head.build(neck.specs), config=config)
