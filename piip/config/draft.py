"""A config while it is put together from files and the command line."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from typing import Any

from pydantic.fields import FieldInfo

from piip.config.experiment import Config
from piip.config.reading import read_value
from piip.config.strict import Strict, meant_type, models_in, of_type
from piip.errors import ConfigError

COMMAND_LINE = "command line"

# These keys belong to one experiment and are not inherited.
_OWN_KEYS = ("name", "official", "released", "published", "alternative", "alias", "weights")


class Draft:
    """A config that is being merged.

    data: what has been merged so far. origin: for every dotted key the file that set it last, or COMMAND_LINE. file:
    the file that the draft is made from.
    """

    def __init__(self, file: str) -> None:
        self.file = file
        self.data: dict[str, Any] = {}
        self.origin: dict[str, str] = {}

    def inherit(self, base: Draft) -> None:
        """Merges another config, except for the keys that belong to that one alone."""
        data = {key: value for key, value in base.data.items() if key not in _OWN_KEYS}
        self._merge(self.data, data, "", [Config], lambda key: base.origin.get(key, base.file))

    def add(self, data: dict[str, Any]) -> None:
        """Merges the content of the file itself."""
        self._merge(self.data, data, "", [Config], lambda _: self.file)

    def _merge(
        self,
        target: dict[str, Any],
        update: dict[str, Any],
        prefix: str,
        models: Sequence[type[Strict]],
        writer: Callable[[str], str],
    ) -> None:
        """Merges mappings key by key. Any other value replaces the old one, and so does a mapping of another type.

        models: the models that may stand at the prefix. They say which type is meant where none is named.
        """
        for key, value in update.items():
            dotted, old = f"{prefix}{key}", target.get(key)
            field = next((model.model_fields[key] for model in models if key in model.model_fields), None)
            held = meant_type(field, old) if isinstance(old, dict) and field is not None else None
            merges = isinstance(value, dict) and isinstance(old, dict) and held in (None, value.get("type", held))
            if isinstance(old, dict) and not merges:
                self._forget(dotted)
            self.origin[dotted] = writer(dotted)
            if isinstance(value, dict):
                target[key] = old if merges else {}
                members = []
                if field is not None:
                    members = of_type(models_in(field.annotation), value.get("type", held) or meant_type(field, value))
                self._merge(target[key], value, f"{dotted}.", members, writer)
            else:
                # Overrides change lists in place, and with a YAML alias one list may stand in several places.
                target[key] = copy.deepcopy(value)

    def override(self, text: str) -> None:
        """Applies `key.sub=value` from the command line. Raises ConfigError."""
        key, separator, value_text = text.partition("=")
        key = key.strip()
        if not separator or not key:
            raise ConfigError(f"override '{text}' is not of the form key.sub=value, without spaces around '='")
        value = read_value(text, value_text)
        *parents, last = key.split(".")
        node: Any = self.data
        for depth, part in enumerate(parents, 1):
            place = ".".join(parents[:depth])
            if isinstance(node, dict) and part not in node:
                self.origin[place] = COMMAND_LINE
            node = _child(node, part, f"override '{text}': '{place}'")
        if isinstance(node, list):
            _child(node, last, f"override '{text}': '{key}'")
            node[int(last)] = value
        elif isinstance(node, dict):
            if last == "type":
                self._retype(node, ".".join(parents), value)
            node[last] = value
        else:
            raise ConfigError(f"override '{text}': '{'.'.join(parents)}' holds a single value, not keys")
        self._forget(key)
        self.origin[key] = COMMAND_LINE

    def _retype(self, node: dict[str, Any], place: str, name: Any) -> None:
        """Drops the settings that files gave to a part that gets another type, as merging does."""
        field = _field([Config], place.split("."))
        held = meant_type(field, node) if field is not None else None
        if held in (None, name):
            return
        for key in [key for key in node if self.origin.get(f"{place}.{key}") != COMMAND_LINE]:
            del node[key]
            self._forget(f"{place}.{key}")
            self.origin.pop(f"{place}.{key}", None)
        self.origin[place] = COMMAND_LINE

    def fit_branches(self) -> None:
        """Leaves out inherited settings of every_branch for branches whose type does not have them.

        Settings of the file itself or of the command line are never left out, so that mistakes show.
        """
        key = "model.backbone.every_branch"
        backbone = _get(_get(self.data, "model"), "backbone")
        shared, branches = _get(backbone, "every_branch"), _get(backbone, "branches")
        field = _field([Config], ["model", "backbone", "branches"])
        if field is None or not isinstance(shared, dict) or not isinstance(branches, list):
            return
        family = models_in(field.annotation)
        for name in list(shared):
            if self.origin.get(f"{key}.{name}", self.origin.get(key)) in (self.file, COMMAND_LINE):
                continue
            known = [model for model in family if name in model.model_fields]
            types = [
                of_type(family, meant_type(field, branch)) if isinstance(branch, dict) else known for branch in branches
            ]
            having = [any(model in known for model in models) for models in types]
            if not known or all(having):
                continue
            value, writer = shared.pop(name), self.origin.pop(f"{key}.{name}", self.file)
            for index, (branch, has) in enumerate(zip(branches, having, strict=True)):
                if isinstance(branch, dict) and has and name not in branch:
                    branch[name] = copy.deepcopy(value)
                    self.origin[f"model.backbone.branches.{index}.{name}"] = writer

    def attribute(self, key: str, writer: str) -> None:
        """Notes who set a key and all below it that is not from the command line."""
        for below in [other for other in self.origin if other.startswith(f"{key}.")]:
            if self.origin[below] != COMMAND_LINE:
                del self.origin[below]
        self.origin[key] = writer

    def writer(self, key: str) -> str | None:
        """What set the value at a dotted key of the resolved config; None where nothing did.

        A setting of a branch that only every_branch has comes from there.
        """
        node: Any = self.data
        parts = key.split(".")
        found = None
        for depth, part in enumerate(parts, 1):
            within = isinstance(node, list) and part.isdecimal() and int(part) < len(node)
            if not within and not (isinstance(node, dict) and part in node):
                if parts[:3] == ["model", "backbone", "branches"] and depth == 5:
                    return self.writer(f"model.backbone.every_branch.{'.'.join(parts[4:])}")
                return None
            node = node[int(part)] if within else node[part]
            found = self.origin.get(".".join(parts[:depth]), found)
        return found

    def _forget(self, key: str) -> None:
        """Drops the origins of the keys below a mapping that was replaced."""
        for below in [other for other in self.origin if other.startswith(f"{key}.")]:
            del self.origin[below]


def _get(node: Any, key: str) -> Any:
    return node.get(key) if isinstance(node, dict) else None


def _child(node: Any, part: str, where: str) -> Any:
    if isinstance(node, dict):
        return node.setdefault(part, {})
    if isinstance(node, list):
        if not part.isdecimal() or int(part) >= len(node):
            raise ConfigError(f"{where} does not exist; the list has items 0 to {len(node) - 1}")
        return node[int(part)]
    raise ConfigError(f"{where} does not exist")


def _field(models: Sequence[type[Strict]], keys: Sequence[str]) -> FieldInfo | None:
    """The field that the keys lead to, through lists and all possible types; None where they lead to none."""
    field = None
    for key in keys:
        if not key.isdecimal():
            field = next((model.model_fields[key] for model in models if key in model.model_fields), None)
            models = models_in(field.annotation) if field is not None else []
    return field
