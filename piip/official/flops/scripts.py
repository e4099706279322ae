"""Parameters and multiply-accumulates as the papers' tables count them, by formula from a config.

The official repository counts with two scripts. `classification/get_flops.py` gave the columns of all tables but one;
`mmdetection/get_flops_det.py` gave those of the ConvNeXt table. Neither is what a network costs (see
`piip.flops.actual` for that); they are kept so that a number can be held against the published ones.
"""

from __future__ import annotations

from typing import Literal

from piip.backbone.config import BackboneConfig
from piip.branches.hierarchical.config import ConvNeXtConfig
from piip.branches.vit.config import ViTConfig
from piip.errors import ConfigError
from piip.flops.costs import Cost, Count, Part
from piip.official.branch_class import branch_class, branch_classes
from piip.official.flops.layers import linear, norm
from piip.official.flops.parts import (
    CONVNEXT_SIZES,
    Map,
    after_groups,
    branch_norm,
    conv_merge,
    convnext,
    convnext_size,
    interactions,
    is_plain,
    pretrain_sides,
    pyramid,
    vit,
)

# The classifier that the classification script puts on every backbone before it counts.
_CLASSES = 1000


def paper_script(backbone: BackboneConfig) -> Literal["classification", "detection"] | None:
    """The script that counted such a backbone for the tables: the classification one if it can, else the detection one.

    None where no table could have had it: with branches that the official code has no class for, with a ConvNeXt of no
    published size, whose layers are not known here, without a merge but for class tokens in all branches, and with
    ConvNeXts under another merge than the released one.
    """
    branches = backbone.branches
    if any(branch_class(b) is None or (isinstance(b, ConvNeXtConfig) and convnext_size(b) is None) for b in branches):
        return None
    plain = all(map(is_plain, branches))
    if not plain and (backbone.merge_width or backbone.merge == "linear"):
        return None
    if not backbone.merge and not all(isinstance(b, ViTConfig) and b.class_token for b in branches):
        return None
    return "classification" if plain else "detection"


def paper_count(backbone: BackboneConfig) -> Count:
    """The count of the paper's tables, by the script that `paper_script` names. Raises ConfigError if it names none."""
    script = paper_script(backbone)
    if script is None:
        raise ConfigError(
            f"the paper's count is defined for ViTs and for {', '.join(CONVNEXT_SIZES)}; "
            "for a classifier, for ViTs with class tokens"
        )
    return classification_count(backbone) if script == "classification" else detection_count(backbone)


def paper_cost(backbone: BackboneConfig) -> Cost | None:
    """The total of `paper_count`, or None where the paper's conventions do not reach."""
    return paper_count(backbone).total if paper_script(backbone) else None


def classification_count(backbone: BackboneConfig) -> Count:
    """What `classification/get_flops.py` prints, as exact integers, for plain ViT branches.

    Every image is square, each branch has a position embedding of its own resolution, branches are merged by group
    norms and linear layers instead of convolutions, there is no feature pyramid, and a norm and a 1000-way classifier
    stand on top. Attention products are added by formula over unpadded tokens.
    A backbone without merge is one of the classification rows, with a class token and a classifier on every branch.
    """
    class_tokens = not backbone.merge
    maps, parts = [], []
    for name, branch, size in zip(backbone.branch_names, backbone.branches, backbone.resolutions, strict=True):
        if not is_plain(branch):
            raise ConfigError("the classification script counts plain ViT branches only")
        side = size // branch.patch_size
        # Its ViT for DeiT pads windows behind the qkv layer, its other ViT before.
        padded = branch_class(branch) != "deit"
        cost = vit(branch, side, position_side=side, pad_before_qkv=padded, class_token=class_tokens)
        if class_tokens:
            cost += branch_norm(branch, side**2) + linear(1, branch.embed_dim, _CLASSES)
        maps.append([Map(branch.embed_dim, side)] * branch.depth)
        parts.append(Part(name, cost))
    groups = after_groups(backbone, maps)
    last = backbone.branches[-1]
    width, cells = backbone.merge_width or groups[-1][-1].width, groups[-1][0].cells
    if len(backbone.branches) > 1:
        parts.append(Part("interactions", interactions(groups, backbone.interaction)))
    if class_tokens:
        return Count(tuple(parts))
    if len(backbone.branches) > 1:
        projected = groups[-1] if width != groups[-1][-1].width else groups[-1][:-1]
        merges = (norm(x.cells, x.width) + linear(x.cells, x.width, width) for x in projected)
        norms = (norm(x.cells, width) for x in groups[-1])
        parts.append(Part("merge", sum((*merges, *norms), Cost(params=len(backbone.branches)))))
        top = norm(cells, width)
    else:
        assert isinstance(last, ViTConfig)
        top = branch_norm(last, cells)
    parts.append(Part("classifier", top + linear(1, width, _CLASSES)))
    return Count(tuple(parts))


def detection_count(backbone: BackboneConfig) -> Count:
    """What `mmdetection/get_flops_det.py` prints, as exact integers, for the backbone of a detector.

    The finest image is square. Windows are padded before the qkv layer, merges are 3 x 3 convolutions; the pyramid's
    parameters count, its operations only on a single branch. Attention products are added by formula over unpadded
    tokens. What the script does not see is left out here too: RMS norms, the norms of ConvNeXt, the qkv layer of BEiT.
    Raises ConfigError for branches that the official code has no class for, and for another merge than its own.
    """
    branch_classes(backbone)
    if backbone.merge_width or backbone.merge == "linear":
        raise ConfigError("the detection script counts merges by convolutions, at the width of the last branch, only")
    maps, parts = [], []
    for name, branch, size in zip(backbone.branch_names, backbone.branches, backbone.resolutions, strict=True):
        if isinstance(branch, ConvNeXtConfig):
            cost, after_blocks = convnext(branch, size)
        else:
            assert isinstance(branch, ViTConfig)  # since it has a class
            side, learned = size // branch.patch_size, branch.pretrain_size // branch.patch_size
            cost = vit(branch, side, position_side=learned, pad_before_qkv=True)
            after_blocks = [Map(branch.embed_dim, side)] * branch.depth
        maps.append(after_blocks)
        parts.append(Part(name, cost))
    groups = after_groups(backbone, maps)
    outputs = [groups[group] for group in (*backbone.outputs, len(groups) - 1)]
    several = len(backbone.branches) > 1
    if several:
        # For two and four branches the script takes the queries of its formula at the pretraining resolution.
        sides = None if len(backbone.branches) == 3 else pretrain_sides(backbone)
        parts.append(Part("interactions", interactions(groups, backbone.interaction, formula_sides=sides)))
        light = bool(backbone.outputs)
        parts.append(Part("merge", sum((conv_merge(maps, light=light) for maps in outputs), Cost())))
    if isinstance(backbone.branches[0], ViTConfig):
        # Only the released three-branch network owns the finest level where DINO does not ask for it.
        finest = backbone.finest_level or len(backbone.branches) == 3
        levels = pyramid(outputs[0], outputs[min(1, len(outputs) - 1)], finest=finest, single=not several)
        parts.append(Part("pyramid", Cost(levels.params) if several else levels))
    return Count(tuple(parts))
