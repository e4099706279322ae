"""Parameters and multiply-accumulates as the paper's tables count them, by formula from a config.

The tables' convention is not what a network costs (see `piip.flops.actual_count` for that); it is kept so that a number
can be held against the published ones.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

from pydantic import ValidationError

from piip.config import VIT_SIZES, BackboneConfig, BranchConfig, ConvNeXtConfig, InteractionConfig, ViTConfig
from piip.errors import ConfigError

# The classifier that the official script puts on every backbone before it counts.
_PAPER_CLASSES = 1000

# What `--branches` means when no resolutions are given: the largest released rows, and 1024 for a single branch.
DEFAULT_RESOLUTIONS = {
    **dict.fromkeys("tsbl", (1024,)),
    "tsb": (1568, 1120, 672),
    "sbl": (1568, 1120, 672),
    "tsbl": (1568, 1120, 672, 448),
}


@dataclass(frozen=True)
class Cost:
    """Trainable parameters and multiply-accumulates."""

    params: int = 0
    macs: int = 0

    def __add__(self, other: Cost) -> Cost:
        return Cost(self.params + other.params, self.macs + other.macs)

    def __rmul__(self, times: int) -> Cost:
        return Cost(times * self.params, times * self.macs)


@dataclass(frozen=True)
class Part:
    """A named share of a network's cost."""

    name: str
    cost: Cost


@dataclass(frozen=True)
class Count:
    """The parts of a network, and the ops that were run but have no formula."""

    parts: tuple[Part, ...]
    uncounted: tuple[str, ...] = ()

    @property
    def total(self) -> Cost:
        return sum((part.cost for part in self.parts), Cost())


def backbone_from_letters(letters: str, resolutions: tuple[int, ...] | None = None) -> BackboneConfig:
    """DeiT branches by letter ('tsb'), finest resolution first, with the attention windows of the released rows.

    resolutions: pixels per branch; where they are left out, those of the largest released row.
    Raises ConfigError for an unknown letter or resolutions that do not fit.
    """
    letters = letters.lower()
    unknown = sorted(set(letters) - {size.lower() for size in VIT_SIZES})
    if unknown or not letters:
        raise ConfigError(f"branches '{letters}': use the letters t, s, b and l, one per branch, as in 'tsb'")
    if resolutions is None:
        if letters not in DEFAULT_RESOLUTIONS:
            raise ConfigError(f"no row of branches '{letters}' was released; give {len(letters)} with --resolutions")
        resolutions = DEFAULT_RESOLUTIONS[letters]
    # Released: windows of 14 x 14, or 28 x 28 where a pyramid holds an L; a single branch has every third block global.
    window = 28 if "l" in letters and len(letters) > 1 else 14
    branches = []
    for letter in letters.upper():
        depth = VIT_SIZES[letter]["depth"]
        global_blocks = tuple(range(2, depth, 3)) if len(letters) == 1 else ()
        branches.append({"size": letter, "window_size": window, "global_blocks": global_blocks})
    try:
        return BackboneConfig.model_validate({"branches": branches, "resolutions": resolutions})
    except ValidationError as error:
        raise ConfigError(error.errors()[0]["msg"].removeprefix("Value error, ")) from None


def branch_names(backbone: BackboneConfig) -> list[str]:
    """'T 1568' and so on: size (or width) and resolution of each branch."""
    return [f"{_label(branch)} {size}" for branch, size in zip(backbone.branches, backbone.resolutions, strict=True)]


def _label(branch: BranchConfig) -> str:
    return branch.model if isinstance(branch, ConvNeXtConfig) else str(branch.size or branch.embed_dim)


