"""Every test of the ops runs with uninitialised memory poisoned, the CUDA kernels in both of their modes: emulated for
two architectures and, where there is one, on a GPU."""

from __future__ import annotations

import functools
import os
import platform
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor

from piip.ops import _extension
from tests.ops import emulated

pytest.register_assert_rewrite("tests.ops.cases")


@pytest.fixture(autouse=True)
def poisoned_memory() -> Iterator[None]:
    """In PyTorch's deterministic mode `torch.empty` is filled with NaN: what a kernel forgets to write shows."""
    torch.use_deterministic_algorithms(True)
    assert torch.empty(1).isnan().all()
    yield
    torch.use_deterministic_algorithms(False)


def poison(monkeypatch: pytest.MonkeyPatch) -> None:
    """The same outside the deterministic mode."""

    def poisoned(create: Callable[..., Tensor]) -> Callable[..., Tensor]:
        @functools.wraps(create)
        def call(*args: Any, **kwargs: Any) -> Tensor:
            tensor = create(*args, **kwargs)
            whole = not (tensor.is_floating_point() or tensor.is_complex())
            with torch.no_grad():
                return tensor.fill_(torch.iinfo(tensor.dtype).max if whole else torch.nan)

        return call

    for owner, name in ((torch, "empty"), (torch, "empty_like"), (torch.Tensor, "new_empty")):
        monkeypatch.setattr(owner, name, poisoned(getattr(owner, name)))
    assert torch.empty(1).isnan().all()


@pytest.fixture(scope="session")
def emulations() -> dict[int, emulated.Emulated]:
    if not sys.platform.startswith("linux") or platform.machine() not in ("x86_64", "aarch64"):
        pytest.skip("the emulation switches stacks as Linux on x86-64 and aarch64 does")
    return emulated.build()


@contextmanager
def place(where: str, request: pytest.FixtureRequest) -> Iterator[torch.device]:
    """The CPU; the CPU with the CUDA kernels, executed by tests/ops/emulated; a GPU."""
    if where.startswith("emulated"):
        emulation = request.getfixturevalue("emulations")[int(where.removeprefix("emulated-"))]
        with emulated.installed(emulation):
            yield torch.device("cpu")
        return
    if where == "cuda" and not torch.cuda.is_available():
        if os.environ.get("PIIP_REQUIRE_CUDA") == "1":
            pytest.fail("PIIP_REQUIRE_CUDA=1 but there is no CUDA device")
        pytest.skip("no CUDA device")
    found = torch.device(where)
    has_kernels = _extension.has_kernels(torch.empty(0, device=found))
    assert has_kernels, f"the extension has no kernels for {found}: {_extension.LOAD_ERROR or _extension._C}"
    yield found


ACCELERATORS = [*(f"emulated-{arch}" for arch in emulated.ARCHITECTURES), pytest.param("cuda", marks=pytest.mark.cuda)]


@pytest.fixture(params=ACCELERATORS)
def accelerator(request: pytest.FixtureRequest) -> Iterator[torch.device]:
    """Where the CUDA kernels run, in the deterministic mode."""
    with place(request.param, request) as found:
        yield found


# The CPU kernels do the same in both modes.
PLACES = {"cpu": ("cpu", True)}
for name in ("emulated-800", "emulated-900", "cuda"):
    PLACES |= {f"{name}-fast": (name, False), f"{name}-deterministic": (name, True)}


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """A test with a `device` runs in all places, or in those that its module lists as PLACES."""
    if "device" in metafunc.fixturenames:
        names = getattr(metafunc.module, "PLACES", list(PLACES))
        marks = {name: [pytest.mark.cuda] * name.startswith("cuda") for name in names}
        places = [pytest.param(PLACES[name], id=name, marks=marks[name]) for name in names]
        metafunc.parametrize("device", places, indirect=True)


@pytest.fixture
def device(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[torch.device]:
    """Where an op runs, CUDA kernels once in the deterministic mode and once in the fast one."""
    where, deterministic = request.param
    with place(where, request) as found:
        if not deterministic:
            torch.use_deterministic_algorithms(False)
            poison(monkeypatch)
        yield found
