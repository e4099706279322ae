"""timm's pretrained networks that can be branches.

What an architecture is, is found out by building it without memory, which takes minutes for all of timm's:
`python -m piip.branches.catalogue` does so and rewrites the record, from which they are listed. What a newer timm has
beyond the record is built when it is asked for.
"""

from __future__ import annotations

import json
from fnmatch import fnmatchcase
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

from piip.branches.config import BranchConfig
from piip.errors import PiipError
from piip.files import write_file

_FILE = Path(__file__).with_suffix(".json")
_BUILT = 20  # at most, of architectures that the record does not have


class Backbone(NamedTuple):
    """name: timm's, with its tag. type: of the branch. params: of the branch. strides: after the first and last block.

    prefix: class token and registers. size: the side in pixels that the weights were trained at. licence: as timm
    states it; None where it states none.
    """

    name: str
    type: str
    params: int
    strides: tuple[int, int]
    prefix: int
    size: int
    licence: str | None


def backbones(pattern: str) -> list[Backbone]:
    """The pretrained networks that can be branches and whose name fits a pattern: a part of it, or one of fnmatch."""
    import timm

    if not any(sign in pattern for sign in "*?["):
        pattern = f"*{pattern}*"
    names = [name for name in timm.list_pretrained() if fnmatchcase(name, pattern)]
    record = _record()
    fresh = {name.partition(".")[0] for name in names} - record.keys()
    known = record | {name: describe(name) for name in sorted(fresh)[:_BUILT]}
    found = []
    for name in names:
        if facts := known.get(name.partition(".")[0]):
            cfg = timm.get_pretrained_cfg(name)
            kind, params, first, last, prefix = facts
            found.append(Backbone(name, kind, params, (first, last), prefix, cfg.input_size[-1], cfg.license))
    return found


def describe(architecture: str) -> tuple[str, int, int, int, int] | None:
    """Type, parameters, first and last stride and prefix tokens of a branch; None where it can be none."""
    import torch

    kind = BranchConfig.meant_type({"model": architecture})
    member = BranchConfig.known()[str(kind)]
    if member.objection(architecture) is not None:
        return None
    try:
        with torch.device("meta"):
            branch = member.model_validate({"model": architecture}).build()
            side = 8 * branch.specs[-1].stride
            prefix = branch.run_blocks(branch.embed(torch.empty(1, 3, side, side)), 0, branch.depth).prefix
    except (PiipError, RuntimeError, ValueError, TypeError):
        return None
    params = sum(parameter.numel() for parameter in branch.parameters())
    tokens = 0 if prefix is None else prefix.shape[1]
    return str(kind), params, branch.specs[0].stride, branch.specs[-1].stride, tokens


@cache
def _record() -> dict[str, Any]:
    return json.loads(_FILE.read_text(encoding="utf-8")) if _FILE.is_file() else {}


def _rewrite() -> None:
    import timm

    from piip.branches.timm_names import timm_network

    lines = []
    for name in sorted({name.partition(".")[0] for name in timm.list_pretrained()}):
        lines.append(f"{json.dumps(name)}: {json.dumps(describe(name))}")
        timm_network.cache_clear()
    write_file(_FILE, "{\n" + ",\n".join(lines) + "\n}\n")


if __name__ == "__main__":
    _rewrite()
