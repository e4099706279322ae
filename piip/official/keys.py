"""Key tables: the official PIIP names and ours, both ways.

A row pairs two templates (see `piip.weights.names`). `{i}`, `{j}` and `{k}` are numbers that stay as they are; `{b}` is
a branch (official: 1 is the coarsest; ours: 0 is the finest), `{u}` an interaction unit (official: the numbers of its
two branches; ours: the index of the finer one), `{name}` a direction of it.
"""

from __future__ import annotations

from collections.abc import Sequence

from piip.backbone.config import BackboneConfig
from piip.branches.hierarchical.convnext_names import HUB
from piip.branches.vit.pretrained import BEIT, DEIT, UNIPERCEIVER
from piip.official.branch_class import BranchClass, branch_classes
from piip.weights.names import Names, Row, compile_template

# Names inside a branch, by the official class that builds it. The classes' names exclude each other, so an official key
# needs no class to be understood; the way back does.
_PATCHES = ("patch_embed.{rest}", "patch_embed.{rest}")
_BLOCKS = ("blocks.{i}.{rest}", "blocks.{i}.{rest}")
_EMBEDDINGS = [("cls_token", "cls_token"), ("pos_embed", "pos_embed"), _PATCHES, _BLOCKS]
_BRANCHES: dict[BranchClass, list[Row]] = {
    "convnext": [(f"convnext_model.{theirs}", ours) for theirs, ours in HUB],
    "uniperceiver": UNIPERCEIVER,
    "beit": [*BEIT, _PATCHES, _BLOCKS],
    "deit": [*DEIT, *_EMBEDDINGS],
    "internvit": _EMBEDDINGS,
}

_OUR_BRANCH = "backbone.branches.{b}."
_UNIT = "backbone.interactions.{i}.interaction_units_{u}."
_OUR_UNIT = "backbone.interactions.{i}.units.{u}."

_PYRAMIDS = [
    (_UNIT + "{name}_proj.{rest}", _OUR_UNIT + "{name}.proj.{rest}"),
    (_UNIT + "{name}_injector.ca_gamma", _OUR_UNIT + "{name}.gamma"),
    (_UNIT + "{name}_injector.cffn_gamma", _OUR_UNIT + "{name}.ffn_gamma"),
    (_UNIT + "{name}_injector.feat_norm.{rest}", _OUR_UNIT + "{name}.source_norm.{rest}"),
    (_UNIT + "{name}_injector.attn.wq.{rest}", _OUR_UNIT + "{name}.attn.q.{rest}"),
    (_UNIT + "{name}_injector.attn.wk.{rest}", _OUR_UNIT + "{name}.attn.k.{rest}"),
    (_UNIT + "{name}_injector.attn.wv.{rest}", _OUR_UNIT + "{name}.attn.v.{rest}"),
    (_UNIT + "{name}_injector.attn.proj.{rest}", _OUR_UNIT + "{name}.attn.proj.{rest}"),
    (_UNIT + "{name}_injector.attn.{rest}", _OUR_UNIT + "{name}.attn.deform.{rest}"),
    (_UNIT + "{name}_injector.ffn.dwconv.dwconv.{rest}", _OUR_UNIT + "{name}.ffn.dwconv.{rest}"),
    (_UNIT + "{name}_injector.{rest}", _OUR_UNIT + "{name}.{rest}"),
    ("backbone.w{b}", "backbone.merge.weights.{b}"),
    ("backbone.merge_branch{b}.{rest}", "backbone.merge.projections.{b}.{rest}"),
    ("backbone.intermediate_merging_{i}_w{b}", "backbone.intermediate.{i}.weights.{b}"),
    ("backbone.intermediate_merging_{i}_branch{b}.{rest}", "backbone.intermediate.{i}.projections.{b}.{rest}"),
    ("backbone.fpn1.{rest}", "backbone.pyramid.up4.{rest}"),
    ("backbone.fpn2.0.{rest}", "backbone.pyramid.up2.{rest}"),
]

