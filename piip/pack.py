"""A model that travels: one folder with config, weights, metrics and a card, of which nothing is executed."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

import piip
from piip.config.experiment import Config
from piip.config.load import config_from_dict, dump_config
from piip.data.sets.config import DatasetConfig
from piip.errors import CheckpointError, ConfigError
from piip.files import making, to_json, write_file, writing
from piip.weights.files import read_weights, write_weights
from piip.weights.find import find_weights
from piip.weights.integrity import read_document

# What model hubs call the tasks.
_TAGS = {
    "detection": "object-detection",
    "segmentation": "image-segmentation",
    "classification": "image-classification",
}
_log = logging.getLogger(__name__)


def pack(source: Path, output: Path) -> Path:
    """Writes the weights of a run, a checkpoint or a weight file of ours, and all that belongs to them, into a folder.

    The folder is a CONFIG and weights to every command and to `create_model`. Of paths on this machine, of data and of
    pretrained files, the last part is kept. Raises ConfigError where `output` exists, CheckpointError where the weights
    do not say what they belong to, and PiipError on a full disk.
    """
    if output.exists():
        raise ConfigError(f"{output} exists; give a folder that is to be made")
    file = find_weights(source)
    state, known = read_weights(file)
    if known.config is None:
        raise CheckpointError(f"{file} does not say which config it belongs to; pack a run or one of its checkpoints")
    config = _without_paths(config_from_dict(known.config, source=str(file)))
    names = known.class_names or config.data.val.known_class_names() or []
    evaluation = file.parent / "evaluation.json"
    metrics = _figures(read_document(evaluation)) if evaluation.is_file() else {}
    with writing(output):
        output.parent.mkdir(parents=True, exist_ok=True)
        with making(output) as folder:
            write_weights(
                folder / "model.safetensors",
                state,
                config=config.model_dump(mode="json"),
                class_names=names,
                step=known.step,
            )
            write_file(folder / "config.yaml", dump_config(config))
            if metrics:
                write_file(folder / "metrics.json", to_json(metrics, indent=2))
            write_file(folder / "README.md", card(config, names, metrics))
    return output


def card(config: Config, class_names: list[str], metrics: Mapping[str, float]) -> str:
    """The model card: what hubs read above, what people read below."""
    head, backbone = config.model.head, config.model.backbone
    licences = [_licence(branch.init) for branch in backbone.branches if branch.init]
    about: dict[str, Any] = {"library_name": "piip", "pipeline_tag": _TAGS.get(head.task, head.task)}
    about["tags"] = ["piip", head.type]
    about |= {"license": "other"} if licences else {}
    if metrics:
        results = {
            "task": {"type": about["pipeline_tag"]},
            "dataset": {"name": config.data.val.type, "type": config.data.val.type},
            "metrics": [{"type": name, "name": name, "value": value} for name, value in metrics.items()],
        }
        about["model-index"] = [{"name": config.name, "results": [results]}]
    branches = [
        f"| {resolution} | {branch.type} | {getattr(branch, 'model', None) or branch.init or 'from scratch'} |"
        for resolution, branch in zip(backbone.resolutions, backbone.branches, strict=True)
    ]
    lines = [
        f"---\n{yaml.safe_dump(about, sort_keys=False, allow_unicode=True)}---",
        f"# {config.name}",
        f"A parameter-inverted image pyramid network, {head.type}, made with piip {piip.__version__}.",
        '```python\nimport piip\n\nmodel = piip.create_model("FOLDER")  # or hub:org/name\n'
        'result = model.predict("photo.jpg", threshold=0.3)\n```',
        "\n".join(["| resolution | branch | pretrained from |", "|---|---|---|", *branches]),
    ]
    if metrics:
        lines.append(
            "\n".join(["| metric | value |", "|---|---|", *(f"| {k} | {v:.4f} |" for k, v in metrics.items())])
        )
    if class_names:
        lines.append(f"Classes: {', '.join(class_names)}.")
    if licences:
        lines.append("\n".join(["Licences of the pretrained branches:", "", *(f"- {text}" for text in licences)]))
    return "\n\n".join(lines) + "\n"


def _licence(init: str) -> str:
    import timm

    name = init.removeprefix("timm/")
    try:
        licence = timm.get_pretrained_cfg(name, allow_unregistered=False)
    except RuntimeError:
        licence = None
    told = getattr(licence, "license", None)
    return f"{name}: {told}" if told else f"{name}: see where the weights come from"


def _figures(document: Mapping[str, Any]) -> dict[str, float]:
    metrics = document.get("metrics", document)
    return {name: value for name, value in metrics.items() if isinstance(value, (int, float))}


def _without_paths(config: Config) -> Config:
    """The config with the last part of every path."""
    branches = tuple(
        branch.model_copy(update={"init": None if branch.init is None else Path(branch.init).name})
        for branch in config.model.backbone.branches
    )
    backbone = config.model.backbone.model_copy(update={"branches": branches})
    data = config.data.model_copy(update={"train": _named(config.data.train), "val": _named(config.data.val)})
    return config.model_copy(update={"model": config.model.model_copy(update={"backbone": backbone}), "data": data})


def _named(data: DatasetConfig) -> DatasetConfig:
    return data.model_copy(update={key: Path(value.name) for key, value in data if isinstance(value, Path)})