def paper_count(backbone: BackboneConfig) -> Count:
    """What the official script (`classification/get_flops.py`) prints, as exact integers, for plain ViT branches.

    It counts a classification network: every image square, each branch at its own resolution with a position
    embedding of that size, branches merged by group norms and linear layers instead of convolutions, no feature
    pyramid, and a norm and a 1000-way classifier on top. Attention products are added by formula over unpadded
    tokens, deformable attention as 5 * queries * points * width. A convolution's bias counts one operation per
    output, a linear layer's none; norms count two per element; activations, softmax and residual sums count nothing.
    """
    branches = [branch for branch in backbone.branches if isinstance(branch, ViTConfig)]
    if len(branches) < len(backbone.branches):
        raise ConfigError("the paper's count is defined for plain ViT branches only")
    interaction = backbone.interaction
    tokens = [(size // branch.patch_size) ** 2 for branch, size in zip(branches, backbone.resolutions, strict=True)]
    parts = [
        Part(name, _paper_branch(branch, count))
        for name, branch, count in zip(branch_names(backbone), branches, tokens, strict=True)
    ]
    width = branches[-1].embed_dim
    if len(branches) > 1:
        grids = list(zip((branch.embed_dim for branch in branches), tokens, strict=True))
        units = (_paper_unit(fine, coarse, interaction) for fine, coarse in pairwise(grids))
        times = backbone.interactions if isinstance(backbone.interactions, int) else len(backbone.interactions[0])
        merges = (_norm(n, dim) + _linear(n, dim, width) + _norm(n, width) for dim, n in grids[:-1])
        weights = Cost(params=len(branches))
        parts.append(Part("interactions", times * sum(units, Cost())))
        parts.append(Part("merge", sum(merges, _norm(tokens[-1], width) + weights)))
    parts.append(Part("classifier", _norm(tokens[0], width) + _linear(1, width, _PAPER_CLASSES)))
    return Count(tuple(parts))


def paper_cost(backbone: BackboneConfig) -> Cost | None:
    """The total of `paper_count`, or None where the paper's convention does not reach."""
    if all(isinstance(branch, ViTConfig) for branch in backbone.branches):
        return paper_count(backbone).total
    return None


def _linear(tokens: int, inputs: int, outputs: int, *, bias: bool = True) -> Cost:
    return Cost(inputs * outputs + (outputs if bias else 0), tokens * inputs * outputs)


def _norm(tokens: int, width: int) -> Cost:
    return Cost(2 * width, 2 * tokens * width)


def _conv(positions: int, kernel: int, inputs: int, outputs: int) -> Cost:
    weights = kernel * kernel * inputs * outputs + outputs
    return Cost(weights, positions * weights)


def _paper_branch(branch: ViTConfig, tokens: int) -> Cost:
    width, hidden = branch.embed_dim, int(branch.embed_dim * branch.mlp_ratio)
    linears = _linear(tokens, width, 3 * width) + _linear(tokens, width, width)
    linears += _linear(tokens, width, hidden) + _linear(tokens, hidden, width)
    gains = Cost(params=0 if branch.layer_scale is None else 2 * width)
    position_embedding = Cost(params=tokens * width)
    keys = [
        branch.window_size**2 if branch.window_size and block not in branch.global_blocks else tokens
        for block in range(branch.depth)
    ]
    attention = Cost(macs=2 * tokens * sum(keys) * width)
    blocks = branch.depth * (linears + 2 * _norm(tokens, width) + gains)
    return _conv(tokens, branch.patch_size, 3, width) + position_embedding + blocks + attention


def _paper_unit(fine: tuple[int, int], coarse: tuple[int, int], interaction: InteractionConfig) -> Cost:
    """Both directions of one interaction between neighbours, each given as (width, tokens)."""
    cost = Cost()
    for (width, queries), (other_width, keys) in ((fine, coarse), (coarse, fine)):
        if interaction.projection:
            cost += _linear(keys, other_width, width)
            other_width = width
        cost += _paper_injector(width, queries, other_width, keys, interaction)
    return cost


def _paper_injector(width: int, queries: int, key_width: int, keys: int, interaction: InteractionConfig) -> Cost:
    cost = Cost(params=width)  # the gain of the attention
    normed = interaction.norm == "layer"
    if normed:
        cost += _norm(queries, width) + _norm(keys, key_width)
    if interaction.attention == "deformable":
        samples, inner = interaction.num_heads * interaction.points, int(width * interaction.value_ratio)
        cost += _linear(keys, key_width, inner) + _linear(queries, inner, width)
        cost += _linear(queries, width, 2 * samples) + _linear(queries, width, samples)
        cost += Cost(macs=5 * queries * interaction.points * width)
    else:
        cost += _linear(queries, width, width, bias=False) + 2 * _linear(keys, key_width, width, bias=False)
        cost += _linear(queries, width, width) + Cost(macs=2 * queries * keys * width)
    if interaction.ffn_ratio:
        hidden = int(width * interaction.ffn_ratio)
        depthwise = _conv(queries, 3, 1, hidden)
        cost += _linear(queries, width, hidden) + depthwise + _linear(queries, hidden, width) + Cost(params=width)
        cost += _norm(queries, width) if normed else Cost()
    return cost