_SINGLE_BRANCHES = [
    ("backbone.up1.{rest}", "backbone.pyramid.up4.{rest}"),
    ("backbone.up2.0.{rest}", "backbone.pyramid.up2.{rest}"),
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

_LAYER = "bbox_head.transformer.encoder.layers.{i}."
_OUR_LAYER = "head.encoder.layers.{i}."
_DECODER_LAYER = "bbox_head.transformer.decoder.layers.{i}."
_OUR_DECODER_LAYER = "head.decoder.layers.{i}."

_DINO = [
    ("neck.convs.{i}.conv.{rest}", "neck.convs.{i}.0.{rest}"),
    ("neck.convs.{i}.gn.{rest}", "neck.convs.{i}.1.{rest}"),
    ("neck.extra_convs.{i}.conv.{rest}", "neck.extra.{i}.0.{rest}"),
    ("neck.extra_convs.{i}.gn.{rest}", "neck.extra.{i}.1.{rest}"),
    ("bbox_head.transformer.level_embeds", "head.level_embed"),
    (_LAYER + "attentions.0.{rest}", _OUR_LAYER + "attn.{rest}"),
    (_LAYER + "norms.0.{rest}", _OUR_LAYER + "norm1.{rest}"),
    (_LAYER + "norms.1.{rest}", _OUR_LAYER + "norm2.{rest}"),
    (_LAYER + "ffns.0.layers.0.0.{rest}", _OUR_LAYER + "ffn.fc1.{rest}"),
    (_LAYER + "ffns.0.layers.1.{rest}", _OUR_LAYER + "ffn.fc2.{rest}"),
    (_DECODER_LAYER + "attentions.0.attn.{rest}", _OUR_DECODER_LAYER + "self_attn.{rest}"),
    (_DECODER_LAYER + "attentions.1.{rest}", _OUR_DECODER_LAYER + "cross_attn.{rest}"),
    (_DECODER_LAYER + "norms.0.{rest}", _OUR_DECODER_LAYER + "norm1.{rest}"),
    (_DECODER_LAYER + "norms.1.{rest}", _OUR_DECODER_LAYER + "norm2.{rest}"),
    (_DECODER_LAYER + "norms.2.{rest}", _OUR_DECODER_LAYER + "norm3.{rest}"),
    (_DECODER_LAYER + "ffns.0.layers.0.0.{rest}", _OUR_DECODER_LAYER + "ffn.fc1.{rest}"),
    (_DECODER_LAYER + "ffns.0.layers.1.{rest}", _OUR_DECODER_LAYER + "ffn.fc2.{rest}"),
    ("bbox_head.transformer.decoder.ref_point_head.{rest}", "head.decoder.box_encoding.{rest}"),
    ("bbox_head.transformer.decoder.norm.{rest}", "head.decoder.norm.{rest}"),
    ("bbox_head.transformer.enc_output.{rest}", "head.proposer.project.{rest}"),
    ("bbox_head.transformer.enc_output_norm.{rest}", "head.proposer.norm.{rest}"),
    ("bbox_head.transformer.query_embed.{rest}", "head.query_embed.{rest}"),
    ("bbox_head.label_embedding.{rest}", "head.label_embed.{rest}"),
    # Predictors 0 to 5 belong to the six decoder layers of the released detectors, the last one to the encoder.
    ("bbox_head.cls_branches.6.{rest}", "head.proposer.predictor.cls.{rest}"),
    ("bbox_head.reg_branches.6.{rest}", "head.proposer.predictor.reg.{rest}"),
    ("bbox_head.cls_branches.{i}.{rest}", "head.decoder.predictors.{i}.cls.{rest}"),
    ("bbox_head.reg_branches.{i}.{rest}", "head.decoder.predictors.{i}.reg.{rest}"),
]

# mmcv's ConvModule of convolution and batch norm, and ours.
_CONV_NORMS = {
    "decode_head.psp_modules.{i}.1": "head.pooling.stages.{i}.1",
    "decode_head.bottleneck": "head.pooling.fuse",
    "decode_head.lateral_convs.{i}": "head.lateral.{i}",
    "decode_head.fpn_convs.{i}": "head.output.{i}",
    "decode_head.fpn_bottleneck": "head.fuse",
    "auxiliary_head.convs.0": "head.auxiliary.0",
}
_UPERNET = [
    *((f"{theirs}.conv.{{rest}}", f"{ours}.0.{{rest}}") for theirs, ours in _CONV_NORMS.items()),
    *((f"{theirs}.bn.{{rest}}", f"{ours}.1.{{rest}}") for theirs, ours in _CONV_NORMS.items()),
    ("decode_head.conv_seg.{rest}", "head.classifier.1.{rest}"),
    ("auxiliary_head.conv_seg.{rest}", "head.auxiliary.1.1.{rest}"),
]

# The classification code builds the backbone alone, with a classifier inside every branch.
_CLASSIFIER = [("norm.{rest}", "head.norms.{b}.{rest}"), ("head.{rest}", "head.linears.{b}.{rest}")]

# Official keys without a counterpart in ours, and why.
UNUSED = {
    "backbone.branch{b}.blocks.{i}.attn.relative_position_index": "computed from the window size",
    "backbone.branch{b}.convnext_model.layernorm.{rest}": "the classifier's norm, which no forward pass runs",
    "backbone.convnext_model.layernorm.{rest}": "the classifier's norm, which no forward pass runs",
    "ema_{rest}": "the second copy that mmcv keeps while it averages weights",
    "backbone.fpn1.{rest}": "made, but left out of the pyramid that DINO works on",
}

_UNUSED = [(compile_template(key), reason) for key, reason in UNUSED.items()]

# Official and our name of the two directions of a unit; the official branch 1 is the coarser one.
_DIRECTIONS = {"branch2to1": "to_coarse", "branch1to2": "to_fine"}


class KeyTable:
    """Renames state-dict keys between the official network of `num_branches` branches and ours.

    classes: the official class of every branch of ours, finest first; only the way back asks for them.
    classifies: whether it is a network of the official classification code, whose names have no "backbone." in front.
    to_ours, to_official: a key's name in the other network, or None if no row knows it.
    """

    def __init__(
        self, num_branches: int, classes: Sequence[BranchClass] | None = None, *, classifies: bool = False
    ) -> None:
        self.num_branches = num_branches
        single = num_branches == 1
        theirs, ours = ("backbone.", "backbone.branches.0.") if single else ("backbone.branch{b}.", _OUR_BRANCH)
        rows = _SINGLE_BRANCHES if single else _PYRAMIDS
        if classifies:
            theirs = theirs.removeprefix("backbone.")
            heads = [(theirs + a, b.replace("{b}", "0") if single else b) for a, b in _CLASSIFIER]
            rows = [(official.removeprefix("backbone."), mine) for official, mine in rows] + heads
        else:
            rows = rows + _MASK_RCNN + _DINO + _UPERNET
        known = [(theirs + a, ours + b) for table in _BRANCHES.values() for a, b in table]
        self.to_ours = Names(rows + known, self._field_to_ours).get
        back = [(mine, official) for official, mine in rows]
        named: Sequence[BranchClass] = classes or ["deit"] * num_branches
        for index, name in enumerate(named):
            branch, prefix = _OUR_BRANCH.format(b=index), theirs.format(b=num_branches - index)
            back += [(branch + mine, prefix + official) for official, mine in _BRANCHES[name]]
        self.to_official = Names(back, self._field_to_official).get

    def why_unused(self, key: str) -> str | None:
        """Why an official key has no counterpart; None if it is not known to have none."""
        return next((reason for pattern, reason in _UNUSED if pattern.fullmatch(key)), None)

    def _field_to_ours(self, field: str, value: str) -> str | None:
        if field == "b":
            return str(self.num_branches - int(value))
        if field == "u":
            return str(self.num_branches - int(value[-1]))
        return _DIRECTIONS.get(value) if field == "name" else value

    def _field_to_official(self, field: str, value: str) -> str | None:
        if field == "b":
            return str(self.num_branches - int(value))
        if field == "u":
            fine = self.num_branches - int(value)
            return f"{fine - 1}{fine}"
        return {ours: official for official, ours in _DIRECTIONS.items()}.get(value) if field == "name" else value


def key_table(backbone: BackboneConfig) -> KeyTable:
    """The key table of the official network that a config describes. Raises ConfigError if there can be none."""
    return KeyTable(len(backbone.branches), branch_classes(backbone), classifies=not backbone.merge)
