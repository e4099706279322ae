"""Reads YAML within bounds: configs are small, and anything large is refused before it takes time or memory."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from piip.errors import ConfigError

# About twenty times what the largest resolved config needs; this much is read in a second.
_MOST_BYTES = 256_000
_MOST_VALUES = 10_000
_DEEPEST = 50
_LONG_TEXT = 100
# No setting needs a larger number, and neither PyTorch nor numpy takes one.
_LARGEST = 2**63


class _RefusedError(Exception):
    """The text is refused. line: the line of the fault, counted from 0."""

    def __init__(self, message: str, mark: Any) -> None:
        super().__init__(message)
        self.line: int = mark.line


class _Loader(yaml.SafeLoader):
    """Counts the values, with those that aliases stand for, and refuses duplicate keys and absurd numbers."""

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self.depth = 0
        # The number of values in every complete node, by its identity; a long text counts as several values.
        self.sizes: dict[int, int] = {}

    def compose_node(self, parent: Any, index: Any) -> Any:
        event: Any = self.peek_event()
        if self.depth == _DEEPEST:
            raise _RefusedError(f"brackets or keys are more than {_DEEPEST} deep", event.start_mark)
        self.depth += 1
        node = super().compose_node(parent, index)
        self.depth -= 1
        if isinstance(event, yaml.AliasEvent):
            if id(node) not in self.sizes:
                raise _RefusedError("an anchor refers to itself", event.start_mark)
            return node
        if isinstance(node, yaml.MappingNode):
            _refuse_twice(node)
            children = [part for pair in node.value for part in pair]
        else:
            children = node.value if isinstance(node, yaml.SequenceNode) else []
        length = len(node.value) // _LONG_TEXT if isinstance(node, yaml.ScalarNode) else 0
        self.sizes[id(node)] = 1 + length + sum(self.sizes[id(child)] for child in children)
        if max(self.sizes[id(node)], len(self.sizes)) > _MOST_VALUES:
            raise _RefusedError(f"more than {_MOST_VALUES} values, anchors written out", event.start_mark)
        return node

    def construct_object(self, node: Any, deep: bool = False) -> Any:
        try:
            value = super().construct_object(node, deep)
        except (ValueError, OverflowError):
            raise _RefusedError(f"{_short(node.value)} is no number or date", node.start_mark) from None
        if isinstance(value, int) and abs(value) >= _LARGEST:
            raise _RefusedError(f"{_short(node.value)} is a number beyond reason", node.start_mark)
        return value


def _refuse_twice(mapping: yaml.MappingNode) -> None:
    lines: dict[tuple[str, str], int] = {}
    for key, _ in mapping.value:
        if not isinstance(key, yaml.ScalarNode):
            continue
        name, line = (key.tag, key.value), key.start_mark.line
        if name in lines:
            raise _RefusedError(f"'{key.value}' is given twice (line {lines[name] + 1})", key.start_mark)
        lines[name] = line


def _short(text: str) -> str:
    return f"'{text}'" if len(text) <= 40 else f"'{text[:30]}...' of {len(text)} characters"


def read_yaml(path: Path) -> Any:
    """The content of a YAML file. Raises ConfigError naming the file and, if there is one, the line at fault."""
    try:
        with path.open("rb") as file:
            data = file.read(_MOST_BYTES + 1)
        if len(data) > _MOST_BYTES:
            raise ConfigError(f"{path} has more than {_MOST_BYTES // 1000} kB, too much for a config")
        return _parse(data.decode("utf-8"))
    except OSError as error:
        raise ConfigError(f"cannot read config {path}: {error.strerror}") from None
    except _RefusedError as error:
        raise ConfigError(f"{path}, line {error.line + 1}: {error}") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} is not valid YAML: {error}") from None


def read_value(override: str, text: str) -> Any:
    """The value of an override. Raises ConfigError naming the override."""
    try:
        if len(text) > _MOST_BYTES:
            raise ConfigError(f"override '{override[:40]}...' has more than {_MOST_BYTES // 1000} kB")
        return _parse(text)
    except _RefusedError as error:
        raise ConfigError(f"override {_short(override)}: {error}") from None
    except yaml.YAMLError:
        raise ConfigError(
            f"override {_short(override)}: the value is not valid YAML; with spaces, brackets or quotes in it, give it "
            "in quotes, as in 'key=[1, 2]'"
        ) from None


def _parse(text: str) -> Any:
    loader = _Loader(text)
    try:
        return loader.get_single_data()
    finally:
        loader.dispose()
