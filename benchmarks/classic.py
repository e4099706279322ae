"""The official path on a GPU as a rival: PyTorch forms locations and weights, classic.cu samples; all in float32."""

from __future__ import annotations

import ctypes
import hashlib
import shutil
import subprocess
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

SOURCE = Path(__file__).with_suffix(".cu")


@cache
def _library() -> Any:
    """classic.cu compiled for this GPU, once per version of the source."""
    nvcc = shutil.which("nvcc") or "/usr/local/cuda/bin/nvcc"
    arch = "sm_{}{}".format(*torch.cuda.get_device_capability())
    digest = hashlib.sha256(SOURCE.read_bytes()).hexdigest()[:12]
    target = SOURCE.parents[1] / "build" / f"classic-{arch}-{digest}.so"
    if not target.exists():
        target.parent.mkdir(exist_ok=True)
        command = [nvcc, "-std=c++17", "-O3", f"-arch={arch}", "-shared", "-Xcompiler", "-fPIC", str(SOURCE)]
        subprocess.run([*command, "-o", str(target)], check=True)
    return ctypes.CDLL(str(target))


def _run(tensors: Sequence[Tensor | None], sizes: Sequence[int], shapes: Sequence[int], is_backward: bool) -> None:
    pointers = (ctypes.c_uint64 * 8)(*(0 if t is None else t.data_ptr() for t in tensors))
    error = _library().classic_run(
        pointers,
        (ctypes.c_int * 7)(*sizes),
        (ctypes.c_int * len(shapes))(*shapes),
        int(is_backward),
        ctypes.c_uint64(torch.cuda.current_stream().cuda_stream),
    )
    if error:
        raise RuntimeError(f"the classic kernel failed with CUDA error {error}")


class _Classic(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, value: Tensor, locations: Tensor, weights: Tensor, shapes: list[int]) -> Tensor:
        batch, cells, heads, width = value.shape
        _, queries, _, levels, points, _ = locations.shape
        ctx.sizes, ctx.shapes = (batch, cells, queries, heads, width, levels, points), shapes
        ctx.save_for_backward(value, locations, weights)
        out = value.new_empty(batch, queries, heads * width)
        _run((value, locations, weights, out, None, None, None, None), ctx.sizes, shapes, False)
        return out

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        value, locations, weights = ctx.saved_tensors
        grads = (torch.zeros_like(value), torch.empty_like(locations), torch.empty_like(weights))
        _run((value, locations, weights, None, grad.contiguous(), *grads), ctx.sizes, ctx.shapes, True)
        return *grads, None


def classic_path(sizes: Tensor) -> Any:
    """The path as an op of raw offsets and logits. sizes: (L, 2) float32 of (width, height), on the GPU."""

    def run(value: Tensor, shapes: Sequence[tuple[int, int]], ref: Tensor, offsets: Tensor, logits: Tensor) -> Tensor:
        locations = ref[:, :, None, :, None] + offsets / sizes[:, None]
        weights = logits.softmax(-1).view(offsets.shape[:-1])
        return _Classic.apply(value, locations, weights, [side for shape in shapes for side in shape])

    return run
