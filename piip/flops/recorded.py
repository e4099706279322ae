"""What the shipped configs cost as they run, recorded: counting them all takes minutes, and listing them must not.

`python -m piip.flops.recorded` counts what is new or changed and rewrites the record; without a record, everything. An
entry carries the digest of the network that was counted, so that one left behind by a change of its config is not used.
"""

from __future__ import annotations

import hashlib
import json
from functools import cache
from pathlib import Path
from typing import Any

from piip.config.experiment import ModelConfig
from piip.config.load import load_config, shipped_configs
from piip.files import write_file
from piip.flops.costs import Cost

_FILE = Path(__file__).with_suffix(".json")


def recorded_count(name: str, model: ModelConfig) -> Cost | None:
    """The recorded cost of a shipped config, or None if there is none for this very network."""
    entry = _record().get(name)
    if entry is None or entry["network"] != _digest(model):
        return None
    return Cost(entry["params"], entry["macs"])


def _digest(model: ModelConfig) -> str:
    """Changes with every setting of the network, not with a new setting that is left at its default."""
    text = json.dumps(model.model_dump(mode="json", exclude_defaults=True), sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


@cache
def _record() -> dict[str, dict[str, Any]]:
    return json.loads(_FILE.read_text(encoding="utf-8")) if _FILE.is_file() else {}


def _rewrite() -> None:
    from piip.flops.actual import actual_count

    lines = []
    for name in shipped_configs():
        model = load_config(name).model
        side = model.backbone.resolutions[0]
        cost = recorded_count(name, model) or actual_count(model, (side, side)).total
        entry = {"network": _digest(model), "params": cost.params, "macs": cost.macs}
        lines.append(f"  {json.dumps(name)}: {json.dumps(entry)}")
    write_file(_FILE, "{\n" + ",\n".join(lines) + "\n}\n")


if __name__ == "__main__":
    _rewrite()
