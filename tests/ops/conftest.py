"""Every test of the ops runs with uninitialised memory poisoned and, where there is one, also on a GPU."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest
import torch

from piip.ops import _extension


@pytest.fixture(autouse=True)
def poisoned_memory() -> Iterator[None]:
    """In PyTorch's deterministic mode `torch.empty` is filled with NaN: what a kernel forgets to write shows."""
    torch.use_deterministic_algorithms(True)
    assert torch.empty(1).isnan().all()
    yield
    torch.use_deterministic_algorithms(False)


@pytest.fixture(params=["cpu", pytest.param("cuda", marks=pytest.mark.cuda)])
def device(request: pytest.FixtureRequest) -> torch.device:
    if request.param == "cuda" and not torch.cuda.is_available():
        if os.environ.get("PIIP_REQUIRE_CUDA") == "1":
            pytest.fail("PIIP_REQUIRE_CUDA=1 but there is no CUDA device")
        pytest.skip("no CUDA device")
    found = torch.device(request.param)
    assert _extension.has_kernels(found), f"the extension has no kernels for {found}: {_extension.describe()}"
    return found
