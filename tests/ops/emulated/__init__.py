"""The CUDA kernels on the CPU: plain C++ on the headers here, which execute blocks, warps and barriers.

They are built for two architectures, as what they do depends on it: 800 stands for all before 9.0.
"""

from __future__ import annotations

import contextlib
import ctypes
import hashlib
import importlib.util
import os
import subprocess
import sys
import sysconfig
import tempfile
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

import pybind11
import torch

from piip.ops import _extension

HERE = Path(__file__).parent
CSRC = HERE.parents[2] / "csrc"
ARCHITECTURES = (800, 900)
FLAGS = ["-x", "c++", "-std=c++17", "-fPIC", "-fvisibility=hidden", "-fno-extern-tls-init", "-DPIIP_WITH_CUDA"]
INCLUDES = [f"-I{path}" for path in (HERE, CSRC, pybind11.get_include(), sysconfig.get_path("include"))]
# kernels.cpp includes those that use dynamic shared memory.
KERNELS = [HERE / "kernels.cpp", *sorted(path for path in CSRC.glob("cuda/*.cu") if path.stem != "deform_attn")]
# Misaligned vectors, which a GPU does not read, and other undefined behaviour end the run.
KERNEL_FLAGS = ["-O1", "-fsanitize=undefined", "-fsanitize-undefined-trap-on-error"]
OTHERS = {CSRC / "bindings.cpp": "-O0", HERE / "emulator.cpp": "-O2", HERE / "counters.cpp": "-O1"}
DEFINITIONS = ['-DPIIP_CUDA_VERSION="emulated"', '-DPIIP_CUDA_ARCHITECTURES=""']


def build() -> dict[int, Emulated]:
    """What takes the place of piip._C, for each architecture: compiled once per state of the sources, into build/."""
    compiler = os.environ.get("CXX", "g++").split()
    digest = hashlib.sha256(repr((compiler, FLAGS, KERNEL_FLAGS, OTHERS, sys.version)).encode())
    for path in sorted([*CSRC.rglob("*"), *HERE.iterdir()]):
        if path.suffix in (".h", ".cu", ".cpp", ".def"):
            digest.update(path.name.encode() + path.read_bytes())
    target = CSRC.parent / "build" / f"emulated-{digest.hexdigest()[:16]}"
    if not target.exists():
        target.parent.mkdir(exist_ok=True)
        with tempfile.TemporaryDirectory(dir=target.parent) as folder:
            finished = Path(folder) / "finished"
            finished.mkdir()
            _compile(compiler, Path(folder), finished)
            with contextlib.suppress(OSError):  # another process was faster
                finished.rename(target)
    return {arch: Emulated(target / f"_C_{arch}.so", arch) for arch in ARCHITECTURES}


def _compile(compiler: list[str], folder: Path, finished: Path) -> None:
    commands = [
        [*DEFINITIONS, level, "-c", str(source), "-o", f"{folder}/{source.stem}.o"] for source, level in OTHERS.items()
    ]
    for arch in ARCHITECTURES:
        flags = [*KERNEL_FLAGS, f"-DEMULATED_ARCHITECTURE={arch}"]
        commands += [[*flags, "-c", str(source), "-o", f"{folder}/{source.stem}_{arch}.o"] for source in KERNELS]
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        for run in [pool.submit(subprocess.run, [*compiler, *FLAGS, *INCLUDES, *c], check=True) for c in commands]:
            run.result()
    for arch in ARCHITECTURES:
        files = [f"{folder}/{source.stem}.o" for source in OTHERS]
        files += [f"{folder}/{source.stem}_{arch}.o" for source in KERNELS]
        subprocess.run([*compiler, "-shared", *files, "-o", str(finished / f"_C_{arch}.so"), "-ldl"], check=True)


class Site(NamedTuple):
    """Where a kernel accesses memory."""

    kind: str  # a hook of csrc/cuda/common.h: read_global, add_global ...
    line: int
    bytes: int  # of one lane


