"""The backbones of the official configs, by our keys."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from piip.official.branch_class import BranchClass, class_of_pretrained

# The classes of the official code, and what they are called here.
_CLASSES: dict[str, BranchClass] = {
    "vit_models": "deit",
    "InternViT6B": "internvit",
    "BEiT": "beit",
    "UnifiedBertEncoder": "uniperceiver",
    "ConvNextHFWrapper": "convnext",
}
PYRAMIDS = ("PIIPTwoBranch", "PIIPThreeBranch", "PIIPFourBranch")

# Settings of the official classes that the mapping below reads, or that change neither weights nor results.
_BRANCH_KEYS = {
    "type", "real_size", "img_size", "pretrain_img_size", "patch_size", "pretrain_patch_size", "depth", "embed_dim",
    "num_heads", "mlp_ratio", "qkv_bias", "drop_path_rate", "init_scale", "init_values", "with_fpn",
    "interaction_indexes", "pretrained", "window_attn", "window_size", "use_flash_attn", "with_cp", "qk_normalization",
    "layerscale_force_fp32", "norm_layer_type", "mlp_type", "Mlp_block", "out_indices", "output_dtype",
    "use_abs_pos_emb", "use_rel_pos_bias", "downsample_ratios", "with_simple_fpn", "single_branch"
}  # fmt: skip
_BACKBONE_KEYS = {
    "type", "n_points", "deform_num_heads", "cffn_ratio", "deform_ratio", "with_cffn", "interact_attn_type",
    "interaction_drop_path_rate", "interaction_proj", "norm_layer", "is_dino", "with_simple_fpn",
    "out_interaction_indexes", "branch1", "branch2", "branch3", "branch4"
}  # fmt: skip


def backbone_settings(
    backbone: Mapping[str, Any], unmapped: list[str], resolution: int | None = None
) -> dict[str, Any]:
    """The backbone by our keys; resolution: of a single branch, in pixels, where its settings do not say."""
    kind = backbone["type"]
    if kind not in PYRAMIDS:
        if kind not in _CLASSES:
            raise ValueError(f"backbone {kind}")
        branch = _branch(backbone, _CLASSES[kind], "model.backbone", unmapped)
        single = {"branches": [branch], "resolutions": [backbone.get("real_size", resolution)]}
        if kind == "ConvNextHFWrapper" and not backbone.get("with_simple_fpn"):
            single["outputs"] = [0, 1, 2]
        return single
    unmapped += [f"model.backbone.{key}" for key in backbone if key not in _BACKBONE_KEYS]
    names = [f"branch{number}" for number in (4, 3, 2, 1) if f"branch{number}" in backbone]
    branches = [
        _branch(backbone[name], class_of_pretrained(backbone[name]["pretrained"]), f"model.backbone.{name}", unmapped)
        for name in names
    ]
    last_blocks = [[pair[1] for pair in backbone[name]["interaction_indexes"]] for name in names]
    return {
        "branches": branches,
        "resolutions": [backbone[name]["real_size"] for name in names],
        "interactions": even_or_listed(last_blocks),
        "interaction": {
            "attention": {"deform": "deformable", "normal": "dense"}[backbone.get("interact_attn_type", "normal")],
            "num_heads": backbone.get("deform_num_heads", 6),
            "points": backbone.get("n_points", 4),
            "value_ratio": backbone.get("deform_ratio", 1.0),
            "ffn_ratio": backbone.get("cffn_ratio", 0.25) if backbone.get("with_cffn") else 0.0,
            "projection": backbone.get("interaction_proj", True),
            "norm": "none" if backbone.get("norm_layer") == "none" else "layer",
            "drop_path": backbone.get("interaction_drop_path_rate", 0.3),
        },
        "outputs": [] if backbone.get("with_simple_fpn", True) else list(backbone["out_interaction_indexes"]),
        "finest_level": not backbone.get("is_dino", False),
    }


def _branch(branch: Mapping[str, Any], kind: BranchClass, where: str, unmapped: list[str]) -> dict[str, Any]:
    unmapped += [f"{where}.{key}" for key in branch if key not in _BRANCH_KEYS]
    file = branch["pretrained"] or ""
    drop_path = branch.get("drop_path_rate") or 0.0
    if kind == "convnext":
        size = file.rsplit("/", 1)[-1].split("-")[1]
        return {"type": "convnext", "model": f"convnext_{size}", "drop_path": drop_path}
    depth = branch["depth"]
    windows = _windows(branch, depth)
    sizes = set(windows) - {0}
    if len(sizes) > 1:
        unmapped.append(f"{where}.window_size (several sizes)")
    internvit = kind == "internvit"
    values: dict[str, Any] = {key: branch[key] for key in ("embed_dim", "depth", "num_heads", "mlp_ratio")}
    values |= {
        "patch_size": branch.get("patch_size", 16),
        "pretrain_size": branch.get("pretrain_img_size", 224),
        "window_size": max(sizes, default=0),
        "global_blocks": [block for block, size in enumerate(windows) if not size] if sizes else [],
        "layer_scale": branch.get("init_values") if kind != "deit" else branch.get("init_scale", 1e-4),
        "norm": "rms" if internvit and branch.get("norm_layer_type", "RMSNorm") == "RMSNorm" else "layer",
        "norm_eps": 1e-5 if kind == "uniperceiver" else 1e-6,
        "activation": "gelu_tanh" if "fused_mlp" in (branch.get("mlp_type"), branch.get("Mlp_block")) else "gelu",
        "qkv_bias": "qv" if kind == "beit" else "all" if branch.get("qkv_bias", not internvit) else "none",
        "qk_norm": branch.get("qk_normalization", internvit),
        "position": "relative" if kind == "beit" else "absolute",
        "embed_norm": kind == "uniperceiver",
        "frame_embed": kind == "uniperceiver",
        "drop_path": drop_path,
        "drop_path_schedule": "constant" if kind == "deit" else "linear",
        "checkpoint_activations": branch.get("with_cp", internvit),
        "init": file,
    }
    if kind == "uniperceiver":
        values["layer_scale"] = 0.0  # its gains always start at zero
    return values


def _windows(branch: Mapping[str, Any], depth: int) -> list[int]:
    used, sizes = branch.get("window_attn", False), branch.get("window_size", 14)
    used = used if isinstance(used, list) else [used] * depth
    sizes = sizes if isinstance(sizes, list) else [sizes] * depth
    return [size if use else 0 for use, size in zip(used, sizes, strict=True)]


def even_or_listed(last_blocks: Sequence[Sequence[int]]) -> int | list[list[int]]:
    """The number of interactions where they are spread evenly over every branch; else the blocks they follow."""
    count = len(last_blocks[0])
    even = all(
        list(blocks) == [(index + 1) * (blocks[-1] + 1) // count - 1 for index in range(count)]
        for blocks in last_blocks
    )
    return count if even else [list(blocks) for blocks in last_blocks]
