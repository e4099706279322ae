"""mmdetection-style Python configs, read as data: the literals in them are evaluated, and no code is run."""

from __future__ import annotations

import ast
import operator
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from piip.errors import ConfigError

# Longest list or string that a config may repeat itself into.
_MAX_LENGTH = 10_000
_MAX_NUMBER = 10**12

_OPERATORS: dict[type[ast.operator], Callable[[Any, Any], Any]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
    ast.FloorDiv: operator.floordiv,
}


def read_python_config(path: Path, seen: tuple[Path, ...] = ()) -> dict[str, Any]:
    """The variables of a config file, merged onto those of its `_base_` files as mmcv merges them.

    Understood are assignments, `if`, literals, `dict(...)`, `int(...)`, names set before, and arithmetic.
    Raises ConfigError naming file and line for anything else.
    """
    path = path.resolve()
    if path in seen:
        raise ConfigError(f"{path}: '_base_' leads back to itself")
    try:
        tree = ast.parse(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"cannot read {path}: {error.strerror}") from None
    except (SyntaxError, ValueError, RecursionError) as error:
        raise ConfigError(f"{path} is not Python: {error}") from None
    values = _Values(path)
    try:
        values.run(tree.body)
    except RecursionError:
        raise ConfigError(f"{path}: nested too deeply") from None
    own = {name: value for name, value in values.names.items() if name != "_base_"}
    bases = values.names.get("_base_", [])
    merged: dict[str, Any] = {}
    for base in bases if isinstance(bases, list | tuple) else [bases]:
        if not isinstance(base, str) or not (path.parent / base).is_file():
            raise ConfigError(f"{path}: base file not found: {base}; keep the official folders together")
        merged = merged | read_python_config(path.parent / base, (*seen, path))
    return _merged(merged, own)


def _merged(old: Mapping[str, Any], new: Mapping[str, Any]) -> dict[str, Any]:
    """Dicts merge key by key unless the new one says `_delete_`; everything else replaces."""
    result = dict(old)
    for key, value in new.items():
        if isinstance(value, dict):
            base = result.get(key)
            keep = isinstance(base, dict) and not value.get("_delete_", False)
            own = {name: item for name, item in value.items() if name != "_delete_"}
            result[key] = _merged(base if keep and isinstance(base, dict) else {}, own)
        else:
            result[key] = value
    return result


class _Values:
    """Evaluates the statements of one file; names: what they have set."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.names: dict[str, Any] = {}

    def run(self, statements: list[ast.stmt]) -> None:
        for statement in statements:
            if isinstance(statement, ast.Assign) and all(isinstance(target, ast.Name) for target in statement.targets):
                value = self.value(statement.value)
                self.names |= {target.id: value for target in statement.targets if isinstance(target, ast.Name)}
            elif isinstance(statement, ast.If):
                self.run(statement.body if self.value(statement.test) else statement.orelse)
            elif not (isinstance(statement, ast.Expr) and isinstance(statement.value, ast.Constant)):
                self.refuse(statement)

    def value(self, node: ast.expr) -> Any:
        """The value of an expression."""
        if isinstance(node, ast.Constant):
            return node.value
        if isinstance(node, ast.Name) and node.id in self.names:
            return self.names[node.id]
        if isinstance(node, ast.List | ast.Tuple):
            items = [self.value(item) for item in node.elts]
            return items if isinstance(node, ast.List) else tuple(items)
        if isinstance(node, ast.Dict) and all(isinstance(key, ast.Constant) for key in node.keys):
            return {self.value(k): self.value(v) for k, v in zip(node.keys, node.values, strict=True) if k}
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "dict" and not node.args:
            result: dict[str, Any] = {}
            for keyword in node.keywords:
                value = self.value(keyword.value)
                if not keyword.arg and not isinstance(value, dict):
                    self.refuse(node)
                result |= {keyword.arg: value} if keyword.arg else value
            return result
        return self.number(node)

    def number(self, node: ast.expr) -> Any:
        """Arithmetic, also that of lists and strings."""
        try:
            if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub):
                return -self.value(node.operand)
            if isinstance(node, ast.Call) and ast.unparse(node.func) == "int" and len(node.args) == 1:
                return int(self.value(node.args[0]))
            if isinstance(node, ast.BinOp) and type(node.op) in _OPERATORS:
                left, right = self.value(node.left), self.value(node.right)
                self.check_size(node, left, right)
                return _OPERATORS[type(node.op)](left, right)
        except (TypeError, ValueError, ArithmeticError):
            pass
        return self.refuse(node)

    def check_size(self, node: ast.expr, left: Any, right: Any) -> None:
        """A few lines of arithmetic could fill the memory; no config needs long lists or large numbers."""
        sequences = [item for item in (left, right) if isinstance(item, list | tuple | str | bytes)]
        numbers = [item for item in (left, right) if isinstance(item, int | float)]
        times = max([abs(number) for number in numbers], default=1) if sequences else 1
        if sum(map(len, sequences)) * times > _MAX_LENGTH or any(abs(number) > _MAX_NUMBER for number in numbers):
            self.refuse(node)

    def refuse(self, node: ast.stmt | ast.expr) -> Any:
        text = " ".join(ast.unparse(node).split())
        shown = text if len(text) <= 60 else f"{text[:57]}..."
        raise ConfigError(f"{self.path}:{node.lineno}: cannot be read as data: {shown}")
