"""`piip show`."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from piip.cli.options import ConfigName, Data, Json, Overrides, with_data

if TYPE_CHECKING:
    from yaml.nodes import Node

# Where the comments begin, unless a line is longer.
_COLUMN = 44


def show(config: ConfigName, overrides: Overrides = None, data: Data = None, json: Json = False) -> None:
    """Print a config as it is once its bases and settings are merged, and behind each value what set it."""
    import yaml
    from rich.text import Text

    from piip.cli.console import out, print_json
    from piip.config.load import load_with_origins
    from piip.errors import visible

    resolved, origins = load_with_origins(config, with_data(overrides, data))
    document = resolved.model_dump(mode="json")
    if json:
        print_json({"config": document, "origins": origins})
        return
    text = yaml.dump(document, Dumper=_dumper(), sort_keys=False, allow_unicode=True, width=float("inf"))
    comments = _comments(yaml.compose(text, Loader=yaml.SafeLoader), origins)
    console = out()
    for number, line in enumerate(text.splitlines()):
        comment = f"{'':{max(_COLUMN - len(line), 2)}}# {visible(comments[number])}" if number in comments else ""
        console.print(Text(line).append(comment, style="dim"))


def _dumper() -> Any:
    """A safe dumper that writes lists of plain values in one line."""
    import yaml

    def represent_list(dumper: yaml.SafeDumper, items: list[Any]) -> yaml.SequenceNode:
        plain = not any(isinstance(item, dict) for item in items)
        return dumper.represent_sequence("tag:yaml.org,2002:seq", items, flow_style=plain)

    class Dumper(yaml.SafeDumper):
        pass

    Dumper.add_representer(list, represent_list)
    return Dumper


def _comments(root: Node | None, origins: Mapping[str, str]) -> dict[int, str]:
    """By number, the lines on which a value ends that something has set, and what has."""
    return {line: origins[key] for key, line in _ends(root, "") if key in origins}


def _ends(node: Any, key: str) -> Iterator[tuple[str, int]]:
    """The values below a node, and on which line each of them ends."""
    if node.id == "scalar" or node.flow_style:
        yield key, node.end_mark.line
        return
    items = node.value if node.id == "mapping" else enumerate(node.value)
    for name, value in items:
        name = name if isinstance(name, int) else name.value
        yield from _ends(value, f"{key}.{name}" if key else str(name))
