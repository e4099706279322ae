"""The parts of a backbone as the official scripts count them (see `piip.official.flops.scripts`)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import TypeGuard

from piip.backbone.config import BackboneConfig, InteractionConfig
from piip.branches.config import BranchConfig
from piip.branches.hierarchical.config import ConvNeXtConfig
from piip.branches.vit.config import ViTConfig
from piip.errors import ConfigError
from piip.flops.costs import Cost
from piip.official.branch_class import branch_class
from piip.official.flops.layers import conv, dense_attention, linear, norm, relu, upsample

# Widths of the stages and blocks in them (Liu et al., 2022, section 2.1 and appendix A.1).
CONVNEXT_SIZES = {
    "convnext_tiny": ((96, 192, 384, 768), (3, 3, 9, 3)),
    "convnext_small": ((96, 192, 384, 768), (3, 3, 27, 3)),
    "convnext_base": ((128, 256, 512, 1024), (3, 3, 27, 3)),
    "convnext_large": ((192, 384, 768, 1536), (3, 3, 27, 3)),
    "convnext_xlarge": ((256, 512, 1024, 2048), (3, 3, 27, 3)),
}


@dataclass(frozen=True)
class Map:
    """A square feature map."""

    width: int
    side: int

    @property
    def cells(self) -> int:
        return self.side**2


def is_plain(branch: BranchConfig) -> TypeGuard[ViTConfig]:
    """Whether the official class of a branch is one of the two ViTs that the classification script can build."""
    return branch_class(branch) in ("deit", "internvit")


def after_groups(backbone: BackboneConfig, maps: Sequence[Sequence[Map]]) -> list[list[Map]]:
    """Every branch's map after each group of blocks; maps: the same after each block."""
    if isinstance(backbone.interactions, int):
        count = backbone.interactions if len(maps) > 1 else 1
        last = [[(group + 1) * len(blocks) // count - 1 for group in range(count)] for blocks in maps]
    else:
        last = [list(blocks) for blocks in backbone.interactions]
    return [[blocks[block] for blocks, block in zip(maps, group, strict=True)] for group in zip(*last, strict=True)]


# --- branches --------------------------------------------------------------------------------------------------------


def vit(branch: ViTConfig, side: int, *, position_side: int, pad_before_qkv: bool, class_token: bool = False) -> Cost:
    """A whole ViT on a square grid of side x side tokens.

    position_side: side of the grid whose position embedding is counted. pad_before_qkv: whether the qkv layer runs on
    whole windows too.
    """
    width, cells = branch.embed_dim, side**2
    # Beside the patches, the class for InternViT keeps a slot for the class token in its position embedding.
    slots = position_side**2 + (branch_class(branch) == "internvit")
    cost = conv(cells, branch.patch_size, 3, width)
    if branch.position == "absolute":
        cost += Cost(params=slots * width)
    if branch.embed_norm:
        cost += norm(cells, width)
    if branch.frame_embed:
        cost += Cost(params=8 * width)  # the released table has a row for each of a clip's eight frames
    if class_token:
        cost += Cost(params=width)
    for block in range(branch.depth):
        window = 0 if block in branch.global_blocks else branch.window_size
        padded = -(-side // window) * window if window and pad_before_qkv else side
        cost += _block(branch, cells + class_token, padded**2 + class_token, window)
        cost += dense_attention(cells, window**2 if window else cells, width)
    return cost


def _block(branch: ViTConfig, cells: int, qkv_cells: int, window: int) -> Cost:
    """A transformer block without its attention products."""
    width, hidden = branch.embed_dim, int(branch.embed_dim * branch.mlp_ratio)
    if branch.qkv_bias == "qv":
        # BEiT's qkv layer is not run as a module, so that no hook sees it; its output layer keeps the padding.
        attention = Cost(params=3 * width**2 + 2 * width) + linear(qkv_cells, width, width)
    else:
        attention = linear(qkv_cells, width, 3 * width, bias=branch.qkv_bias == "all") + linear(cells, width, width)
    cost = attention + linear(cells, width, hidden) + linear(cells, hidden, width)
    cost += 2 * branch_norm(branch, cells)
    if branch.qk_norm:
        cost += 2 * branch_norm(branch, qkv_cells)
    if branch.position == "relative":
        cost += Cost(params=(2 * window - 1) ** 2 * branch.num_heads)
    return cost + Cost(params=0 if branch.layer_scale is None else 2 * width)


def branch_norm(branch: ViTConfig, cells: int) -> Cost:
    return norm(cells, branch.embed_dim) if branch.norm == "layer" else Cost(params=branch.embed_dim)


def convnext_size(branch: ConvNeXtConfig) -> tuple[tuple[int, ...], tuple[int, ...]] | None:
    return CONVNEXT_SIZES.get(branch.model.split(".")[0])


def convnext(branch: ConvNeXtConfig, size: int) -> tuple[Cost, list[Map]]:
    """The whole network, and the map after every block, downsampling layers included."""
    sizes = convnext_size(branch)
    if sizes is None:
        raise ConfigError(f"the paper's count does not know the layers of {branch.model}")
    cost, maps = Cost(), []
    side, width = size // 4, sizes[0][0]
    cost += conv(side**2, 4, 3, width) + norm(0, width)
    for stage, (outputs, depth) in enumerate(zip(*sizes, strict=True)):
        if stage:
            side //= 2
            cost += norm(0, width) + conv(side**2, 2, width, outputs)
            maps.append(Map(outputs, side))
        width = outputs
        layer = conv(side**2, 7, 1, width) + norm(0, width) + Cost(params=width)
        layer += linear(side**2, width, 4 * width) + linear(side**2, 4 * width, width)
        cost += depth * layer
        maps += [Map(width, side)] * depth
    return cost + norm(0, width), maps


# --- between and behind the branches ---------------------------------------------------------------------------------


def pretrain_sides(backbone: BackboneConfig) -> list[int]:
    return [b.pretrain_size // 16 if isinstance(b, ViTConfig) else 14 for b in backbone.branches]


def interactions(
    groups: Sequence[Sequence[Map]], config: InteractionConfig, *, formula_sides: Sequence[int] | None = None
) -> Cost:
    """Both directions between all neighbours after every group.

    formula_sides: per branch, the side of the queries in the formula of deformable attention, if not its map's.
    """
    cost = Cost()
    for maps in groups:
        sides = formula_sides or [x.side for x in maps]
        for (fine, fine_side), (coarse, coarse_side) in pairwise(zip(maps, sides, strict=True)):
            cost += _injector(fine, coarse, config, formula_side=fine_side)
            cost += _injector(coarse, fine, config, formula_side=coarse_side)
    return cost


def _injector(x: Map, source: Map, config: InteractionConfig, *, formula_side: int) -> Cost:
    """One direction: what the branch with map x takes from its neighbour."""
    width, source_width = x.width, source.width
    cost = Cost(params=width)  # the gain of the attention
    if config.projection:
        cost += linear(source.cells, source_width, width)
        source_width = width
    normed = config.norm == "layer"
    if normed:
        cost += norm(x.cells, width) + norm(source.cells, source_width)
    if config.attention == "deformable":
        samples, inner = config.num_heads * config.points, int(width * config.value_ratio)
        cost += linear(source.cells, source_width, inner) + linear(x.cells, inner, width)
        cost += linear(x.cells, width, 2 * samples) + linear(x.cells, width, samples)
        cost += Cost(macs=5 * formula_side**2 * config.points * width)
    else:
        cost += linear(x.cells, width, width, bias=False) + 2 * linear(source.cells, source_width, width, bias=False)
        cost += linear(x.cells, width, width) + dense_attention(x.cells, source.cells, width)
    if config.ffn_ratio:
        hidden = int(width * config.ffn_ratio)
        cost += linear(x.cells, width, hidden) + conv(x.cells, 3, 1, hidden) + linear(x.cells, hidden, width)
        cost += Cost(params=width) + (norm(x.cells, width) if normed else Cost())
    return cost


def conv_merge(maps: Sequence[Map], *, light: bool) -> Cost:
    """Convolutions, group norms and ReLUs of all branches, each on its own grid; see `piip.backbone.merge`."""
    width = maps[-1].width
    cost = Cost(params=len(maps))
    for index, x in enumerate(maps):
        convolved = [x.width] if light else [x.width, width]
        if light and index == len(maps) - 1:
            convolved = []
        convs = (conv(x.cells, 3, inputs, width, bias=False) for inputs in convolved)
        behind = norm(x.cells, width) + relu(x.cells, width)
        cost += sum(convs, max(1, len(convolved)) * behind)
    return cost


def pyramid(first: Sequence[Map], second: Sequence[Map], *, finest: bool, single: bool) -> Cost:
    """Upsampling of the first map twice and of the second once, and pooling, at the finest branch's grid."""
    cells = first[0].cells
    wide, narrow = first[-1].width, second[-1].width
    cost = upsample(cells, narrow) + Cost(macs=cells * narrow)
    if finest:
        # The single branch's norm over channels is one that the script does not see.
        cost += upsample(cells, wide) + norm(0 if single else 4 * cells, wide) + upsample(4 * cells, wide)
    return cost
