"""A vision transformer of timm as a branch, plain or rotary, with its class token and registers.

DINOv2 and DINOv3 (Oquab et al., 2023; Simeoni et al., 2025), EVA-02 (Fang et al., 2023), Perception Encoder (Bolya et
al., 2025), CLIP (Radford et al., 2021) and SigLIP (Zhai et al., 2023; Tschannen et al., 2025) are such networks.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import timm
import torch
from timm.layers import Attention, AttentionRope, resample_abs_pos_embed
from timm.models import eva, vision_transformer
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from piip.branches.base import Branch, Tokens
from piip.branches.timm_names import timm_network
from piip.branches.timm_vit.config import TimmViTConfig
from piip.branches.timm_vit.windows import Grid, WindowAttention
from piip.by_size import BySize
from piip.errors import ConfigError
from piip.features import FeatureSpec


class TimmViT(Branch):
    """timm's network without what follows its blocks; parameter names are timm's.

    Class token and registers run through all blocks as prefix tokens. Rotary and learned positions fit any size; the
    augmentation of rotary positions, which belongs to pretraining, is off.
    """

    def __init__(self, config: TimmViTConfig) -> None:
        super().__init__()
        config.check_model(config.model)
        settings: dict[str, Any] = {"num_classes": 0, "dynamic_img_size": True, "drop_path_rate": config.drop_path}
        for name in ("patch_size", "embed_dim", "depth", "num_heads"):
            if (value := getattr(config, name)) is not None:
                settings[name] = value
        _check_heads(config)
        network: Any = timm.create_model(config.label, **settings)
        self.model, self.settings = config.model, settings
        self.checkpoint_activations = config.checkpoint_activations
        self.patch_embed = network.patch_embed
        self.cls_token, self.reg_token, self.pos_embed = network.cls_token, network.reg_token, network.pos_embed
        self.norm_pre: nn.Module = network.norm_pre
        self.rope: Any = getattr(network, "rope", None)
        self.rope_mixed: bool = getattr(network, "rope_mixed", False)
        self.blocks: nn.ModuleList = nn.ModuleList(network.blocks)
        self.num_prefix: int = network.num_prefix_tokens
        self.embeds_prefix: bool = not network.no_embed_class
        self.windowed = [False] * len(self.blocks)
        for index, block in enumerate(self.blocks):
            if config.window_size and index not in config.global_blocks:
                kind = getattr(block, "attn", block)
                if not isinstance(kind, Attention | AttentionRope | eva.EvaAttention):
                    raise ConfigError(
                        f"'{config.model}' has no attention windows, being made of {type(kind).__name__}s; set "
                        "window_size to 0"
                    )
                block.attn = WindowAttention(block.attn, size=config.window_size, prefix=self.num_prefix)
                self.windowed[index] = True
        self.specs = [FeatureSpec(network.embed_dim, self.patch_embed.patch_size[0])] * len(self.blocks)
        if self.rope is not None:
            self.rope.aug_active = False
        self._rotary = BySize(self._rotary_table, limit=8)

    def units(self) -> list[nn.Module]:
        """The transformer blocks."""
        return list(self.blocks)

    def embed(self, images: Tensor) -> Tokens:
        """Images (B, 3, H, W) -> (B, H/patch_size, W/patch_size, C), position embedding added.

        Remainder pixels at the bottom and right are dropped.
        """
        height, width = (side // patch * patch for side, patch in zip(images.shape[2:], self.patch_embed.patch_size))
        x = self.patch_embed(images[:, :, :height, :width])
        prefix = [token.expand(x.shape[0], -1, -1) for token in (self.cls_token, self.reg_token) if token is not None]
        tokens = Tokens(x, torch.cat(prefix, dim=1).to(x.dtype) if prefix else None)
        row = tokens.row()
        if self.pos_embed is not None:
            embedded = self.num_prefix if self.embeds_prefix else 0
            grid, learned = (x.shape[1], x.shape[2]), self.patch_embed.grid_size
            positions = resample_abs_pos_embed(self.pos_embed, grid, learned, num_prefix_tokens=embedded).to(x.dtype)
            if self.embeds_prefix or not self.num_prefix:
                row = row + positions
            else:
                row = torch.cat((row[:, : self.num_prefix], row[:, self.num_prefix :] + positions), dim=1)
        return tokens.replace_row(self.norm_pre(row))

    def run_blocks(self, x: Tokens, start: int, stop: int) -> Tokens:
        """Applies blocks start to stop - 1 to a feature map (B, H, W, C) and its prefix; their shapes stay."""
        grid = Grid(x.map.shape[1], x.map.shape[2])
        rope = None
        if self.rope is not None:
            table = self._rotary_table if self.rope_mixed else self._rotary  # mixed frequencies are learned
            rope = table(x.map, *grid)
        row = x.row()
        for index in range(start, stop):
            arguments: dict[str, Any] = {}
            if rope is not None:
                arguments["rope"] = rope[index] if self.rope_mixed else rope
            if self.windowed[index]:
                arguments["attn_mask"] = grid
            if self.checkpoint_activations and torch.is_grad_enabled():
                row = checkpoint(self.blocks[index], row, use_reentrant=False, **arguments)
            else:
                row = self.blocks[index](row, **arguments)
        return x.replace_row(row)

    def fold(self) -> None:
        """Gives the projections to queries, keys and values the bias that they are called with; for inference."""
        for block in self.blocks:
            attn: Any = block.attn
            if attn.qkv is not None and getattr(attn, "q_bias", None) is not None:
                bias = torch.cat((attn.q_bias, torch.zeros_like(attn.v_bias), attn.v_bias))
                attn.qkv.bias = nn.Parameter(bias.detach(), requires_grad=False)
                attn.q_bias = attn.v_bias = None

    def fit_pretrained(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """timm's own reading of published files, resampled to the patches and the position embedding of the branch."""
        network: Any = timm_network(self.model)
        module = eva if isinstance(network, eva.Eva) else vision_transformer
        with torch.device("meta"):
            network = timm.create_model(self.model.partition(".")[0], **self.settings)
        return dict(module.checkpoint_filter_fn(dict(tensors), network))

    def layer_of(self, parameter: str) -> int | None:
        """0 for the embeddings and the tokens, i + 1 for block i."""
        parts = parameter.split(".")
        return int(parts[1]) + 1 if parts[0] == "blocks" else 0

    def _rotary_table(self, like: Tensor, height: int, width: int) -> Tensor:
        """Sine and cosine of every patch (H * W, 2 D) on the device of a tensor; mixed: of every block and head."""
        return self.rope.get_embed(shape=(height, width)).to(like.device)


def _check_heads(config: TimmViTConfig) -> None:
    network: Any = timm_network(config.model)
    block = network.blocks[0]
    width, heads = config.embed_dim or network.embed_dim, config.num_heads or getattr(block, "attn", block).num_heads
    rotary = getattr(network, "rope", None) is not None
    if width % (4 * heads if rotary else heads):
        needed = ", each a multiple of 4 wide for its rotary positions" if rotary else ""
        raise ConfigError(f"embed_dim {width} does not divide into num_heads {heads}{needed}")
