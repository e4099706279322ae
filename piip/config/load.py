"""Reading configs: names and paths, inheritance, overrides."""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from piip.config.data_folder import as_mapping, fill_from_folder
from piip.config.draft import Draft
from piip.config.experiment import Config
from piip.config.mistakes import explain
from piip.config.reading import read_yaml
from piip.config.strict import nearest
from piip.errors import ConfigError, first_few
from piip.weights.hub import fetch, is_on_hub

_log = logging.getLogger(__name__)

# In an installed wheel the configs are inside the package; in a checkout they are beside it.
_PACKAGE = Path(__file__).parents[1]
_CONFIG_DIRS = (_PACKAGE / "configs", _PACKAGE.parent / "configs")
# The most bases that a config may have, with the bases of its bases.
_MOST_BASES = 100


def config_dir() -> Path:
    """The folder of the shipped configs."""
    for path in _CONFIG_DIRS:
        if (path / "base").is_dir():
            return path
    raise ConfigError("the shipped configs are missing from this installation; reinstall piip")


@cache
def _shipped_files() -> dict[str, Path]:
    """Every shipped file by name: the experiments and the building blocks in base/."""
    root = config_dir()
    return {path.relative_to(root).with_suffix("").as_posix(): path for path in sorted(root.rglob("*.yaml"))}


@cache
def shipped_configs() -> dict[str, Path]:
    """Every shipped experiment by name ('detection/mask_rcnn_...'), without the building blocks in base/."""
    return {name: path for name, path in _shipped_files().items() if not name.startswith("base/")}


def shipped_weights(config: Config) -> Path | None:
    """The file of the weights that come with the package for this experiment, or None."""
    return None if config.weights is None else config_dir() / "weights" / config.weights


@cache
def _aliases() -> dict[str, str]:
    raw = {name: _read_mapping(path) for name, path in shipped_configs().items()}
    return {data[key]: name for name, data in raw.items() for key in ("alias", "official") if data.get(key)}


def find_config(name: str | Path) -> Path:
    """The file behind a path, a run or pack, a shipped name, its last part or alias, or an official file stem.

    `hub:org/name` is a pack on a hub, which is fetched.

    Raises ConfigError with the names that may be meant.
    """
    path = fetch(name) if is_on_hub(name) else Path(name)
    if path.suffix in (".yaml", ".yml"):
        if not os.path.isfile(path):
            raise ConfigError(f"config file not found: {path}")
        return path
    shipped, name = shipped_configs(), str(path)
    if name in shipped:
        return shipped[name]
    ends = [file for full, file in shipped.items() if full.split("/")[-1] == name]
    if len(ends) == 1:
        return ends[0]
    aliases = _aliases() if "/" not in name else {}
    if name in aliases:
        return shipped[aliases[name]]
    if os.path.isdir(path):
        if (path / "config.yaml").is_file():
            return path / "config.yaml"
        raise ConfigError(f"{path} is a folder without a config.yaml; give a YAML file, a run, or a shipped name")
    if os.path.exists(path):
        raise ConfigError(f"{path} is no config; give a file that ends in .yaml, a run, or a shipped name")
    begin = [full for full in shipped if full.startswith(name) or full.split("/")[-1].startswith(name)]
    near = nearest(name, [*shipped, *(full.split("/")[-1] for full in shipped), *aliases])
    hint = f"did you mean one of {first_few(begin, 3)}?" if len(begin) > 1 else near
    raise ConfigError(f"unknown config '{name}'; {hint or 'see `piip models` for the shipped ones'}")


def load_config(name: str | Path, overrides: Sequence[str] = ()) -> Config:
    """Reads, merges and checks a config.

    name: as of `find_config`. overrides: `key.sub=value` strings.
    Raises ConfigError naming the file, the key and the remedy.
    """
    return _load(name, overrides)[0]


def load_with_origins(name: str | Path, overrides: Sequence[str] = ()) -> tuple[Config, dict[str, str]]:
    """As `load_config`; also what set each value.

    Returns the config and, by dotted key, the shipped name or the path of the file that set the value, "command line",
    or the folder of data that it stands for. A key that is missing is at its default, or follows from others.
    """
    config, draft = _load(name, overrides)
    names = {str(file.resolve()): key for key, file in _shipped_files().items()}
    writers = {key: draft.writer(key) for key in _dotted_keys(config.model_dump(mode="json"))}
    return config, {key: names.get(writer, writer) for key, writer in writers.items() if writer is not None}