class Count(NamedTuple):
    """What the accesses of a site add up to; the rules are in emulator.h."""

    instructions: int  # of a warp
    lanes: int
    wavefronts: int
    ideal_wavefronts: int
    worst: int  # wavefronts of the part of a warp that takes most: 1 is free of bank conflicts
    sectors: int  # of global memory; of reductions operations on them
    ideal_sectors: int


class Launch(NamedTuple):
    kernel: str
    grid: tuple[int, int, int]
    block: tuple[int, int, int]
    shared_bytes: int
    parameters: bytes


KINDS = ("read_global", "write_global", "read_shared", "write_shared", "add_global")


class Emulated(_extension.Backend):
    """Takes the place of the CPU: calls for CPU tensors run the CUDA kernels, and are prepared as on CUDA."""

    dispatch_key, accumulates_in_place = "CPU", True

    def __init__(self, path: Path, architecture: int) -> None:
        self.path, self.architecture = path, architecture
        self.module, self.library = _load(f"emulated_{architecture}._C", path), ctypes.CDLL(str(path))
        for name in ("emulated_counts", "emulated_races", "emulated_launches"):
            getattr(self.library, name).restype = ctypes.c_char_p
        self._names: dict[int, str] = {}

    def has_kernels(self, tensor: torch.Tensor) -> bool:
        return True

    def run(self, op: str, problem: Any, tensor: torch.Tensor) -> None:
        getattr(self.module, f"{op}_cuda")(problem, device=0, stream=0)

    def reverse(self, reversed: bool) -> None:
        """Runs blocks, and the threads of each, in the opposite order: sums that depend on it differ."""
        self.library.emulated_reverse(ctypes.c_bool(reversed))

    def reset_counts(self) -> None:
        """Begins to count accesses to memory."""
        self.library.emulated_reset_counts()

    def counts(self) -> dict[str, dict[Site, Count]]:
        """Ends counting: the accesses since `reset_counts` by kernel, such as "forward<float, 4>", and site."""
        found: dict[str, dict[Site, Count]] = {}
        for row in self.library.emulated_counts().decode().splitlines():
            address, kind, line, size, *numbers = map(int, row.split())
            found.setdefault(self._name(address), {})[Site(KINDS[kind], line, size)] = Count(*numbers)
        return found

    def races(self) -> set[tuple[str, int, int]]:
        """Kernels and pairs of their lines that raced in shared memory while accesses were counted."""
        rows = (map(int, row.split()) for row in self.library.emulated_races().decode().splitlines())
        return {(self._name(address), first, second) for address, first, second in rows}

    def launches_of(self, call: Callable[[], Any]) -> list[Launch]:
        """What a call would launch; nothing is executed."""
        self.library.emulated_record_launches(ctypes.c_bool(True))
        try:
            call()
            rows = self.library.emulated_launches().decode().splitlines()
        finally:
            self.library.emulated_record_launches(ctypes.c_bool(False))
        found = []
        for row in rows:
            *numbers, parameters = row.split()
            address, x, y, z, bx, by, bz, shared = map(int, numbers)
            found.append(Launch(self._name(address), (x, y, z), (bx, by, bz), shared, bytes.fromhex(parameters)))
        return found

    def _name(self, address: int) -> str:
        if not self._names:
            listing = subprocess.run(["nm", "-C", str(self.path)], capture_output=True, text=True, check=True).stdout
            rows = (line.split(" ", 2) for line in listing.splitlines() if line[:1].isalnum())
            self._names = {int(row[0], 16): row[2] for row in rows if row[1] in "tTwW"}
        return short_name(self._names[address])


@contextlib.contextmanager
def installed(emulation: Emulated) -> Iterator[None]:
    """The ops on CPU tensors run the emulated kernels."""
    before = _extension._C, _extension.CPU
    _extension._C, _extension.CPU = emulation.module, emulation
    try:
        yield
    finally:
        _extension._C, _extension.CPU = before


def short_name(demangled: str) -> str:
    """A kernel's name without namespaces and parameters, such as "forward<Bfloat, 4>"."""
    name = demangled.replace("(anonymous namespace)::", "").replace("piip::", "").replace("cuda::", "")
    return name.removeprefix("void ").partition("(")[0]


def _load(name: str, path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
