"""The CUDA kernels on the CPU: plain C++ on the headers here, which execute blocks, warps and barriers."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sysconfig
from pathlib import Path
from types import ModuleType
from typing import Any

import pybind11

HERE = Path(__file__).parent
CSRC = HERE.parents[2] / "csrc"
SOURCES = [HERE / "kernels.cpp", CSRC / "pyramid_resize_cuda.cu", CSRC / "bindings.cpp"]
FLAGS = ["-x", "c++", "-std=c++17", "-O1", "-fPIC", "-shared", "-fvisibility=hidden", "-DPIIP_WITH_CUDA"]
# Misaligned vectors, which a GPU does not read, and other undefined behaviour end the run.
FLAGS += ["-fsanitize=undefined", "-fsanitize-undefined-trap-on-error"]
DEFINITIONS = ['-DPIIP_CUDA_VERSION="emulated"', '-DPIIP_CUDA_ARCHITECTURES=""']


def build(folder: Path) -> ModuleType:
    """A module like piip._C whose functions `..._cuda` run emulated on the CPU."""
    includes = [HERE, CSRC, pybind11.get_include(), sysconfig.get_path("include")]
    target = folder / "_C.so"
    command = [*os.environ.get("CXX", "g++").split(), *FLAGS, *DEFINITIONS]
    command += [*(f"-I{path}" for path in includes), *map(str, SOURCES)]
    subprocess.run([*command, "-o", str(target)], check=True)
    spec = importlib.util.spec_from_file_location("emulated._C", target)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


class Emulated:
    """Takes the place of piip._C: calls for CPU tensors run the CUDA kernels."""

    cuda_version = None

    def __init__(self, module: ModuleType) -> None:
        self.module = module

    def __getattr__(self, name: str) -> Any:
        kernel = getattr(self.module, f"{name}_cuda")
        device, stream = 0, 0
        return lambda *arguments: kernel(*arguments[:-1], device, stream)  # the last one is the number of threads
