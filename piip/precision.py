"""Inference in bfloat16 without casting the weights again for every image.

Autocast casts the weights of linear layers and convolutions in every forward pass; in inference mode it keeps nothing.
A prepared model holds them in bfloat16, and every layer takes its input in the dtype of its weights, so that it needs
no autocast and gives what autocast gives, to the bit.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from piip.errors import ConfigError
from piip.ops import MSDeformAttn
from piip.ops.exported import is_exporting

M = TypeVar("M", bound=nn.Module)

# The layers that autocast runs in bfloat16, and those that it runs in float32.
LOWERED = (nn.Linear, nn.Conv2d, nn.ConvTranspose2d, nn.MultiheadAttention)
KEPT = (nn.LayerNorm, nn.GroupNorm, nn.RMSNorm)


def full_precision(like: Tensor) -> AbstractContextManager[object]:
    """The context in which float32 stays float32, also within a forward pass in lower precision."""
    kind = like.device.type
    return nullcontext() if kind == "meta" else torch.autocast(kind, enabled=False)


def compute_dtype(device: torch.device, precision: str) -> torch.dtype:
    """float32 or bfloat16, for the precision of a config: 'auto', 'fp32' or 'bf16'.

    auto is bf16 on GPUs that have it and fp32 everywhere else: CPUs without bf16 units are several times slower in it.
    Raises ConfigError when bf16 is asked of a GPU that does not have it.
    """
    native = device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False)
    if precision == "bf16" and device.type == "cuda" and not native:
        raise ConfigError(f"{torch.cuda.get_device_name(device)} has no bf16; set train.precision=fp32")
    return torch.bfloat16 if precision == "bf16" or (precision == "auto" and native) else torch.float32


def prepared_copy(model: M, dtype: torch.dtype) -> M:
    """A copy of a model, prepared; it shares all tensors of the model that it has in the same dtype."""
    shared = {id(tensor): tensor for tensor in (*model.parameters(), *model.buffers())}
    return prepare(copy.deepcopy(model, shared), dtype)


def prepare(model: M, dtype: torch.dtype) -> M:
    """Makes a model, in place, one for inference alone, with the weights that it has, and returns it.

    dtype: float32, or bfloat16 for what would run in it under autocast: the linear layers and convolutions of modules
    whose `mixed_precision` is true, or that of the nearest module around them that has one. Their float32 weights are
    gone. Modules with a method `fold` compute what follows from their weights alone; the state dict may change.
    """
    for module in model.modules():
        fold = getattr(module, "fold", None)
        if fold is not None:
            fold()
    if dtype != torch.float32:
        _lower(model, dtype, mixed=False)
    return model.eval()


def allocate(model: nn.Module, dtype: torch.dtype) -> None:
    """Gives parameters that have no values yet the dtype in which `prepare` will want them."""
    for module in _lowered(model) if dtype != torch.float32 else ():
        for parameter in module.parameters(recurse=False):
            parameter.data = torch.empty_like(parameter, dtype=dtype)


def _lowered(module: nn.Module, *, mixed: bool = False) -> Iterator[nn.Module]:
    """The layers whose weights `_lower` casts."""
    mixed = getattr(module, "mixed_precision", mixed)
    if mixed and isinstance(module, LOWERED):
        yield module
    for child in module.children():
        yield from _lowered(child, mixed=mixed)


def _lower(module: nn.Module, dtype: torch.dtype, *, mixed: bool) -> None:
    mixed = getattr(module, "mixed_precision", mixed)
    if mixed and isinstance(module, LOWERED):
        for name, parameter in module.named_parameters(recurse=False):
            setattr(module, name, nn.Parameter(parameter.detach().to(dtype), requires_grad=False))
        module.register_forward_pre_hook(partial(_cast_all, dtype))
    elif mixed and isinstance(module, KEPT):
        module.register_forward_pre_hook(_keep_precision)
    elif mixed and isinstance(module, MSDeformAttn):
        module.register_forward_pre_hook(partial(_cast_features, dtype))
    for child in module.children():
        _lower(child, dtype, mixed=mixed)


def _cast_all(dtype: torch.dtype, module: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    return tuple(x.to(dtype) for x in inputs)


def _cast_features(dtype: torch.dtype, module: nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
    """Queries, which two layers read, are cast once; reference points stay in float32."""
    query, reference_points, input_flatten, *others = inputs
    return query.to(dtype), reference_points, input_flatten.to(dtype), *others


def _keep_precision(module: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...] | None:
    # Norms of the CPU take bfloat16 beside float32 weights, and autocast leaves it to them; those of ONNX do not.
    left = inputs[0].device.type == "cpu" and not is_exporting()
    return None if left else tuple(x.float() for x in inputs)
