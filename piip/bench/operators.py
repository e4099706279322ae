"""Counting what a network asks of the device: operators that compute or copy, one launch or more each."""

from __future__ import annotations

from collections import Counter
from typing import Any

from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

_COPIES = {"to", "_to_copy", "contiguous", "clone", "reshape"}


class Operators(TorchDispatchMode):
    """Counts, within its block, the operators that do not just return their input or views of it.

    counts: by name without namespace and overload; "cast" where only the dtype changes, "copy" where only the layout
    does. contiguous: of layer_norm and group_norm, whether each got a contiguous input. casts: shapes of what was cast.
    """

    def __init__(self) -> None:
        super().__init__()
        self.counts: Counter[str] = Counter()
        self.contiguous: list[bool] = []
        self.casts: list[tuple[int, ...]] = []

    @property
    def total(self) -> int:
        return self.counts.total()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        given = [x for x in tree_leaves((args, kwargs)) if isinstance(x, Tensor)]
        made = [x for x in tree_leaves(out) if isinstance(x, Tensor)]
        storages = {x.untyped_storage()._cdata for x in given}
        if not func._schema.is_mutable and all(x.untyped_storage()._cdata in storages for x in made):
            return out
        name = func.name().split("::")[1].split(".")[0]
        if name in _COPIES and given:
            name = "copy" if given[0].dtype == made[0].dtype else "cast"
            self.casts += [tuple(given[0].shape)] if name == "cast" else []
        if name in ("layer_norm", "group_norm"):
            self.contiguous.append(given[0].is_contiguous())
        self.counts[name] += 1
        return out
