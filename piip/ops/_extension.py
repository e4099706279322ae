"""The compiled module piip._C as the ops see it: its dtype tags, and the backends that run its kernels."""

from __future__ import annotations

import importlib
import warnings
from abc import ABC, abstractmethod
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


def extension() -> Any:
    """piip._C where it could be loaded: classes that describe calls, and the kernels."""
    return _C


class Backend(ABC):
    """Devices of one kind, where kernels run."""

    dispatch_key: str
    # Whether a backward adds to the value gradient that it is given, zeros in the compute dtype; else it writes it.
    accumulates_in_place: bool

    @abstractmethod
    def has_kernels(self, tensor: Tensor) -> bool:
        """Whether kernels run on the device of a tensor of this backend."""

    @abstractmethod
    def run(self, op: str, problem: Any, tensor: Tensor) -> None:
        """Runs an op on the tensor's device. problem: an object of the class of `extension()` that describes a call."""


class Cpu(Backend):
    """Kernels run on the threads of torch."""

    dispatch_key, accumulates_in_place = "CPU", False

    def has_kernels(self, tensor: Tensor) -> bool:
        return _C is not None

    def run(self, op: str, problem: Any, tensor: Tensor) -> None:
        getattr(_C, op)(problem, torch.get_num_threads())


class Cuda(Backend):
    """Kernels run on the current stream of the tensor's device."""

    dispatch_key, accumulates_in_place = "CUDA", True

    def has_kernels(self, tensor: Tensor) -> bool:
        """A GPU is asked once; the first time that its kernels cannot run, a warning says why."""
        if _C is None or _C.cuda_version is None:
            return False
        # A program that is traced may run elsewhere, and fake tensors lie nowhere: the op asks again when it runs.
        if is_compiling() or type(tensor) not in (Tensor, torch.nn.Parameter):
            return True
        index = tensor.get_device()
        if index not in _cuda_problems and cuda_problem(index) is not None:
            words = f"the ops run on their PyTorch definition on GPU {index}, slowly: {cuda_problem(index)}"
            warnings.warn(words, stacklevel=4)
        return _cuda_problems[index] is None

    def run(self, op: str, problem: Any, tensor: Tensor) -> None:
        stream = torch.cuda.current_stream(tensor.device)
        getattr(_C, f"{op}_cuda")(problem, stream.device_index, stream.cuda_stream)


# A new backend is a class like these, a name here, and a line in `backend_of`.
CPU: Backend = Cpu()
CUDA: Backend = Cuda()
DISPATCH_KEYS = (CPU.dispatch_key, CUDA.dispatch_key)

_cuda_problems: dict[int, str | None] = {}  # by device index: why its kernels cannot run there


def backend_of(tensor: Tensor) -> Backend | None:
    # Every call asks, so without the device's name, which is a new string each time.
    if tensor.is_cpu:
        return CPU
    return CUDA if tensor.is_cuda else None


def has_kernels(tensor: Tensor) -> bool:
    """Whether kernels run on the tensor's device; for a tensor on the meta device they need not exist."""
    backend = backend_of(tensor)
    return tensor.is_meta if backend is None else backend.has_kernels(tensor)


def launch(op: str, tensor: Tensor, problem: Any) -> None:
    """Runs an op where the tensor lies; see `Backend.run`."""
    backend = backend_of(tensor)
    assert backend is not None
    backend.run(op, problem, tensor)


def accumulates_in_place(tensor: Tensor) -> bool:
    """`Backend.accumulates_in_place` where the tensor lies."""
    backend = backend_of(tensor)
    return backend is not None and backend.accumulates_in_place


def runs_definition(tensor: Tensor) -> bool:
    """Whether the definition in `reference` runs in the place of an op: without kernels, and in ONNX export."""
    # The exporter's own answer imports two modules.
    return ((is_compiling() or is_tracing()) and torch.onnx.is_in_onnx_export()) or not has_kernels(tensor)


def pointer(tensor: Tensor | None) -> int:
    return 0 if tensor is None else tensor.data_ptr()


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


def describe() -> dict[str, Any]:
    """What the module was built for, to stand beside measurements; or why it is missing."""
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
