"""What all tests share: those that need a GPU are skipped without one, and fail where there has to be one."""

from __future__ import annotations

import os

import pytest
import torch


def pytest_runtest_setup(item: pytest.Item) -> None:
    if item.get_closest_marker("cuda") and not torch.cuda.is_available():
        if os.environ.get("PIIP_REQUIRE_CUDA") == "1":
            pytest.fail("PIIP_REQUIRE_CUDA=1 but there is no CUDA device")
        pytest.skip("no CUDA device")
