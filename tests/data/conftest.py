"""Where generated pictures go."""

from __future__ import annotations

from pathlib import Path

import pytest


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where a module's generated pictures go."""
    return tmp_path_factory.mktemp("shapes")
