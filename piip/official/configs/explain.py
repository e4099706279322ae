"""Official configs, explained as ours: what the values of the released Python files are called here."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import yaml

from piip.config.experiment import Config
from piip.config.load import load_config, shipped_configs
from piip.files import write_file
from piip.official.configs.backbone import even_or_listed
from piip.official.configs.python import read_python_config
from piip.official.configs.settings import our_settings


@dataclass
class Explanation:
    """An official config in our words.

    shipped: the shipped config that is nearest; differences: our keys with (its value, the official file's);
    settings: the official file in our keys; unmapped: official keys without a counterpart.
    """

    shipped: str
    settings: dict[str, Any]
    differences: dict[str, tuple[Any, Any]] = field(default_factory=dict)
    unmapped: list[str] = field(default_factory=list)


def explain_official_config(path: Path) -> Explanation:
    """Reads an official Python config as data and finds the shipped config that is nearest to it.

    Raises ConfigError for a file that cannot be read as data or is no PIIP network.
    """
    return explain_settings(read_python_config(path), path)


def explain_settings(official: Mapping[str, Any], path: Path) -> Explanation:
    """The same for the resolved settings of an official config; path: the file they come from."""
    unmapped: list[str] = []
    settings = our_settings(official, path, unmapped)
    compared = {name: _differences(settings, config) for name, config in _official_configs().items()}
    # Of two networks that differ equally, the one with the shorter name is the plainer one.
    shipped = min(compared, key=lambda name: (len(compared[name]), len(name)))
    return Explanation(shipped=shipped, settings=settings, differences=compared[shipped], unmapped=sorted(unmapped))


@cache
def _official_configs() -> dict[str, Config]:
    """The shipped configs of official ones, by name."""
    configs = {name: load_config(name) for name in shipped_configs()}
    return {name: config for name, config in configs.items() if config.official}


def write_explained_config(explanation: Explanation, output: Path) -> None:
    """Writes our config of an official one: its nearest shipped config as `base`, and what differs from that."""
    document: dict[str, Any] = {"base": explanation.shipped}
    for key, (_, value) in explanation.differences.items():
        *parents, last = key.split(".")
        node = document
        for parent in parents:
            node = node.setdefault(parent, {})
        node[last] = value
    write_file(output, yaml.safe_dump(document, sort_keys=False, default_flow_style=None, width=120))


def _differences(settings: Mapping[str, Any], config: Config) -> dict[str, tuple[Any, Any]]:
    ours = config.model_dump(mode="json")
    backbone = ours["model"]["backbone"]
    if not isinstance(backbone["interactions"], int):
        backbone["interactions"] = even_or_listed(backbone["interactions"])
    found = {}
    for key, theirs in _leaves(settings, ""):
        value: Any = ours
        for part in key.split("."):
            value = value.get(part) if isinstance(value, dict) else None
        if key == "model.backbone.branches":
            same = _same_branches(config, theirs)
        elif key == "model.backbone.interactions" and len(backbone["branches"]) == 1:
            same = theirs == value or not backbone["outputs"]
        else:
            same = value == theirs
        if not same:
            found[key] = (value, theirs)
    return found


def _leaves(node: Mapping[str, Any], prefix: str) -> Iterator[tuple[str, Any]]:
    for key, value in node.items():
        if isinstance(value, dict) and key != "zoom":
            yield from _leaves(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def _same_branches(config: Config, theirs: Sequence[Mapping[str, Any]]) -> bool:
    """Whether branches have the settings of others, but for `init`, whose files have other names here."""
    ours = config.model.backbone.branches
    if len(ours) != len(theirs):
        return False
    for branch, other in zip(ours, theirs, strict=True):
        values = branch.model_dump(mode="json")
        if any(values.get(key) != value for key, value in other.items() if key != "init"):
            return False
    return True
