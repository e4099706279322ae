"""Counts on CPU tensors where the same code on a GPU would wait for the device, or could not be captured in a graph.

Every tensor stands for one on a device, but for those that are known to lie in host memory: what `torch.tensor(data)`
without a device and `torch.from_numpy` make, copies by `.cpu()` or `.to("cpu")`, what `keep_on_host` is told, and all
that is computed from such tensors alone.
"""

from __future__ import annotations

import traceback
from collections import Counter
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

ROOT = Path(__file__).resolve().parents[1]
# Operators whose CUDA kernels read a number or a size back.
READS = {
    "aten::_local_scalar_dense": "item",
    "aten::nonzero": "nonzero",
    "aten::masked_select": "nonzero",
    "aten::_unique2": "unique",
    "aten::unique_dim": "unique",
    "aten::unique_consecutive": "unique",
    "aten::bincount": "bincount",
    "aten::equal": "equal",
    "torchvision::nms": "nms",
}
MAKES = ("tensor", "as_tensor", "new_tensor")
READERS = ("tolist", "numpy", "__array__")
CALLS = {
    torch: ("tensor", "as_tensor"),
    Tensor: ("new_tensor", "__getitem__", "__setitem__", "cpu", "cuda", "to", *READERS),
    F: ("one_hot",),
}


class Waits(TorchDispatchMode):
    """A context: `counts` has the waits by kind, `places` by kind and the line of this project that caused them.

    Kinds: "item" (also bool, int and float), "nonzero" (also masks as indices), "unique", "bincount", "equal", "nms",
    "repeat_interleave", "to host" (`.cpu()`, `tolist`, `numpy`) and "from host" (`torch.tensor(data, device=...)`,
    `new_tensor(data)`, lists as indices, blocking copies of host tensors). Copies with non_blocking=True do not wait.
    forbidden: a wait is an AssertionError at its place, as it is an error in a capture.
    """

    def __init__(self, *, forbidden: bool = False) -> None:
        super().__init__()
        self.forbidden = forbidden
        self.counts: Counter[str] = Counter()
        self.places: Counter[tuple[str, str]] = Counter()
        self._host: dict[int, torch.UntypedStorage] = {}  # kept alive, so that no address comes twice
        self._calls = _Calls(self)

    def __enter__(self) -> Waits:
        super().__enter__()
        self._calls.__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        self._calls.__exit__(*error)
        super().__exit__(*error)

    def total(self) -> int:
        return sum(self.counts.values())

    def keep_on_host(self, *tensors: Tensor) -> None:
        """These lie in host memory on a GPU machine too."""
        for tensor in tensors:
            storage = tensor.untyped_storage()
            if storage.data_ptr():
                self._host[storage.data_ptr()] = storage

    def on_host(self, tensor: Tensor) -> bool:
        return tensor.layout == torch.strided and tensor.untyped_storage().data_ptr() in self._host

    def count(self, kind: str) -> None:
        # An environment may lie within the project.
        ours = [f for f in traceback.extract_stack() if f.filename.startswith(str(ROOT)) and f.filename != __file__]
        frames = [f for f in ours if "site-packages" not in f.filename]
        place = f"{Path(frames[-1].filename).relative_to(ROOT)}:{frames[-1].lineno}" if frames else "torch"
        assert not self.forbidden, f"waits for the device ({kind}) at {place}"
        self.counts[kind] += 1
        self.places[kind, place] += 1

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        given = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        result = func(*args, **(kwargs or {}))
        if func is torch.ops.aten.lift_fresh.default:
            self._lifted(result)
        elif self._calls.silent:
            return result
        elif given and all(map(self.on_host, given)):
            self.keep_on_host(*(leaf for leaf in tree_leaves(result) if isinstance(leaf, Tensor)))
        else:
            kind = self._kind(func, args, kwargs or {})
            if kind is not None:
                self.count(kind)
        return result

    def _kind(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> str | None:
        name = func._schema.name
        if name == "aten::repeat_interleave" and kwargs.get("output_size") is None:
            return "repeat_interleave"
        if name in ("aten::index", "aten::index_put", "aten::index_put_", "aten::_index_put_impl_"):
            indices = [index for index in args[1] if index is not None]
            if any(index.dtype in (torch.bool, torch.uint8) for index in indices):
                # A number written through a mask is a masked_fill.
                return None if len(args) > 2 and args[2].numel() == 1 and self.on_host(args[2]) else "nonzero"
            return "from host" if any(index.numel() and self.on_host(index) for index in indices) else None
        return READS.get(name)

    def _lifted(self, tensor: Tensor) -> None:
        """A tensor that PyTorch has made from host data: by from_numpy, for an index or a value, or by one of MAKES."""
        if tensor.dim() and self._calls.inside in ("__getitem__", "__setitem__"):
            self.count("from host")
        else:
            self.keep_on_host(tensor)


class _Calls(ExitStack):
    """Replaces the calls for which a CPU tensor needs no operator, above all copies between host and device.

    A TorchFunctionMode would not see those within a backward.
    """

    def __init__(self, waits: Waits) -> None:
        super().__init__()
        self.waits = waits
        self.inside = ""
        self.silent = False

    def __enter__(self) -> _Calls:
        for owner, names in CALLS.items():
            for name in names:
                self.enter_context(patch.object(owner, name, self._replacement(name, getattr(owner, name))))
        return self

    def _replacement(self, name: str, call: Callable[..., Any]) -> Callable[..., Any]:
        def replacement(*args: Any, **kwargs: Any) -> Any:
            outer = self.inside, self.silent
            # On a CPU only, it looks at the smallest and the largest class.
            self.inside, self.silent = name, name == "one_hot" and bool(args[1:] or kwargs)
            try:
                result = call(*args, **kwargs)
            finally:
                self.inside, self.silent = outer
            return result if outer[0] else self._seen(name, result, args, kwargs)

        return replacement

    def _seen(self, name: str, result: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        waits, device = self.waits, kwargs.get("device", args[1] if len(args) > 1 else None)
        if name in MAKES:
            # Without a device it stays on the host; from a tensor it may be that tensor.
            if isinstance(args[-1], Tensor) or (name != "new_tensor" and kwargs.get("device") is None):
                return result
            waits.count("from host")
            return self._elsewhere(result)
        if name in READERS and not waits.on_host(args[0]):
            waits.count("to host")
        elif name in ("cpu", "cuda", "to"):
            to_host = name == "cpu" or (name == "to" and device == "cpu")
            to_device = name == "cuda" or (name == "to" and isinstance(device, (torch.device, str)) and not to_host)
            if to_device if waits.on_host(args[0]) else to_host:
                if not kwargs.get("non_blocking"):
                    waits.count("to host" if to_host else "from host")
                result = self._elsewhere(result)
                if to_host:
                    waits.keep_on_host(result)
        return result

    def _elsewhere(self, tensor: Tensor) -> Tensor:
        """A copy in memory of its own: the host's is not the device's."""
        self.silent = True
        try:
            return tensor.clone()
        finally:
            self.silent = False
