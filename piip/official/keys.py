"""Key tables: the official PIIP names and ours, both ways.

A table row pairs two key templates. `{rest}` stands for any remainder; `{i}`, `{j}` and `{k}` for numbers that stay as
they are; `{b}` is a branch (official: 1 is the coarsest; ours: 0 is the finest), `{u}` an interaction unit (official:
the numbers of its two branches; ours: the index of the finer one), `{d}` a direction of it. The first row that matches
decides.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence

from piip.backbone.config import BackboneConfig
from piip.branches.config import BranchConfig
from piip.branches.convnext.config import ConvNeXtConfig
from piip.branches.vit.config import ViTConfig

# Names inside a branch, by the official class that builds it. The classes' names exclude each other, so an official key
# needs no class to be understood; the way back does.
_BRANCHES = {
    "convnext": [
        ("convnext_model.embeddings.patch_embeddings.{rest}", "stem.0.{rest}"),
        ("convnext_model.embeddings.layernorm.{rest}", "stem.1.{rest}"),
        ("convnext_model.encoder.stages.{i}.downsampling_layer.{rest}", "stages.{i}.downsample.{rest}"),
        ("convnext_model.encoder.stages.{i}.layers.{j}.layer_scale_parameter", "stages.{i}.blocks.{j}.gamma"),
        ("convnext_model.encoder.stages.{i}.layers.{j}.dwconv.{rest}", "stages.{i}.blocks.{j}.conv_dw.{rest}"),
        ("convnext_model.encoder.stages.{i}.layers.{j}.layernorm.{rest}", "stages.{i}.blocks.{j}.norm.{rest}"),
        ("convnext_model.encoder.stages.{i}.layers.{j}.pwconv{k}.{rest}", "stages.{i}.blocks.{j}.mlp.fc{k}.{rest}"),
    ],
    "uniperceiver": [
        ("visual_embed.patch_embed.spatial_pos_embed.weight", "pos_embed"),
        ("visual_embed.patch_embed.temporal_pos_embed.weight", "frame_embed"),
        ("visual_embed.patch_embed.proj.{rest}", "patch_embed.proj.{rest}"),
        ("visual_embed.embeddings_norm.{rest}", "embed_norm.{rest}"),
        ("layers.{i}.gamma_{k}", "blocks.{i}.ls{k}.gamma"),
        ("layers.{i}.self_attn.in_proj.{rest}", "blocks.{i}.attn.qkv.{rest}"),
        ("layers.{i}.self_attn.out_proj.{rest}", "blocks.{i}.attn.proj.{rest}"),
        ("layers.{i}.linear{k}.{rest}", "blocks.{i}.mlp.fc{k}.{rest}"),
        ("layers.{i}.norm{k}.{rest}", "blocks.{i}.norm{k}.{rest}"),
    ],
    "beit": [
        ("blocks.{i}.attn.relative_position_bias_table", "blocks.{i}.attn.position_bias.table"),
        ("blocks.{i}.gamma_{k}", "blocks.{i}.ls{k}.gamma"),
        ("patch_embed.{rest}", "patch_embed.{rest}"),
        ("blocks.{i}.{rest}", "blocks.{i}.{rest}"),
    ],
    "deit": [
        ("blocks.{i}.gamma_{k}", "blocks.{i}.ls{k}.gamma"),
        ("cls_token", "cls_token"),
        ("pos_embed", "pos_embed"),
        ("patch_embed.{rest}", "patch_embed.{rest}"),
        ("blocks.{i}.{rest}", "blocks.{i}.{rest}"),
    ],
    "internvit": [
        ("cls_token", "cls_token"),
        ("pos_embed", "pos_embed"),
        ("patch_embed.{rest}", "patch_embed.{rest}"),
        ("blocks.{i}.{rest}", "blocks.{i}.{rest}"),
    ],
}

# InternViT in transformers' naming.
_HUB_INTERNVIT = [
    ("embeddings.position_embedding", "pos_embed"),
    ("embeddings.patch_embedding.{rest}", "patch_embed.proj.{rest}"),
    ("encoder.layers.{i}.ls{k}", "blocks.{i}.ls{k}.gamma"),
    ("encoder.layers.{i}.{rest}", "blocks.{i}.{rest}"),
]

# ConvNeXt in the naming of its authors.
_FACEBOOK_CONVNEXT = [
    ("downsample_layers.0.{rest}", "stem.{rest}"),
    ("downsample_layers.{i}.{rest}", "stages.{i}.downsample.{rest}"),
    ("stages.{i}.{j}.dwconv.{rest}", "stages.{i}.blocks.{j}.conv_dw.{rest}"),
    ("stages.{i}.{j}.pwconv{k}.{rest}", "stages.{i}.blocks.{j}.mlp.fc{k}.{rest}"),
    ("stages.{i}.{j}.{rest}", "stages.{i}.blocks.{j}.{rest}"),
]

_OUR_BRANCH = "backbone.branches.{b}."
_UNIT = "backbone.interactions.{i}.interaction_units_{u}."
_OUR_UNIT = "backbone.interactions.{i}.units.{u}."

_PYRAMIDS = [
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

# Official and our name of the two directions of a unit; the official branch 1 is the coarser one.
_DIRECTIONS = {"branch2to1": "to_coarse", "branch1to2": "to_fine"}
_PATTERNS = {"rest": r".+", "i": r"\d+", "j": r"\d+", "k": r"\d+", "b": r"\d", "u": r"\d+", "d": r"\w+"}

_Rows = list[tuple[re.Pattern[str], str]]


class KeyTable:
    """Renames state-dict keys between the official network of `num_branches` branches and ours.

    families: the official class of every branch of ours, finest first (see `family`); only the way back asks for them.
    classifies: whether it is a network of the official classification code, whose names have no "backbone." in front.
    """

    def __init__(self, num_branches: int, families: Sequence[str] | None = None, *, classifies: bool = False) -> None:
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
        self._ours = [(_compile(official), mine) for official, mine in rows + known]
        self._official = [(_compile(mine), official) for official, mine in rows]
        for index, name in enumerate(families or ["deit"] * num_branches):
            branch = _OUR_BRANCH.format(b=index)
            prefix = theirs.format(b=num_branches - index)
            self._official += [(_compile(branch + mine), prefix + official) for official, mine in _BRANCHES[name]]
        self._unused = [(_compile(key), reason) for key, reason in UNUSED.items()]

    def to_ours(self, key: str) -> str | None:
        """Our name of an official key, or None if no row knows it."""
        return self._rename(key, self._ours, self._field_to_ours)

    def to_official(self, key: str) -> str | None:
        """The official name of one of our keys, or None if no row knows it."""
        return self._rename(key, self._official, self._field_to_official)

    def why_unused(self, key: str) -> str | None:
        """Why an official key has no counterpart; None if it is not known to have none."""
        return next((reason for pattern, reason in self._unused if pattern.fullmatch(key)), None)

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


def branch_key(key: str) -> str | None:
    """Our name of a key of a single pretrained backbone; None if no row knows it.

    Understands the official classes' names, those of ConvNeXt and InternViT on the Hugging Face hub, and those of
    ConvNeXt's authors.
    """
    for pattern, ours in _SINGLE:
        match = pattern.fullmatch(key)
        if match:
            return ours.format_map(match.groupdict())
    return None


def key_table(backbone: BackboneConfig) -> KeyTable:
    """The key table of the official network that a config describes."""
    families = [family(branch) for branch in backbone.branches]
    return KeyTable(len(backbone.branches), families, classifies=not backbone.merge)


def family(branch: BranchConfig) -> str:
    """The official class that builds a branch: deit, internvit, beit, uniperceiver or convnext.

    The first two compute the same; deit has layer scale, and stochastic depth that is constant over the blocks.
    """
    if isinstance(branch, ConvNeXtConfig):
        return "convnext"
    assert isinstance(branch, ViTConfig)
    if branch.embed_norm:
        return "uniperceiver"
    if branch.position == "relative":
        return "beit"
    return "internvit" if branch.drop_path_schedule == "linear" or branch.layer_scale is None else "deit"


def _compile(template: str) -> re.Pattern[str]:
    literal = re.escape(template).replace(r"\{", "{").replace(r"\}", "}")
    return re.compile(literal.format_map({name: f"(?P<{name}>{pattern})" for name, pattern in _PATTERNS.items()}))


_HUB_CONVNEXT = [(key.replace("convnext_model.", "convnext."), ours) for key, ours in _BRANCHES["convnext"]]
_SINGLE: _Rows = [
    (_compile(key), ours)
    for rows in (*_BRANCHES.values(), _HUB_CONVNEXT, _HUB_INTERNVIT, _FACEBOOK_CONVNEXT)
    for key, ours in rows
]