def _dotted_keys(data: Any, prefix: str = "") -> list[str]:
    """The dotted keys of all values in a config's data; a list of plain values is one value."""
    if isinstance(data, dict):
        items = list(data.items())
    elif isinstance(data, list) and any(isinstance(item, dict) for item in data):
        items = list(enumerate(data))
    else:
        return [prefix]
    return [key for name, value in items for key in _dotted_keys(value, f"{prefix}.{name}" if prefix else str(name))]


def config_from_dict(data: dict[str, Any], *, origin: dict[str, str] | None = None, source: str = "config") -> Config:
    """Checks already merged data, for example the resolved config stored beside a checkpoint."""
    try:
        return Config.model_validate(data)
    except ValidationError as error:
        raise ConfigError(explain(error, Config, data, origin or {}, source)) from None


def dump_config(config: Config) -> str:
    """The resolved config as YAML that `load_config` reads back to an equal config."""
    return yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False, allow_unicode=True)


def _load(name: str | Path, overrides: Sequence[str]) -> tuple[Config, Draft]:
    path = find_config(name)
    draft = _Reader().read(path)
    for override in overrides:
        draft.override(re.sub("^data=", "data.folder=", override))
    fill_from_folder(draft)
    draft.fit_branches()
    known = {file: key for key, file in shipped_configs().items()}
    draft.data.setdefault("name", known.get(path, path.stem))
    config = config_from_dict(draft.data, origin=draft.origin, source=draft.file)
    if not os.path.isdir(name):  # a run was warned of when it began
        _compare_sizes(config, draft.origin)
    return config, draft


def _compare_sizes(config: Config, origin: dict[str, str]) -> None:
    """Warns if resolutions do not match the size of the images and a user has set either of them."""
    given, finest = config.data.train_transforms.long_side, config.model.backbone.resolutions[0]
    sizes = r"model\.backbone\.resolutions|data\.train_transforms\.(resize|crop|size)"
    shipped = config_dir().resolve()
    own = any(
        re.match(rf"({sizes})(\.|$)", key) for key, writer in origin.items() if not Path(writer).is_relative_to(shipped)
    )
    if given != finest and own and os.environ.get("RANK", "0") == "0":
        _log.warning(
            "%s: images are resized to %d pixels (data.train_transforms), the finest branch is configured for %d "
            "(model.backbone.resolutions); only the ratios of the resolutions count. Change both, or all sizes by one "
            "factor, as in scale=0.5",
            config.name,
            given,
            finest,
        )


class _Reader:
    """Reads one config and its bases; every file is read once."""

    def __init__(self) -> None:
        self._read: dict[Path, Draft] = {}
        self._bases = 0

    def read(self, path: Path, above: tuple[Path, ...] = ()) -> Draft:
        """The file, merged onto its bases. above: the chain of files that led here as bases."""
        path = path.resolve()
        if path in above:
            names = " -> ".join(file.name for file in (*above, path))
            raise ConfigError(f"{path}: 'base' leads back to itself: {names}")
        if path in self._read:
            return self._read[path]
        data = _read_mapping(path)
        bases = data.pop("base", [])
        bases = bases if isinstance(bases, list) else [bases]
        if not all(isinstance(base, str) for base in bases):
            raise ConfigError(f"{path}: 'base' must be a file, a shipped name, or a list of these")
        self._bases += len(bases)
        if self._bases > _MOST_BASES:
            raise ConfigError(f"{path}: more than {_MOST_BASES} bases, those of its bases included")
        draft = Draft(str(path))
        for base in bases:
            draft.inherit(self.read(_find_base(base, path), (*above, path)))
        as_mapping(data)
        draft.add(data)
        self._read[path] = draft
        return draft


def _read_mapping(path: Path) -> dict[str, Any]:
    data = read_yaml(path)
    if not isinstance(data, dict):
        raise ConfigError(f"{path} must hold a mapping of keys, got {type(data).__name__}")
    return data


def _find_base(base: str, path: Path) -> Path:
    """The file that a config at `path` names as its base: one relative to it, or else a shipped one by name."""
    beside = path.parent / base
    if os.path.isfile(beside):  # unlike Path.is_file, this takes texts that cannot be names
        return beside
    shipped = _shipped_files()
    if base in shipped:
        return shipped[base]
    hint = nearest(base.removesuffix(".yaml"), shipped) or f"the shipped ones are those in {config_dir()}"
    raise ConfigError(f"{path}: base '{base}' is neither a file relative to this one nor a shipped name; {hint}")
