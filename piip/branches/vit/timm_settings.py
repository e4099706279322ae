"""The settings of a ViT branch that has the architecture of a timm model."""

from __future__ import annotations

from functools import cache
from typing import Any

from piip.branches.timm_names import timm_network


@cache
def vit_settings(name: str) -> dict[str, Any]:
    """What `ViTConfig` needs to know to build timm's vision transformer of this name, and how many registers it has.

    Raises ValueError, as `BranchConfig.objection` words it, for an architecture that a ViT branch cannot express.
    """
    import torch
    from timm.layers import LayerScale, Mlp, RmsNorm
    from timm.models.vision_transformer import Attention, Block, VisionTransformer

    model = timm_network(name)
    block: Any = next(iter(getattr(model, "blocks", [])), None)
    plain = type(model) is VisionTransformer and type(block) is Block
    plain = plain and type(block.attn) is Attention and type(block.mlp) is Mlp and model.pos_embed is not None
    if not plain or not isinstance(model.norm_pre, torch.nn.Identity):
        raise ValueError("is no plain vision transformer with a learned position embedding")
    if not isinstance(block.attn.q_norm, torch.nn.Identity):
        raise ValueError("normalises queries and keys head by head, which a ViT branch does not")
    return {
        "embed_dim": model.embed_dim,
        "depth": len(model.blocks),
        "num_heads": block.attn.num_heads,
        "mlp_ratio": block.mlp.fc1.out_features / model.embed_dim,
        "patch_size": model.patch_embed.patch_size[0],
        "pretrain_size": model.patch_embed.img_size[0],
        "layer_scale": 1.0 if isinstance(block.ls1, LayerScale) else None,
        "norm": "rms" if isinstance(block.norm1, RmsNorm) else "layer",
        "norm_eps": block.norm1.eps,
        "activation": "gelu_tanh" if getattr(block.mlp.act, "approximate", "none") == "tanh" else "gelu",
        "registers": 0 if model.reg_token is None else model.reg_token.shape[1],
        "qkv_bias": "all" if block.attn.qkv.bias is not None else "none",
    }
