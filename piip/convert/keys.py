"""Key tables: the official PIIP names and ours, both ways.

A table row pairs two key templates. `{rest}` stands for any remainder; `{i}` and `{k}` for numbers that stay as they
are; `{b}` is a branch (official: 1 is the coarsest; ours: 0 is the finest), `{u}` an interaction unit (official: the
numbers of its two branches; ours: the index of the finer one), `{d}` a direction of it. The first row that matches
decides.
"""

from __future__ import annotations

import re
from collections.abc import Callable

_UNIT = "backbone.interactions.{i}.interaction_units_{u}."
_OUR_UNIT = "backbone.interactions.{i}.units.{u}."

_PYRAMIDS = [
    ("backbone.branch{b}.blocks.{i}.gamma_{k}", "backbone.branches.{b}.blocks.{i}.ls{k}.gamma"),
    ("backbone.branch{b}.{rest}", "backbone.branches.{b}.{rest}"),
    (_UNIT + "{d}_proj.{rest}", _OUR_UNIT + "{d}.proj.{rest}"),
    (_UNIT + "{d}_injector.ca_gamma", _OUR_UNIT + "{d}.gamma"),
    (_UNIT + "{d}_injector.cffn_gamma", _OUR_UNIT + "{d}.ffn_gamma"),
    (_UNIT + "{d}_injector.feat_norm.{rest}", _OUR_UNIT + "{d}.source_norm.{rest}"),
    (_UNIT + "{d}_injector.attn.wq.{rest}", _OUR_UNIT + "{d}.attn.q.{rest}"),
    (_UNIT + "{d}_injector.attn.wk.{rest}", _OUR_UNIT + "{d}.attn.k.{rest}"),
    (_UNIT + "{d}_injector.attn.wv.{rest}", _OUR_UNIT + "{d}.attn.v.{rest}"),
    (_UNIT + "{d}_injector.attn.proj.{rest}", _OUR_UNIT + "{d}.attn.proj.{rest}"),
    (_UNIT + "{d}_injector.attn.{rest}", _OUR_UNIT + "{d}.attn.deform.{rest}"),
    (_UNIT + "{d}_injector.ffn.dwconv.dwconv.{rest}", _OUR_UNIT + "{d}.ffn.dwconv.{rest}"),
    (_UNIT + "{d}_injector.{rest}", _OUR_UNIT + "{d}.{rest}"),
    ("backbone.w{b}", "backbone.merge.weights.{b}"),
    ("backbone.merge_branch{b}.{rest}", "backbone.merge.projections.{b}.{rest}"),
    ("backbone.fpn1.0.{rest}", "backbone.pyramid.up4.0.{rest}"),
    ("backbone.fpn1.1.{rest}", "backbone.pyramid.up4.1.{rest}"),
    ("backbone.fpn1.3.{rest}", "backbone.pyramid.up4.3.{rest}"),
    ("backbone.fpn2.0.{rest}", "backbone.pyramid.up2.{rest}"),
]

_SINGLE_BRANCHES = [
    ("backbone.up1.{rest}", "backbone.pyramid.up4.{rest}"),
    ("backbone.up2.0.{rest}", "backbone.pyramid.up2.{rest}"),
    ("backbone.blocks.{i}.gamma_{k}", "backbone.branches.0.blocks.{i}.ls{k}.gamma"),
    ("backbone.{rest}", "backbone.branches.0.{rest}"),
]

_MASK_RCNN = [
    ("neck.lateral_convs.{i}.conv.{rest}", "neck.lateral.{i}.{rest}"),
    ("neck.fpn_convs.{i}.conv.{rest}", "neck.output.{i}.{rest}"),
    ("rpn_head.rpn_{rest}", "head.rpn.{rest}"),
    ("roi_head.bbox_head.shared_fcs.0.{rest}", "head.box.fc1.{rest}"),
    ("roi_head.bbox_head.shared_fcs.1.{rest}", "head.box.fc2.{rest}"),
    ("roi_head.bbox_head.fc_{rest}", "head.box.{rest}"),
    ("roi_head.mask_head.convs.{i}.conv.{rest}", "head.mask.convs.{i}.{rest}"),
    ("roi_head.mask_head.conv_logits.{rest}", "head.mask.logits.{rest}"),
    ("roi_head.mask_head.{rest}", "head.mask.{rest}"),
]

# Official and our name of the two directions of a unit; the official branch 1 is the coarser one.
_DIRECTIONS = {"branch2to1": "to_coarse", "branch1to2": "to_fine"}
_PATTERNS = {"rest": r".+", "i": r"\d+", "k": r"\d+", "b": r"\d", "u": r"\d+", "d": r"\w+"}

_Rows = list[tuple[re.Pattern[str], str]]


class KeyTable:
    """Renames state-dict keys between the official network of `num_branches` branches and ours."""

    def __init__(self, num_branches: int) -> None:
        self.num_branches = num_branches
        rows = (_SINGLE_BRANCHES if num_branches == 1 else _PYRAMIDS) + _MASK_RCNN
        self._ours = [(_compile(official), ours) for official, ours in rows]
        self._official = [(_compile(ours), official) for official, ours in rows]

    def to_ours(self, key: str) -> str | None:
        """Our name of an official key, or None if no row knows it."""
        return self._rename(key, self._ours, self._field_to_ours)

    def to_official(self, key: str) -> str | None:
        """The official name of one of our keys, or None if no row knows it."""
        return self._rename(key, self._official, self._field_to_official)

    def _rename(self, key: str, rows: _Rows, convert: Callable[[str, str], str | None]) -> str | None:
        for pattern, template in rows:
            match = pattern.fullmatch(key)
            if match:
                fields = {name: convert(name, value) for name, value in match.groupdict().items()}
                if None not in fields.values():
                    return template.format_map(fields)
        return None

    def _field_to_ours(self, name: str, value: str) -> str | None:
        if name == "b":
            return str(self.num_branches - int(value))
        if name == "u":
            return str(self.num_branches - int(value[-1]))
        return _DIRECTIONS.get(value) if name == "d" else value

    def _field_to_official(self, name: str, value: str) -> str | None:
        if name == "b":
            return str(self.num_branches - int(value))
        if name == "u":
            fine = self.num_branches - int(value)
            return f"{fine - 1}{fine}"
        return {ours: official for official, ours in _DIRECTIONS.items()}.get(value) if name == "d" else value


def _compile(template: str) -> re.Pattern[str]:
    literal = re.escape(template).replace(r"\{", "{").replace(r"\}", "}")
    return re.compile(literal.format_map({name: f"(?P<{name}>{pattern})" for name, pattern in _PATTERNS.items()}))
