"""What is recorded of the 41 official configs: state-dict keys with shapes, and the resolved recipes."""

from __future__ import annotations

import gzip
import json
from functools import cache
from pathlib import Path
from typing import Any

_FOLDER = Path(__file__).parent


@cache
def official_keys() -> dict[str, list[tuple[str, list[int]]]]:
    """File stem of an official config -> (key, shape) of its state dict."""
    return json.loads(gzip.decompress((_FOLDER / "official_keys.json.gz").read_bytes()))


@cache
def official_recipes() -> dict[str, dict[str, Any]]:
    """File stem of an official config -> its resolved model, data, optimizer and schedule."""
    return json.loads(gzip.decompress((_FOLDER / "official_recipes.json.gz").read_bytes()))
