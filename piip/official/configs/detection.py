"""The settings of the official detection and segmentation configs, by our keys."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from piip.errors import ConfigError
from piip.official.configs.segmentation import segmentation_transforms, upernet_settings, with_crop_grids

_CLASSES = {
    "vit_models": "deit",
    "InternViT6B": "internvit",
    "BEiT": "beit",
    "UnifiedBertEncoder": "perceiver",
    "ConvNextHFWrapper": "convnext",
}
_PYRAMIDS = ("PIIPTwoBranch", "PIIPThreeBranch", "PIIPFourBranch")

# Settings of the official classes that the mapping below reads, or that change neither weights nor results.
_BRANCH_KEYS = {
    *("type", "real_size", "pretrain_img_size", "patch_size", "pretrain_patch_size", "depth", "embed_dim"),
    *("num_heads", "mlp_ratio", "qkv_bias", "drop_path_rate", "init_scale", "init_values", "with_fpn"),
    *("interaction_indexes", "pretrained", "window_attn", "window_size", "use_flash_attn", "with_cp"),
    *("qk_normalization", "layerscale_force_fp32", "norm_layer_type", "mlp_type", "Mlp_block", "out_indices"),
    *("output_dtype", "use_abs_pos_emb", "use_rel_pos_bias", "downsample_ratios", "with_simple_fpn", "single_branch"),
    "img_size",
}
_BACKBONE_KEYS = {
    *("type", "n_points", "deform_num_heads", "cffn_ratio", "deform_ratio", "with_cffn", "interact_attn_type"),
    *("interaction_drop_path_rate", "interaction_proj", "norm_layer", "is_dino", "with_simple_fpn"),
    *("out_interaction_indexes", "branch1", "branch2", "branch3", "branch4"),
}


def our_settings(official: Mapping[str, Any], path: Path, unmapped: list[str]) -> dict[str, Any]:
    """The settings of an official config by our keys; what has no counterpart is added to unmapped.

    path: the file they were read from. Raises ConfigError where they are those of no PIIP detector or UperNet.
    """
    try:
        model = official["model"]
        segments = model["type"] == "EncoderDecoder"
        backbone = with_crop_grids(model["backbone"]) if segments else model["backbone"]
        transforms = segmentation_transforms if segments else _transforms
        train, val = (transforms(official["data"][part]["pipeline"], unmapped) for part in ("train", "val"))
        normalize = next(step for step in _steps(official["data"]["val"]["pipeline"]) if step["type"] == "Normalize")
        finest = train.get("crop") or max(size[0] for size in train["resize"])
        settings: dict[str, Any] = {
            "model": {
                "backbone": backbone_settings(backbone, unmapped, finest),
                "neck": {"type": "none"} if segments else _neck(model["neck"], unmapped),
                "head": upernet_settings(model, unmapped) if segments else _head(model),
                "mean": list(normalize["mean"]),
                "std": list(normalize["std"]),
            },
            "data": {"train_transforms": train, "val_transforms": val},
            "optim": _optimizer(official, unmapped),
            "schedule": _schedule(official, unmapped),
        }
    except (KeyError, TypeError, AttributeError, IndexError, StopIteration, ValueError) as error:
        raise ConfigError(f"{path} is not the config of an official PIIP detector or UperNet: {error!r}") from None
    batch = re.search(r"_bs(\d+)", path.stem)
    if batch:  # the files give images per GPU; images per step stand in their names only
        settings["data"]["batch_size"] = int(batch[1])
    return settings


def backbone_settings(
    backbone: Mapping[str, Any], unmapped: list[str], resolution: int | None = None
) -> dict[str, Any]:
    """The backbone by our keys; resolution: of a single branch, in pixels, where its settings do not say."""
    kind = backbone["type"]
    if kind not in _PYRAMIDS:
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
        _branch(backbone[name], _class_of(backbone[name]["pretrained"]), f"model.backbone.{name}", unmapped)
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


def _class_of(pretrained: str) -> str:
    """As the official code chooses the class of a branch."""
    return next((name for name in ("deit", "beit", "perceiver", "convnext") if name in pretrained), "internvit")


def _branch(branch: Mapping[str, Any], kind: str, where: str, unmapped: list[str]) -> dict[str, Any]:
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
        "norm_eps": 1e-5 if kind == "perceiver" else 1e-6,
        "activation": "gelu_tanh" if "fused_mlp" in (branch.get("mlp_type"), branch.get("Mlp_block")) else "gelu",
        "qkv_bias": "qv" if kind == "beit" else "all" if branch.get("qkv_bias", not internvit) else "none",
        "qk_norm": branch.get("qk_normalization", internvit),
        "position": "relative" if kind == "beit" else "absolute",
        "embed_norm": kind == "perceiver",
        "frame_embed": kind == "perceiver",
        "drop_path": drop_path,
        "drop_path_schedule": "constant" if kind == "deit" else "linear",
        "checkpoint_activations": branch.get("with_cp", internvit),
        "init": file,
    }
    if kind == "perceiver":
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


def _neck(neck: Mapping[str, Any], unmapped: list[str]) -> dict[str, Any]:
    kinds = {"FPN": "fpn", "ChannelMapper": "channel_mapper"}
    known = {"type", "in_channels", "out_channels", "num_outs", "kernel_size", "act_cfg", "norm_cfg"}
    unmapped += [f"model.neck.{key}" for key in neck if key not in known]
    return {"type": kinds[neck["type"]], "out_channels": neck["out_channels"], "levels": neck["num_outs"]}


def _head(model: Mapping[str, Any]) -> dict[str, Any]:
    test = model["test_cfg"]
    if model["type"] == "DINO":
        head = model["bbox_head"]
        transformer, noise = head["transformer"], head["dn_cfg"]["noise_scale"]
        encoder = transformer["encoder"]
        return {
            "type": "dino",
            "num_classes": head["num_classes"],
            "num_queries": head["num_query"],
            "encoder_layers": encoder["num_layers"],
            "decoder_layers": transformer["decoder"]["num_layers"],
            "ffn_dim": encoder["transformerlayers"]["feedforward_channels"],
            "denoising_queries": head["dn_cfg"]["group_cfg"]["num_dn_queries"],
            "label_noise": noise["label"],
            "box_noise": noise["box"],
            "max_detections": test["max_per_img"],
        }
    if model["type"] != "MaskRCNN":
        raise ValueError(f"detector {model['type']}")
    rpn, roi, train = model["rpn_head"], model["roi_head"], model["train_cfg"]
    box, mask, anchors = roi["bbox_head"], roi["mask_head"], rpn["anchor_generator"]
    return {
        "type": "mask_rcnn",
        "num_classes": box["num_classes"],
        "anchor_scale": anchors["scales"][0],
        "anchor_ratios": list(anchors["ratios"]),
        "rpn_batch": train["rpn"]["sampler"]["num"],
        "rpn_pre_nms_train": train["rpn_proposal"]["nms_pre"],
        "rpn_pre_nms_test": test["rpn"]["nms_pre"],
        "rpn_proposals": test["rpn"]["max_per_img"],
        "rpn_nms": test["rpn"]["nms"]["iou_threshold"],
        "roi_batch": train["rcnn"]["sampler"]["num"],
        "fc_channels": box["fc_out_channels"],
        "mask_channels": mask["conv_out_channels"],
        "mask_convs": mask["num_convs"],
        "score_threshold": test["rcnn"]["score_thr"],
        "nms": test["rcnn"]["nms"]["iou_threshold"],
        "max_detections": test["rcnn"]["max_per_img"],
    }


def _steps(pipeline: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """The transforms in order, those of test-time augmentation unfolded with its image scale."""
    steps: list[Mapping[str, Any]] = []
    for step in pipeline:
        if step["type"] == "MultiScaleFlipAug":
            scale = {"img_scale": step["img_scale"]}
            steps += [inner | scale if inner["type"] == "Resize" else inner for inner in step["transforms"]]
        else:
            steps.append(step)
    return steps


def _transforms(pipeline: Sequence[Mapping[str, Any]], unmapped: list[str]) -> dict[str, Any]:
    ignored = {"LoadImageFromFile", "LoadAnnotations", "Normalize", "DefaultFormatBundle", "ImageToTensor", "Collect"}
    result: dict[str, Any] = {}
    for step in _steps(pipeline):
        kind = step["type"]
        if kind == "Resize":
            result["resize"] = _scales(step["img_scale"])
        elif kind == "RandomFlip":
            result |= {"flip": step["flip_ratio"]} if step.get("flip_ratio") else {}
        elif kind == "RandomCrop":
            result["crop"] = max(step["crop_size"])
        elif kind == "Pad":
            result["pad_divisor"] = step["size_divisor"]
        elif kind == "AutoAugment":
            plain, zoomed = step["policies"]
            first, crop, second = zoomed
            result["resize"] = _scales(plain[0]["img_scale"])
            result["zoom"] = {
                "probability": 0.5,
                "resize": _scales(first["img_scale"]),
                "crop": list(crop["crop_size"]),
            }
            if _scales(second["img_scale"]) != result["resize"]:
                unmapped.append("AutoAugment: another resize after the crop")
        elif kind not in ignored:
            unmapped.append(f"data pipeline: {kind}")
    return result


def _scales(scale: Any) -> list[list[int]]:
    """One (long, short) pair or a list of pairs, in any order -> [[long, short], ...]."""
    pairs = scale if isinstance(scale[0], list | tuple) else [scale]
    return [sorted(pair, reverse=True) for pair in pairs]


def _optimizer(official: Mapping[str, Any], unmapped: list[str]) -> dict[str, Any]:
    optimizer = official["optimizer"]
    if optimizer["type"] != "AdamW":
        unmapped.append(f"optimizer.type {optimizer['type']}")
    # As it is run: mmcv's hook leaves clipping to DeepSpeed, whose files that these configs name do not clip.
    clips = "deepspeed_config" not in official
    clip = (official.get("optimizer_config") or {}).get("grad_clip") if clips else None
    return {
        "lr": optimizer["lr"],
        "weight_decay": optimizer["weight_decay"],
        "betas": list(optimizer.get("betas", (0.9, 0.999))),
        # Plain AdamW, without the official constructor of groups, decays everything.
        "decay_all": "constructor" not in optimizer,
        "layer_decay": (optimizer.get("paramwise_cfg") or {}).get("layer_decay_rate", 1.0),
        "clip_grad_norm": clip["max_norm"] if clip else None,
    }


def _schedule(official: Mapping[str, Any], unmapped: list[str]) -> dict[str, Any]:
    rate, runner = official["lr_config"], official["runner"]
    if rate["policy"] not in ("step", "poly") or rate.get("warmup") != "linear":
        unmapped.append("lr_config: only steps and polynomials after a linear warm-up are known")
    settings = {
        "epochs": runner.get("max_epochs"),
        "iterations": runner.get("max_iters"),
        "policy": rate["policy"],
        "warmup_iterations": rate.get("warmup_iters", 0),
        "warmup_ratio": rate.get("warmup_ratio", 0.001),
    }
    if rate["policy"] == "poly":
        ratio = rate.get("min_lr", 0.0) / official["optimizer"]["lr"]
        return settings | {"power": rate.get("power", 1.0), "min_lr_ratio": ratio}
    return settings | {"milestones": list(rate["step"])}
