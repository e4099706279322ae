"""FLOP formulas of the ops, registered when somebody counts.

`torch.utils.flop_counter` imports Triton, which takes longer than everything else here together; importing the ops must
not cost that.
"""

from __future__ import annotations

import importlib.abc
import importlib.util
import sys
from collections.abc import Callable, Sequence
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

COUNTER = "torch.utils.flop_counter"
_formulas: list[tuple[Any, Callable[..., int]]] = []


def register_flops(ops: Any, formula: Callable[..., int]) -> None:
    """What `register_flop_formula(ops)(formula)` does, now or as soon as the counter is imported."""
    _formulas.append((ops, formula))
    module = sys.modules.get(COUNTER)
    if module is not None:
        module.register_flop_formula(ops)(formula)


class _Loader(importlib.abc.Loader):
    def __init__(self, loader: importlib.abc.Loader) -> None:
        self.loader = loader

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        return self.loader.create_module(spec)

    def exec_module(self, module: ModuleType) -> None:
        self.loader.exec_module(module)
        for ops, formula in _formulas:
            module.register_flop_formula(ops)(formula)


class _Finder(importlib.abc.MetaPathFinder):
    """Sees the import of the counter once, and registers the formulas after it."""

    def find_spec(self, name: str, path: Sequence[str] | None, target: ModuleType | None = None) -> ModuleSpec | None:
        if name != COUNTER:
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec(name)
        if spec is not None and spec.loader is not None:
            spec.loader = _Loader(spec.loader)
        return spec


if COUNTER not in sys.modules:
    sys.meta_path.insert(0, _Finder())
