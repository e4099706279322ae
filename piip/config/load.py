"""Reading configs: names and paths, inheritance, overrides, and errors that say where the mistake is."""

from __future__ import annotations

import json
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any, get_args

import yaml
from pydantic import ValidationError

from piip.config.base import Strict, nearest
from piip.config.training import Config
from piip.errors import ConfigError

# In an installed wheel the configs lie inside the package; in a checkout they lie beside it.
_PACKAGE = Path(__file__).parents[1]
# Names and published figures belong to one experiment and are not inherited.
_OWN_KEYS = ("name", "official", "published", "alternative")

# Kinds of mistakes whose message needs no copy of what was given.
_SAY_WHAT_WAS_GIVEN = ("missing", "unknown_key", "value_error", "union_tag_invalid", "union_tag_not_found")

_CONFIG_DIRS = (_PACKAGE / "configs", _PACKAGE.parent / "configs")


def config_dir() -> Path:
    """The folder of the shipped configs."""
    for path in _CONFIG_DIRS:
        if (path / "base").is_dir():
            return path
    raise ConfigError("the shipped configs are missing from this installation; reinstall piip")


@cache
def _shipped_files() -> dict[str, Path]:
    """Every shipped file by name: the experiments, and the building blocks in base/."""
    root = config_dir()
    return {path.relative_to(root).with_suffix("").as_posix(): path for path in sorted(root.rglob("*.yaml"))}


@cache
def shipped_configs() -> dict[str, Path]:
    """Every shipped experiment by name ('detection/mask_rcnn_...'), without the building blocks in base/."""
    return {name: path for name, path in _shipped_files().items() if not name.startswith("base/")}


@cache
def _official_aliases() -> dict[str, str]:
    raw = {name: _read_yaml(path) for name, path in shipped_configs().items()}
    return {data["official"]: name for name, data in raw.items() if data.get("official")}


def find_config(name: str | Path) -> Path:
    """The file behind a path, a shipped name, or an official file stem."""
    path = Path(name)
    if path.suffix in (".yaml", ".yml"):
        if not path.is_file():
            raise ConfigError(f"config file not found: {path}")
        return path
    shipped, aliases = shipped_configs(), _official_aliases()
    key = aliases.get(str(name), str(name))
    if key in shipped:
        return shipped[key]
    hint = nearest(str(name), [*shipped, *aliases], "see `piip models` for the shipped ones", cutoff=0.4)
    raise ConfigError(f"unknown config '{name}'; {hint}")


def load_config(name: str | Path, overrides: Sequence[str] = ()) -> Config:
    """Reads, merges and checks a config.

    name: a path to a YAML file, a shipped name, or an official file stem.
    overrides: `key.sub=value` strings.
    Raises ConfigError naming the file, the key and the remedy.
    """
    path = find_config(name)
    data, origin = _load_merged(path, ())
    for override in overrides:
        _apply_override(data, origin, override)
    known = {file: key for key, file in shipped_configs().items()}
    data.setdefault("name", known.get(path, path.stem))
    return config_from_dict(data, origin=origin, source=str(path))


def config_from_dict(data: dict[str, Any], *, origin: dict[str, str] | None = None, source: str = "config") -> Config:
    """Checks already merged data, for example the resolved config stored beside a checkpoint."""
    try:
        return Config.model_validate(data)
    except ValidationError as error:
        lines = [_describe(item, data, origin or {}, source) for item in _mistakes(error)]
        raise ConfigError("\n".join(dict.fromkeys(lines))) from None  # one of every_branch is found in each


def dump_config(config: Config) -> str:
    """The resolved config as YAML that `load_config` reads back to an equal config."""
    return yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False, allow_unicode=True)


def _read_yaml(path: Path) -> dict[str, Any]:
    try:
        data = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"cannot read config {path}: {error.strerror}") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} is not valid YAML: {error}") from None
    if not isinstance(data, dict):
        raise ConfigError(f"{path} must hold a mapping of keys, got {type(data).__name__}")
    try:
        json.dumps(data, default=str)
    except ValueError:
        raise ConfigError(f"{path}: an anchor refers to itself") from None
    return data


def _load_merged(path: Path, seen: tuple[Path, ...]) -> tuple[dict[str, Any], dict[str, str]]:
    """The file merged onto its bases, and for every dotted key the file that set it last."""
    path = path.resolve()
    if path in seen:
        raise ConfigError(f"{path}: 'base' leads back to itself: {' -> '.join(p.name for p in (*seen, path))}")
    data = _read_yaml(path)
    bases = data.pop("base", [])
    bases = bases if isinstance(bases, list) else [bases]
    if not all(isinstance(base, str) for base in bases):
        raise ConfigError(f"{path}: 'base' must be a file, a shipped name, or a list of these")
    merged: dict[str, Any] = {}
    origin: dict[str, str] = {}
    for base in bases:
        base_data, base_origin = _load_merged(_find_base(base, path), (*seen, path))
        base_data = {key: value for key, value in base_data.items() if key not in _OWN_KEYS}
        _merge(merged, base_data, origin, base_origin, "")
    _merge(merged, data, origin, None, "", file=str(path))
    return merged, origin


def _find_base(base: str, path: Path) -> Path:
    """The file that a config at `path` names as its base: one relative to it, or else a shipped one by name."""
    beside = path.parent / base
    if beside.is_file():
        return beside
    shipped = _shipped_files()
    if base in shipped:
        return shipped[base]
    hint = nearest(base.removesuffix(".yaml"), shipped, f"the shipped ones are those in {config_dir()}")
    raise ConfigError(f"{path}: base '{base}' is neither a file relative to this one nor a shipped name; {hint}")


