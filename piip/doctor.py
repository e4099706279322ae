"""Examines the installation: versions, the extension, the devices, and every op against its definition."""

from __future__ import annotations

import importlib.util
import math
import os
import platform
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from types import ModuleType
from typing import Literal

import torch
from torch import Tensor
from torch.nn.functional import interpolate

import piip
from piip.config.load import config_dir, shipped_configs
from piip.errors import ConfigError, first_line
from piip.ops import deform_attn, pyramid_resize, reference
from piip.ops._extension import cuda_problem

Status = Literal["info", "ok", "note", "problem"]

# Float32 sums in another order differ by about 1e-6 of their size; a wrong kernel differs by far more.
_TOLERANCE = 1e-4


@dataclass(frozen=True)
class Finding:
    """One line of the report. status: a "note" is worth knowing, a "problem" has to be repaired."""

    group: str
    name: str
    value: str
    status: Status = "info"


def examine() -> list[Finding]:
    """Examines everything once. Problems become findings; an exception would be a bug."""
    extension, built = _load_extension()
    return [*_versions(), *built, *_devices(extension), *_configs(), *_checks()]


def _versions() -> Iterator[Finding]:
    yield Finding("versions", "piip", piip.__version__)
    yield Finding("versions", "python", f"{platform.python_version()} on {platform.system()} {platform.machine()}")
    yield Finding("versions", "torch", torch.__version__)
    try:
        import torchvision

        yield Finding("versions", "torchvision", torchvision.__version__)
    except (ImportError, RuntimeError) as error:
        yield Finding("versions", "torchvision", f"cannot be imported: {first_line(error)}", "problem")


def _load_extension() -> tuple[ModuleType | None, list[Finding]]:
    if importlib.util.find_spec("piip._C") is None:
        value = "not compiled, so the ops run on their PyTorch definition, slowly; install with a C++ compiler"
        return None, [Finding("extension", "piip._C", value, "note")]
    try:
        extension = importlib.import_module("piip._C")
    except ImportError as error:
        return None, [Finding("extension", "piip._C", f"cannot be loaded: {first_line(error)}", "problem")]
    threads = "OpenMP" if extension.openmp else "no OpenMP: one thread"
    found = [Finding("extension", "piip._C", f"compiled by {_compiler(extension.compiler)}, {threads}")]
    try:
        found.append(Finding("extension", "CPU kernels", extension.cpu_instruction_set()))
    except ValueError as error:
        found.append(Finding("extension", "CPU kernels", first_line(error), "problem"))
    return extension, found


def _devices(extension: ModuleType | None) -> Iterator[Finding]:
    built = ""
    if extension is not None and extension.cuda_version:
        built = f"CUDA {extension.cuda_version} for {extension.cuda_architectures}"
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    if not torch.cuda.is_available():
        yield Finding("extension", "CUDA kernels", f"{built}; no GPU here" if built else "not compiled; no GPU here")
    elif not built:
        value = "not compiled, so on the GPU the ops run on their PyTorch definition; install with nvcc to build them"
        yield Finding("extension", "CUDA kernels", value, "note")
    else:
        yield Finding("extension", "CUDA kernels", built)
        for index in range(torch.cuda.device_count()):
            problem = cuda_problem(index)
            if problem is not None:
                value = f"cannot run, so the ops run on their PyTorch definition there: {problem}"
                yield Finding("extension", f"kernels on GPU {index}", value, "note")
    yield Finding("machine", "CPU", f"{cores} cores, {torch.get_num_threads()} threads in use")
    for index in range(torch.cuda.device_count() if torch.cuda.is_available() else 0):
        device = torch.cuda.get_device_properties(index)
        capability = f"compute capability {device.major}.{device.minor}"
        yield Finding("machine", f"GPU {index}", f"{device.name}, {device.total_memory / 2**30:.0f} GiB, {capability}")


def _configs() -> Iterator[Finding]:
    try:
        yield Finding("configs", "shipped", f"{len(shipped_configs())} in {config_dir()}")
    except ConfigError as error:
        yield Finding("configs", "shipped", str(error), "problem")


def _checks() -> Iterator[Finding]:
    checks: dict[str, Callable[[str], float]] = {
        "deform_attn": _deform_attn_error,
        "pyramid_resize": _pyramid_resize_error,
        "torchvision nms": _nms_error,
    }
    for device in ["cpu", "cuda"] if torch.cuda.is_available() else ["cpu"]:
        for name, check in checks.items():
            yield Finding("checks", f"{name} {device}", *_run(check, device))


def _run(check: Callable[[str], float], device: str) -> tuple[str, Status]:
    try:
        error = check(device)
    except (RuntimeError, ValueError, TypeError, ImportError, AttributeError) as failure:
        return f"failed: {first_line(failure)}", "problem"
    return f"differs from its definition by {error:.1e}", "ok" if error <= _TOLERANCE else "problem"


def _deform_attn_error(device: str) -> float:
    shapes = [(5, 7), (3, 2)]
    random = torch.Generator().manual_seed(0)
    value = torch.randn(2, 41, 3, 6, generator=random)
    points = torch.rand(1, 11, 1, 2, generator=random)
    offsets = torch.randn(2, 11, 3, 2, 4, 2, generator=random) * 3
    logits = torch.randn(2, 11, 3, 8, generator=random)
    inputs = [value, offsets, logits]
    points = points.to(device)
    return _deviation(
        lambda v, o, w: [deform_attn(v, shapes, points, o, w)],
        lambda v, o, w: [reference.deform_attn(v, shapes, points, o, w)],
        [tensor.to(device) for tensor in inputs],
    )


def _pyramid_resize_error(device: str) -> float:
    images = torch.randn(1, 3, 23, 31, generator=torch.Generator().manual_seed(0)).to(device)
    sizes = [(23, 31), (16, 22), (9, 13)]
    return _deviation(
        lambda x: pyramid_resize(x, sizes=sizes)[1:],
        lambda x: [interpolate(x, size, mode="bilinear", align_corners=False) for size in sizes[1:]],
        [images],
    )


def _nms_error(device: str) -> float:
    """0 if the second of three boxes, which the first one overlaps, is the one that is suppressed; else 1."""
    from torchvision.ops import nms

    boxes = torch.tensor([[0, 0, 10, 10], [1, 1, 10, 10], [20, 20, 30, 30]], dtype=torch.float32, device=device)
    kept = nms(boxes, torch.tensor([0.9, 0.8, 0.7], device=device), 0.5)
    return float(kept.tolist() != [0, 2])


def _deviation(op: Callable[..., list[Tensor]], definition: Callable[..., list[Tensor]], inputs: list[Tensor]) -> float:
    """Largest difference of an output or gradient, relative to its largest value; infinite for NaN."""
    results = []
    for function in (op, definition):
        leaves = [tensor.clone().requires_grad_() for tensor in inputs]
        outputs = function(*leaves)
        # With a sum of squares, every output cell has a different gradient.
        loss = torch.stack([output.square().sum() for output in outputs]).sum()
        results.append([*outputs, *torch.autograd.grad(loss, leaves)])
    pairs = zip(*results, strict=True)
    differences = [((ours - theirs).abs().amax() / theirs.abs().amax()).item() for ours, theirs in pairs]
    return max(math.inf if math.isnan(difference) else difference for difference in differences)


def _compiler(version: str) -> str:
    return version if any(letter.isalpha() for letter in version.split()[0]) else f"GCC {version}"
