"""The compiled module piip._C as the ops see it: whether it runs here, its dtype tags, and the op library."""

from __future__ import annotations

import importlib
import warnings
from collections.abc import Callable, Sequence
from types import ModuleType
from typing import Any

import torch
from torch import Tensor
from torch.compiler import is_compiling
from torch.jit import is_tracing  # type: ignore[attr-defined]  # public, but not marked as exported

# torch comes first: the extension then shares its OpenMP runtime instead of loading a second one.
try:
    _C: ModuleType | None = importlib.import_module("piip._C")
    LOAD_ERROR: str | None = None
except ImportError as error:
    _C, LOAD_ERROR = None, str(error)

# The numbers of enum Dtype in csrc/common.h.
DTYPE_TAGS = {torch.float32: 0, torch.float16: 1, torch.bfloat16: 2, torch.float64: 3, torch.uint8: 4}

library = torch.library.Library("piip", "FRAGMENT")
_cuda_problems: dict[int, str | None] = {}  # by device index: why its kernels cannot run there


def has_kernels(tensor: Tensor) -> bool:
    """Whether the kernels run on the tensor's device. A GPU is asked once; the first time that it cannot, a warning."""
    # Every call asks, so without the device's name, which is a new string each time.
    if tensor.is_cpu:
        return _C is not None
    if not tensor.is_cuda:
        return tensor.is_meta
    if _C is None or _C.cuda_version is None:
        return False
    # A program that is traced may run elsewhere, and fake tensors lie nowhere: the op asks again when it runs.
    if is_compiling() or type(tensor) not in (Tensor, torch.nn.Parameter):
        return True
    index = tensor.get_device()
    if index not in _cuda_problems and cuda_problem(index) is not None:
        words = f"the ops run on their PyTorch definition on GPU {index}, slowly: {cuda_problem(index)}"
        warnings.warn(words, stacklevel=3)
    return _cuda_problems[index] is None


def cuda_problem(index: int) -> str | None:
    """Why the compiled kernels cannot run on a GPU, and what helps; None where they can."""
    if index not in _cuda_problems:
        assert _C is not None
        reason = _C.cuda_problem(index)
        if reason is not None:
            major, minor = torch.cuda.get_device_capability(index)
            built = f"piip._C was built by CUDA {_C.cuda_version} for {_C.cuda_architectures}"
            remedy = f"reinstall piip with TORCH_CUDA_ARCH_LIST={major}.{minor}, or update the driver"
            reason = f"{reason.removeprefix('piip: ')}. {built}; {remedy}"
        _cuda_problems[index] = reason
    return _cuda_problems[index]


def runs_definition(tensor: Tensor) -> bool:
    """Whether the definition in `reference` runs in the place of an op: without kernels, and in ONNX export."""
    # The exporter's own answer imports two modules.
    return ((is_compiling() or is_tracing()) and torch.onnx.is_in_onnx_export()) or not has_kernels(tensor)


def adds_up(tensor: Tensor) -> bool:
    """Whether a backward adds to the gradients that it is given, zeros in the compute dtype; else it writes them."""
    return not tensor.is_cpu


def describe() -> dict[str, Any]:
    """What `piip doctor` shows: instruction set, CUDA version and architectures, or why the module is missing."""
    if _C is None:
        return {"built": False, "reason": LOAD_ERROR}
    return {
        "built": True,
        "cpu": _C.cpu_instruction_set(),
        "openmp": _C.openmp,
        "cuda": _C.cuda_version,
        "architectures": _C.cuda_architectures,
        "compiler": _C.compiler,
    }


def launch(name: str, tensor: Tensor, *arguments: Any) -> None:
    """Runs a kernel where the tensor lies: on the CPU threads of torch, or on the current CUDA stream."""
    if tensor.is_cuda:
        stream = torch.cuda.current_stream(tensor.device)
        getattr(_C, f"{name}_cuda")(*arguments, stream.device_index, stream.cuda_stream)
    else:
        getattr(_C, name)(*arguments, torch.get_num_threads())


def pointer(tensor: Tensor | None) -> int:
    return 0 if tensor is None else tensor.data_ptr()


def definition_gradients(
    definition: Callable[..., Any], inputs: Sequence[Tensor], grads: Tensor | Sequence[Tensor]
) -> tuple[Tensor, ...]:
    """What `<op>_backward` returns where there are no kernels: gradients of the inputs through the definition."""
    with torch.enable_grad():
        leaves = [tensor.detach().requires_grad_() for tensor in inputs]
        return torch.autograd.grad(definition(*leaves), leaves, grads)


def refuse_vmap(op: str) -> None:
    """vmap over the op is an error that says what to do."""

    def rule(info: Any, in_dims: Any, *arguments: Any) -> Any:
        raise NotImplementedError(
            f"torch.func.vmap over {op} is not supported; fold the mapped dimension into the batch"
        )

    torch.library.register_vmap(f"piip::{op}", rule, lib=library)


def register_gradient(op: str, save: Callable[..., None], differentiate: Callable[..., Any]) -> None:
    """Does what `torch.library.register_autograd` does, in less time: on cold caches 0.15 ms of forward and backward.

    save(ctx, *inputs) before the op runs; differentiate(ctx, *grads) by the means of `<op>_backward`. All other ways to
    differentiate the op are errors that say what to do.
    """
    call = getattr(torch.ops.piip, op).default

    def forward(ctx: Any, *inputs: Any) -> Any:
        save(ctx, *inputs)
        with torch._C._AutoDispatchBelowAutograd():
            outputs = call(*inputs)
        return tuple(outputs) if isinstance(outputs, list) else outputs

    def backward(ctx: Any, *grads: Any) -> Any:
        results = differentiate(ctx, *grads)
        if torch.is_grad_enabled():
            return _Final.apply(op, len(results), *results, *grads, *ctx.saved_tensors)
        return results

    def jvp(ctx: Any, *tangents: Any) -> Any:
        raise _not_supported(f"forward-mode differentiation of {op}")

    def rule(*inputs: Any) -> Any:
        try:
            return gradient.apply(*inputs)
        except RuntimeError:
            if torch._C._are_functorch_transforms_active():
                raise _not_supported(f"{op} under torch.func") from None
            raise

    name = op.title().replace("_", "")
    members = {"forward": staticmethod(forward), "backward": staticmethod(backward), "jvp": staticmethod(jvp)}
    gradient: Any = type(name, (torch.autograd.Function,), members)
    library.impl(op, rule, "Autograd")
    library.impl(f"{op}_backward", torch.library.fallthrough_kernel, "Autograd")


class _Final(torch.autograd.Function):
    """The first `count` tensors as they are, to be differentiated no further."""

    @staticmethod
    def forward(ctx: Any, op: str, count: int, *tensors: Any) -> Any:
        ctx.op = op
        return tensors[:count]

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        raise _not_supported(f"double backward through {ctx.op}")


def _not_supported(what: str) -> NotImplementedError:
    # The definition is no way out: the backward of F.grid_sample has no derivative, nor has it a forward mode.
    return NotImplementedError(
        f"{what} is not supported; differentiate the op once, by backward() or torch.autograd.grad without create_graph"
    )
