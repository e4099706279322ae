"""From a config, and weights, to a model: freshly built, or ready for inference."""

from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
import yaml
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from piip.backbone.piip import PIIP
from piip.config.experiment import Config, ModelConfig
from piip.config.load import find_config, load_config, shipped_weights
from piip.errors import ConfigError
from piip.model import Model
from piip.precision import allocate, compute_dtype, prepare
from piip.regions import compile_regions
from piip.weights.files import load_weights
from piip.weights.find import PACKED

# What initialises a parameter in place.
_FILLING = {Tensor.add_, Tensor.clamp_, Tensor.erfinv_, Tensor.fill_, Tensor.mul_}
_FILLING |= {Tensor.normal_, Tensor.uniform_, Tensor.zero_}


class Uninitialised(TorchFunctionMode):
    """Leaves parameters that are made in the block without values, for those that get theirs from a file.

    Until then they take no memory that is touched, and a network of billions of parameters is there in seconds.
    """

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        skipped = func in _FILLING and isinstance(args[0], nn.Parameter)
        return args[0] if skipped else func(*args, **(kwargs or {}))


def build_model(config: ModelConfig) -> Model:
    """A freshly initialised model; no file is read."""
    head = config.head
    backbone = PIIP(config.backbone, last_interaction=head.reads_last_interaction, feature_levels=head.reads_levels)
    neck = config.neck.build(backbone.specs)
    return Model(backbone=backbone, neck=neck, head=head.build(neck.specs), config=config)


def create_model(
    name: str | Path, weights: str | Path | None = None, *, compile: bool = False, **overrides: Any
) -> Model:
    """Builds the model of a config, in evaluation mode.

    name: a shipped config name or alias, an official file stem, a run directory, a path to a YAML file, or a pack: a
    folder of `piip pack` or `hub:org/name`.
    weights: a run, a checkpoint or a weight file to load, or "shipped" for those that come with the package for this
    config (see `piip models`); None leaves the fresh initialisation, but takes those of a pack.
    compile: compiles the blocks and interactions, which takes a minute at the first image; see `piip.regions`.
    overrides: config values by dotted key, for example `**{"model.head.num_classes": 3}`.
    Raises ConfigError, CheckpointError.
    """
    config = load_config(name, [f"{key}={_as_yaml(key, value)}" for key, value in overrides.items()])
    if weights is None and (packed := find_config(name).with_name(PACKED)).is_file():
        weights = packed
    if weights == "shipped":
        weights = shipped_weights(config)
        if weights is None:
            raise ConfigError(f"no weights come with the package for {config.name}; name a file, or None for none")
    model = _build(config, weights).eval()
    if compile:
        compile_regions(model)
    return model


def load_model(
    config: Config, weights: str | Path, *, device: torch.device, precision: str, compile: bool = False
) -> Model:
    """The model of an experiment with its weights, on a device and ready for inference (see `piip.precision.prepare`).

    weights: a run, a checkpoint or a weight file. precision: as of `train.precision`. compile: as of `create_model`.
    Raises CheckpointError, and ConfigError where the device does not have the precision.
    """
    dtype = compute_dtype(device, precision)
    model = prepare(_build(config, weights, dtype).to(device), dtype)
    if compile:
        compile_regions(model)
    return model


def _build(config: Config, weights: str | Path | None, dtype: torch.dtype = torch.float32) -> Model:
    """A model that knows how to prepare images, and the classes that its weights were trained on.

    dtype: what the weights are read into where `prepare` will want it, so that they are never there twice.
    """
    with nullcontext() if weights is None else Uninitialised():
        model = build_model(config.model)
    if weights is not None:
        allocate(model, dtype)
    model.transforms = config.data.val_transforms
    known = None if weights is None else load_weights(model, weights).class_names
    model.class_names = known or config.data.val.known_class_names() or []
    return model


def _as_yaml(key: str, value: Any) -> str:
    """A value as an override on the command line has it. Raises ConfigError for what no file could say."""
    try:
        return yaml.safe_dump(value, default_flow_style=True).removesuffix("...\n").strip()
    except yaml.representer.RepresenterError as error:
        kind = type(error.args[1]).__name__
        raise ConfigError(f"{key}: a config holds numbers, text, lists and mappings, not {kind}") from None
