"""Tensors that follow from sizes are computed once for each size, not in every forward pass."""

from __future__ import annotations

from collections.abc import Callable, Hashable

import torch
from torch import Tensor, nn


class BySize:
    """A function whose latest results are kept: `build(like, *arguments)` for a tensor and hashable arguments.

    build: may use the device and the dtype of `like`, and its values only where they never change.
    limit: the number of results that are kept; the oldest is dropped first.

    Results are shared by all callers, who must not write into them, and may be used in training: they are made outside
    of inference mode, without a gradient. Nothing is kept or reused for fake tensors and other subclasses, nor while a
    graph is traced or captured, which then holds the computation itself.
    """

    def __init__(self, build: Callable[..., Tensor], *, limit: int) -> None:
        self.build, self.limit = build, limit
        self._kept: dict[Hashable, Tensor] = {}

    def __call__(self, like: Tensor, *arguments: Hashable) -> Tensor:
        """What `build` returns for these arguments, on the device of `like`."""
        if torch.compiler.is_compiling() or type(like) not in (Tensor, nn.Parameter) or _capturing(like):
            return self.build(like, *arguments)
        key = (arguments, like.device, like.dtype)
        found = self._kept.get(key)
        if found is None:
            with torch.inference_mode(False), torch.no_grad():
                found = self.build(like, *arguments)
            while len(self._kept) >= self.limit:
                self._kept.pop(next(iter(self._kept)), None)
            self._kept[key] = found
        return found


def _capturing(like: Tensor) -> bool:
    """A captured tensor lies in its graph's memory, and a graph does not keep alive what it reads."""
    return like.is_cuda and torch.cuda.is_current_stream_capturing()
