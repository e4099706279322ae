"""Explains pydantic's errors: the file or command line at fault, the key, what is wrong with it, and the remedy."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from pydantic import ValidationError
from pydantic.fields import FieldInfo

from piip.config.draft import COMMAND_LINE
from piip.config.strict import Strict, meant_type, models_in, nearest, of_type, types_of
from piip.errors import first_few

_MAPPING = "a mapping of keys, as in {{key: value}}"

# What to give instead, by the beginning of pydantic's error type. The given value is shown behind these words.
_WORDS = {
    "int_": "a whole number, as in 8",
    "float_": "a number, as in 0.5",
    "bool_": "true or false",
    "string_": "text",
    "path_": "a path",
    "dict_": _MAPPING,
    "model_": _MAPPING,
    "finite_number": "a finite number",
    "literal_error": "one of {expected}",
    "greater_than_equal": "a number of at least {ge:g}",
    "greater_than": "a number greater than {gt:g}",
    "less_than_equal": "a number of at most {le:g}",
    "less_than": "a number less than {lt:g}",
    "multiple_of": "a multiple of {multiple_of}",
    "too_short": "a list of at least {min_length}",
    "too_long": "a list of at most {max_length}",
}
# The most mistakes that a message lists.
_MOST = 20
# If a key here is at least this similar to the given one, it is suggested, rather than an equal key elsewhere.
_CLOSE = 0.75
# Error types that concern a list as a whole.
_LISTS = ("tuple_type", "list_type")


class _Place(NamedTuple):
    """The place of a mistake, in terms of a config file.

    keys: the keys that lead to it. models: the models that may stand there. family: the same before the type is known.
    field: the field that the last key names.
    """

    keys: list[str]
    models: list[type[Strict]]
    family: list[type[Strict]]
    field: FieldInfo | None


def explain(
    error: ValidationError, root: type[Strict], data: dict[str, Any], origin: Mapping[str, str], source: str
) -> str:
    """The mistakes, one per line.

    data: what was checked. origin: the file that set each dotted key, or the command line. source: the file that was
    loaded, which is named for keys that nobody set.
    """
    found = error.errors()[:_MOST]
    # pydantic counts only the valid items of a list, so that a list with a mistake seems to be too short as well.
    containers = {item["loc"][:end] for item in found for end in range(len(item["loc"]))}
    lines: dict[tuple[str, str], list[str]] = {}
    for item in found:
        if item["type"] != "too_short" or item["loc"] not in containers:
            where, what, given = _describe(item, root, data, origin, source)
            ways = lines.setdefault((where, given), [])
            # A setting that takes several types has an error for each; a mistake in every_branch is reported once per
            # branch, and kept once.
            if what not in ways:
                ways.append(what)
    told = [f"{where}: {_alternatives(ways)}{given}" for (where, given), ways in lines.items()]
    more = error.error_count() - len(found)
    return "\n".join([*told, *([f"and {more} more mistakes"] if more else [])])


def _alternatives(ways: list[str]) -> str:
    return ", or ".join([ways[0], *(way.removeprefix("give ") for way in ways[1:])])


def _describe(
    error: Any, root: type[Strict], data: dict[str, Any], origin: Mapping[str, str], source: str
) -> tuple[str, str, str]:
    kind, context = error["type"], error.get("ctx", {})
    place, given = _follow(error["loc"], root, data), f" (got {_shown(error['input'])})"
    keys = place.keys
    words = next((words for start, words in _WORDS.items() if kind.startswith(start)), None)
    if kind == "unknown_key":
        what, given = f"{error['msg']}; {_hint(context['key'], place, root)}", ""
        keys = [*keys, context["key"]]
    elif kind == "unknown_type":
        types, keys = types_of(place.family), [*keys, "type"]
        what, named = f"name one of {', '.join(types)}", error["input"].get("type", "")
        given = "" if isinstance(named, str) else f" (got {_shown(named)})"
        if isinstance(named, str) and named:
            hint = nearest(named, types) or "name one of these"
            what = f"unknown type '{named}', not among {', '.join(types)}; {hint}"
    elif kind in _LISTS or (kind == "missing" and isinstance(error["loc"][-1], int)):
        while keys and keys[-1].isdecimal():
            keys = keys[:-1]
        what, given = f"give a list{_example(place.field)}", f" (got {_shown(_value(data, keys, error['input']))})"
    elif kind == "missing":
        what, given = "this key is missing", ""
    elif words is not None:
        what = f"give {words.format_map(context)}"
    else:
        what, given = error["msg"].removeprefix("Value error, "), given if kind != "value_error" else ""
    keys = _as_written(keys, data)
    dotted = ".".join(keys) or "config"
    concerned = re.findall(r"\w+(?:\.\w+)*", what) if kind == "value_error" else []
    return f"{_culprit(keys, concerned, origin, source)}: {dotted}", what, given


def _follow(location: Sequence[str | int], root: type[Strict], data: Any) -> _Place:
    """The keys that lead to a mistake, and the models on the way. The data say which member of a family is meant."""
    keys: list[str] = []
    models = family = [root]
    field: FieldInfo | None = None
    for part in location:
        if isinstance(part, int):
            keys.append(str(part))
        elif models and part in models[0].model_fields:
            keys.append(part)
            field = models[0].model_fields[part]
            models = family = models_in(field.annotation)
        else:
            continue
        found = _value(data, keys, None)
        if field is not None and isinstance(found, dict):
            models = of_type(family, meant_type(field, found))
    return _Place(keys, models, family, field)


def _as_written(keys: list[str], data: dict[str, Any]) -> list[str]:
    """The keys of every_branch instead, for a setting that a branch has from there."""
    if keys[:3] == ["model", "backbone", "branches"] and len(keys) > 4:
        backbone = data["model"]["backbone"]
        shared, own = backbone.get("every_branch", {}), backbone["branches"][int(keys[3])]
        # Keys in a file may be numbers.
        if isinstance(shared, dict) and keys[4] in map(str, shared) and keys[4] not in map(str, own):
            return ["model", "backbone", "every_branch", *keys[4:]]
    return keys


def _culprit(keys: list[str], concerned: Sequence[str], origin: Mapping[str, str], source: str) -> str:
    """The file that set the key, or that set one of the concerned settings below it last; or the command line."""
    below = "".join(f"{key}." for key in keys)
    writers = {
        writer for key, writer in origin.items() if key.startswith(below) and _among(key[len(below) :], concerned)
    }
    for last in (COMMAND_LINE, source):
        if last in writers:
            return last
    return next((origin[key] for end in range(len(keys), 0, -1) if (key := ".".join(keys[:end])) in origin), source)


def _among(key: str, names: Sequence[str]) -> bool:
    return any(key == name or name.startswith(f"{key}.") or key.startswith(f"{name}.") for name in names)


def _hint(key: str, place: _Place, root: type[Strict]) -> str:
    """The remedy for an unknown key: the type that has it, the nearest key here or elsewhere, or all valid keys."""
    (model,) = place.models
    owners = [name for other in place.family if key in other.model_fields for name in types_of([other])]
    if owners:
        here = f"{'.'.join(place.keys)}.type is {', '.join(types_of([model]))}"
        return f"'{key}' belongs to type {', '.join(owners)}; {here}"
    names = [*model.model_fields, *(["base"] if model is root else [])]
    elsewhere = dict.fromkeys(path for path in _paths(root) if path.split(".")[-1] == key)
    if close := nearest(key, names, cutoff=_CLOSE):
        return close
    if elsewhere:
        return f"did you mean {first_few(list(elsewhere), 3)}?"
    return nearest(key, names) or f"valid keys: {', '.join(names)}"


def _paths(model: type[Strict], prefix: str = "") -> Iterator[str]:
    """Every dotted key, with 0 for the items of lists."""
    for name, field in model.model_fields.items():
        yield f"{prefix}{name}"
        models = models_in(field.annotation)
        item = "0." if models and "tuple" in str(field.annotation) else ""
        for inner in models:
            yield from _paths(inner, f"{prefix}{name}.{item}")


def _example(field: FieldInfo | None) -> str:
    if field is None:
        return ""
    example = (field.examples or [field.default])[0]
    return f", as in {json.dumps(example, separators=(',', ':'))}" if isinstance(example, (list, tuple)) else ""


def _value(data: Any, keys: Sequence[str], otherwise: Any) -> Any:
    for key in keys:
        if isinstance(data, dict) and key in data:
            data = data[key]
        elif isinstance(data, (list, tuple)) and key.isdecimal() and int(key) < len(data):
            data = data[int(key)]
        else:
            return otherwise
    return data


def _shown(value: Any) -> str:
    """A value as it would stand in a file, shortened where it is long."""
    if value is None or isinstance(value, bool):
        return json.dumps(value)
    text = repr(value) if isinstance(value, (str, list, dict)) else str(value)
    return text if len(text) <= 100 else f"{text[:97]}..."
