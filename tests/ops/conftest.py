"""Every test of the ops runs with uninitialised memory poisoned and, where there is one, also on a GPU."""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Iterator
from types import ModuleType

import pytest
import torch

from piip.ops import _extension
from tests.ops import emulated

deform_attn = importlib.import_module("piip.ops.deform_attn")  # the package has a function of this name


@pytest.fixture(autouse=True)
def poisoned_memory() -> Iterator[None]:
    """In PyTorch's deterministic mode `torch.empty` is filled with NaN: what a kernel forgets to write shows."""
    torch.use_deterministic_algorithms(True)
    assert torch.empty(1).isnan().all()
    yield
    torch.use_deterministic_algorithms(False)


@pytest.fixture(scope="session")
def emulated_module(tmp_path_factory: pytest.TempPathFactory) -> ModuleType:
    if not sys.platform.startswith("linux"):
        pytest.skip("the emulation switches stacks as Linux does")
    return emulated.build(tmp_path_factory.mktemp("emulated"))


@pytest.fixture(params=["cpu", "emulated", pytest.param("cuda", marks=pytest.mark.cuda)])
def device(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> torch.device:
    """The CPU; the CPU with the CUDA kernels, executed by tests/ops/emulated; a GPU."""
    if request.param == "emulated":
        module = emulated.Emulated(request.getfixturevalue("emulated_module"))
        monkeypatch.setattr(_extension, "_C", module)
        monkeypatch.setattr(deform_attn, "adds_up", lambda tensor: True)
        return torch.device("cpu")
    if request.param == "cuda" and not torch.cuda.is_available():
        if os.environ.get("PIIP_REQUIRE_CUDA") == "1":
            pytest.fail("PIIP_REQUIRE_CUDA=1 but there is no CUDA device")
        pytest.skip("no CUDA device")
    found = torch.device(request.param)
    has_kernels = _extension.has_kernels(torch.empty(0, device=found))
    assert has_kernels, f"the extension has no kernels for {found}: {_extension.describe()}"
    return found