def _merge(
    target: dict[str, Any],
    update: dict[str, Any],
    origin: dict[str, str],
    update_origin: dict[str, str] | None,
    prefix: str,
    file: str = "",
) -> None:
    for key, value in update.items():
        dotted = f"{prefix}{key}"
        origin[dotted] = update_origin.get(dotted, file) if update_origin else file
        old = target.get(key)
        # A mapping of another type ("type: shapes" over "type: coco") replaces the old one: their keys differ.
        merges = (
            isinstance(value, dict) and isinstance(old, dict) and value.get("type", old.get("type")) == old.get("type")
        )
        if not merges:
            _forget(origin, dotted)
        if isinstance(value, dict):
            target[key] = old if merges else {}
            _merge(target[key], value, origin, update_origin, f"{dotted}.", file)
        else:
            target[key] = value


def _apply_override(data: dict[str, Any], origin: dict[str, str], override: str) -> None:
    key, separator, text = override.partition("=")
    if not separator or not key:
        raise ConfigError(f"override '{override}' is not of the form key.sub=value")
    try:
        value = yaml.safe_load(text)
    except yaml.YAMLError:
        raise ConfigError(f"override '{override}': the value is not valid YAML") from None
    *parents, last = key.split(".")
    node: Any = data
    for depth, part in enumerate(parents):
        node = _child(node, part, f"override '{override}': '{'.'.join(parents[: depth + 1])}'")
    if isinstance(node, list):
        _child(node, last, f"override '{override}': '{key}'")
        node[int(last)] = value
    elif isinstance(node, dict):
        node[last] = value
    else:
        raise ConfigError(f"override '{override}': '{'.'.join(parents)}' holds a single value, not keys")
    _forget(origin, key)
    origin[key] = "command line"


def _forget(origin: dict[str, str], key: str) -> None:
    """What a replaced mapping held was written nowhere."""
    for below in [other for other in origin if other.startswith(f"{key}.")]:
        del origin[below]


def _child(node: Any, part: str, where: str) -> Any:
    if isinstance(node, dict):
        return node.setdefault(part, {})
    if isinstance(node, list):
        if not part.isdecimal() or int(part) >= len(node):
            raise ConfigError(f"{where} does not exist; the list has items 0 to {len(node) - 1}")
        return node[int(part)]
    raise ConfigError(f"{where} does not exist")


def _mistakes(error: ValidationError) -> list[Any]:
    """All of them, but not that a list is too short because its items are wrong: pydantic counts the right ones."""
    found = error.errors()
    containers = {item["loc"][:end] for item in found for end in range(len(item["loc"]))}
    return [item for item in found if item["type"] != "too_short" or item["loc"] not in containers]


def _follow(location: Sequence[str | int]) -> tuple[list[str], list[type[Strict]]]:
    """The keys of a file that lead to a mistake: pydantic's location without what it adds for the members of unions.

    The models are followed along, since a key may be called like a member. Returns those that may stand there too.
    """
    keys: list[str] = []
    models: list[type[Strict]] = [Config]
    for part in location:
        if isinstance(part, int):
            keys.append(str(part))
        elif len(models) > 1:  # here pydantic adds the type that tells them apart
            models = [model for model in models if part in _types([model])] or models
        elif models and part in models[0].model_fields:
            keys.append(part)
            models = _models(models[0].model_fields[part].annotation)
    return keys, models


def _types(models: Sequence[type[Strict]]) -> list[str]:
    return [name for model in models for name in get_args(model.model_fields["type"].annotation)]


def _models(annotation: Any) -> list[type[Strict]]:
    """The models in a type such as `tuple[A | B, ...]`."""
    if isinstance(annotation, type) and issubclass(annotation, Strict):
        return [annotation]
    return [model for inner in get_args(annotation) for model in _models(inner)]


def _as_written(keys: list[str], data: dict[str, Any]) -> list[str]:
    """A setting that a branch has from every_branch is named as one of that."""
    if keys[:3] == ["model", "backbone", "branches"] and len(keys) > 4:
        backbone = data["model"]["backbone"]
        shared, own = backbone.get("every_branch", {}), backbone["branches"][int(keys[3])]
        if isinstance(shared, dict) and keys[4] in shared and keys[4] not in own:
            return ["model", "backbone", "every_branch", *keys[4:]]
    return keys


def _describe(error: Any, data: dict[str, Any], origin: dict[str, str], source: str) -> str:
    kind, message = error["type"], error["msg"].removeprefix("Value error, ")
    parts, models = _follow(error["loc"])
    if kind == "unknown_key":
        parts.append(error["ctx"]["key"])
    elif kind == "union_tag_invalid":
        parts.append("type")
        given, types = error["ctx"]["tag"], _types(models)
        message = f"unknown type '{given}', not among {', '.join(types)}; {nearest(given, types, 'name one of these')}"
    elif kind == "union_tag_not_found":
        parts.append("type")
        message = f"Field required, one of {', '.join(_types(models))}"
    elif kind in ("model_type", "model_attributes_type"):
        message = "Input should be a mapping of keys"
    parts = _as_written(parts, data)
    dotted = ".".join(parts)
    keys = (".".join(parts[:end]) for end in range(len(parts), 0, -1))
    file = next((origin[key] for key in keys if key in origin), source)
    got = "" if kind in _SAY_WHAT_WAS_GIVEN else f" (got {error['input']!r})"
    return f"{file}: {dotted or 'config'}: {message}{got}"
