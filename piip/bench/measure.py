"""Times, memory, and the speed that a device reaches in matrix products."""

from __future__ import annotations

import gc
import resource
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch

# Calls that do not count: allocators, caches and clocks settle in them.
_WARMUP = 3


def synchronize(device: torch.device) -> None:
    """Waits until a GPU has done what it was given; a CPU has."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def times(calls: Sequence[Callable[[], Any]], device: torch.device, repeats: int) -> list[list[float]]:
    """Milliseconds of every repeat of several calls, which take turns so that a machine's moods meet them alike."""
    found: list[list[float]] = [[] for _ in calls]
    for index in range(repeats + _WARMUP):
        for call, its in zip(calls, found):
            synchronize(device)
            start = time.perf_counter()
            call()
            synchronize(device)
            if index >= _WARMUP:
                its.append((time.perf_counter() - start) * 1e3)
    return found


def product_speed(device: torch.device, dtype: torch.dtype) -> float:
    """Multiply-accumulates a second of a square matrix product that is large enough to be at full speed."""
    side = 8192 if device.type == "cuda" else 1536
    a, b = (torch.randn(side, side, device=device, dtype=dtype) for _ in range(2))
    (milliseconds,) = times([lambda: a @ b], device, 5)
    return side**3 / (min(milliseconds) / 1e3)


def peak_bytes(call: Callable[[], Any], device: torch.device) -> int | None:
    """The memory that a call holds at its peak beyond what is held before; None where the system does not tell."""
    if device.type == "cuda":
        synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        call()
        synchronize(device)
        return torch.cuda.max_memory_allocated(device) - before
    if not sys.platform.startswith("linux"):
        return None
    gc.collect()  # what it frees within the call would hide as much
    with suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")  # the peak starts from what is resident now
    before = _resident("VmRSS")
    call()
    return max(0, max(_resident("VmHWM"), _resident("VmRSS")) - before)


def _resident(name: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    found = next((line for line in lines if line.startswith(f"{name}:")), None)
    return int(found.split()[1]) * 1024 if found else resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def captured(call: Callable[[], Any]) -> Callable[[], None]:
    """The replay of a CUDA graph of a call: what its kernels take when nothing waits for launches."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        call()
    torch.cuda.current_stream().wait_stream(stream)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        call()
    return graph.replay
