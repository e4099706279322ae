"""How an op is registered with PyTorch: schema, implementations, fake, gradient, refusals, and its FLOP formula."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad

from piip.ops._extension import DISPATCH_KEYS

_library = torch.library.Library("piip", "FRAGMENT")
_flop_formulas: dict[Any, Callable[..., int]] = {}  # by op


class _NotSupported(NotImplementedError):
    def __init__(self, what: str, besides: str = "") -> None:
        # The definition is no way out: the backward of F.grid_sample has no derivative, nor has it a forward mode.
        advice = "differentiate the op once, by backward() or torch.autograd.grad without create_graph"
        super().__init__(f"{what} is not supported; {advice}{besides}")


def register_op(schema: str, run: Callable[..., Any], fake: Callable[..., Any], flops: Callable[..., int]) -> Any:
    """Defines `piip::<schema>` and returns the op; looking it up takes a while on cold caches.

    run: the implementation on every backend. fake: the same for tensors without data. flops: its formula, which is
    given shapes in the place of tensors, as torch.utils.flop_counter has it.
    """
    _library.define(schema)
    name = schema.partition("(")[0]
    for key in DISPATCH_KEYS:
        _library.impl(name, run, key)
    torch.library.register_fake(f"piip::{name}", fake, lib=_library)
    op = getattr(torch.ops.piip, name)
    _flop_formulas[op] = flops
    return op.default


def register_gradient(op: str, save: Callable[..., None], differentiate: Callable[..., Any]) -> Callable[..., Any]:
    """Makes an op differentiable by the means of `<op>_backward`, once and in reverse mode, and returns it.

    save(ctx, inputs, output) after the op ran; differentiate(ctx, *grads). All other ways to differentiate the op, and
    torch.func.vmap, are errors that say what to do; an implementation calls `refuse_forward_mode` for it.
    """
    overload = getattr(torch.ops.piip, op).default

    def call(*inputs: Any) -> Any:
        try:
            return overload(*inputs)
        except NotImplementedError as error:
            # Of a dual tensor that also requires a gradient torch says that an autograd.Function has no jvp.
            if not isinstance(error, _NotSupported):
                refuse_forward_mode(op, *(item for item in inputs if isinstance(item, Tensor)))
            raise

    def backward(ctx: Any, *grads: Any) -> Any:
        results = differentiate(ctx, *grads)
        if torch.is_grad_enabled():  # create_graph=True
            flat = grads[0] if isinstance(grads[0], list) else grads
            return _Final.apply(op, len(results), *results, *flat, *ctx.saved_tensors)
        return results

    def refuse_transform(*inputs: Any) -> Any:
        raise _NotSupported(f"{op} under torch.func", "; instead of vmap, fold the mapped dimension into the batch")

    torch.library.register_autograd(f"piip::{op}", backward, setup_context=save, lib=_library)
    # Below autograd the definition, which differentiates itself where there are no kernels, could not do so.
    _library.impl(f"{op}_backward", torch.library.fallthrough_kernel, "Autograd")
    # The transforms of torch.func see an op by this key before anything else does.
    _library.impl(op, refuse_transform, "FuncTorchDynamicLayerFrontMode")
    return call


class _Final(torch.autograd.Function):
    """The first `count` tensors as they are, to be differentiated no further."""

    @staticmethod
    def forward(ctx: Any, op: str, count: int, *tensors: Any) -> Any:
        ctx.op = op
        return tensors[:count]

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        raise _NotSupported(f"double backward through {ctx.op}")


def refuse_forward_mode(op: str, *tensors: Tensor | None) -> None:
    """Raises NotImplementedError for dual tensors, whose tangents a kernel would lose silently."""
    for tensor in tensors:
        if tensor is not None and forward_ad.unpack_dual(tensor).tangent is not None:
            raise _NotSupported(f"forward-mode differentiation of {op}") from None


def register_autocast(op: str) -> None:
    """Under autocast the op's first argument, if it is float32, is cast to the dtype of autocast, and nothing else is.

    `torch.library.register_autocast` would cast all tensors, and to a dtype that is fixed.
    """
    call = getattr(torch.ops.piip, op).default

    def kernel(device: str) -> Callable[..., Any]:
        def cast(value: Tensor, *others: Any) -> Any:
            if value.dtype == torch.float32:
                value = value.to(torch.get_autocast_dtype(device))
            with torch.autocast(device, enabled=False):
                return call(value, *others)

        return cast

    for key in DISPATCH_KEYS:
        _library.impl(op, kernel(key.lower()), f"Autocast{key}")


def definition_gradients(
    definition: Callable[..., Any], inputs: Sequence[Tensor], grads: Tensor | Sequence[Tensor]
) -> tuple[Tensor, ...]:
    """What `<op>_backward` returns where there are no kernels: gradients of the inputs through the definition."""
    with torch.enable_grad():
        leaves = [tensor.detach().requires_grad_() for tensor in inputs]
        return torch.autograd.grad(definition(*leaves), leaves, grads)


def register_flop_formulas() -> None:
    """Tells torch.utils.flop_counter what the ops cost, once: `FlopCounterMode` then counts them.

    Not done when the ops are imported, because the counter imports Triton, which takes longer than everything else
    here together.
    """
    from torch.utils.flop_counter import flop_registry, register_flop_formula

    for op, formula in _flop_formulas.items():
        if op not in flop_registry:
            register_flop_formula(op)(formula)
