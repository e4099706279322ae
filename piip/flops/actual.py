"""Parameters and multiply-accumulates of a network as it really runs; counted on the meta device, computing nothing."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode, flop_registry

from piip.config.experiment import ModelConfig
from piip.errors import PiipError, first_line
from piip.flops.costs import Cost, Count, Part
from piip.load import Uninitialised, build_model
from piip.model import Model
from piip.ops import register_flop_formulas

# Besides views and pointwise ops, what counts as free by convention, having no formula in torch's registry: allocation
# and copies, norms, softmax and other reductions, and pooling.
_FREE = {
    "arange", "as_strided", "cat", "clone", "constant_pad_nd", "copy_", "empty", "empty_like", "full", "full_like",
    "index", "linspace", "new_empty", "ones", "ones_like", "scalar_tensor", "stack", "zeros", "zeros_like", "_to_copy",
    "_unsafe_index", "_unsafe_view", "cumsum", "gather", "new_full", "repeat", "roll", "topk", "all", "amax", "amin",
    "any", "mean", "sum", "_safe_softmax", "_softmax", "native_group_norm", "native_layer_norm",
    "_native_batch_norm_legit_no_training", "native_batch_norm", "max_pool2d_with_indices", "_adaptive_avg_pool2d",
    "upsample_nearest2d"
}  # fmt: skip


def _taps(count: int) -> Callable[..., int]:
    """The FLOPs of resampling that reads `count` cells for every cell it writes."""

    def flops(*_: Any, out_shape: Any, **__: Any) -> int:
        return 2 * count * math.prod(out_shape)

    return flops


_RESAMPLING = {
    torch.ops.aten.upsample_bilinear2d: _taps(4),
    torch.ops.aten.upsample_bicubic2d: _taps(16),
}


def actual_count(config: ModelConfig, size: tuple[int, int]) -> Count:
    """What the inference of one image of `size` (h, w) pixels costs, by part.

    Counts the multiply-accumulates of matrix products, convolutions, attention, resampling and the project's own ops;
    attention windows with the padding they really have; heads at their limits, see `Head.run_for_count`.
    Raises PiipError where a head cannot run without values.
    """
    with torch.device("meta"), Uninitialised():
        model = build_model(config).eval().requires_grad_(False)
        images = torch.empty(1, 3, *size)
    register_flop_formulas()
    seen = _SeenOps()
    with torch.no_grad(), seen, FlopCounterMode(display=False, custom_mapping=_RESAMPLING) as counter:
        _Inference(model)(images)
    flops = {name: sum(counts.values()) for name, counts in counter.get_flop_counts().items()}
    parts = [
        Part(label, Cost(_params(model.get_submodule(name)), _below(f"_Inference.model.{name}", flops) // 2))
        for label, name in parts_of(model)
    ]
    named = Count(tuple(parts)).total
    parts.append(Part("other", Cost(_params(model) - named.params, flops["Global"] // 2 - named.macs)))
    return Count(tuple(part for part in parts if part.cost != Cost()), uncounted=tuple(sorted(seen.uncounted)))


def parts_of(model: Model) -> list[tuple[str, str]]:
    """What the table tells apart: a label, and the name of the module inside the model."""
    names = model.config.backbone.branch_names
    branches = [(label, f"backbone.branches.{index}") for index, label in enumerate(names)]
    shared = [(name, f"backbone.{name}") for name, _ in model.backbone.named_children() if name != "branches"]
    heads = [(label, f"head.{name}".rstrip(".")) for label, name in model.head.parts().items()]
    return [*branches, *shared, ("neck", "neck"), *heads]


def _params(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def _below(name: str, flops: dict[str, int]) -> int:
    """Sum over the outermost modules at or below `name` that were called; a branch's blocks are called one by one."""
    called = sorted(key for key in flops if key == name or key.startswith(f"{name}."))
    outermost: list[str] = []
    for key in called:
        if not outermost or not key.startswith(f"{outermost[-1]}."):
            outermost.append(key)
    return sum(flops[key] for key in outermost)


class _Inference(nn.Module):
    """Everything a model multiplies at inference; the module that names are relative to."""

    def __init__(self, model: Model) -> None:
        super().__init__()
        self.model = model

    def forward(self, images: Tensor) -> None:
        """Images (1, 3, H, W)."""
        features = self.model.neck(self.model.backbone(images))
        height, width = images.shape[2:]
        head = self.model.head
        try:
            head.run_for_count(features, [(height, width)])
        except (NotImplementedError, RuntimeError) as error:
            raise PiipError(
                f"{type(head).__name__} cannot be counted, for it needs the values of tensors ({first_line(error)}); "
                "give it a run_for_count that does without"
            ) from error


class _SeenOps(TorchDispatchMode):
    """Notes the ops that do arithmetic but have no formula."""

    def __init__(self) -> None:
        super().__init__()
        self.uncounted: set[str] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        packet = func.overloadpacket
        by_convention = func.namespace == "aten" and packet.__name__ in _FREE
        free = by_convention or func.is_view or torch.Tag.pointwise in func.tags
        if not free and packet not in flop_registry and packet not in _RESAMPLING:
            self.uncounted.add(f"{func.namespace}.{packet.__name__}")
        return func(*args, **(kwargs or {}))
