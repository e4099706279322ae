"""The optimizer and the schedule of the official detection and segmentation configs, by our keys."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def optimizer_settings(official: Mapping[str, Any], unmapped: list[str]) -> dict[str, Any]:
    """AdamW and its groups; what has no counterpart is added to unmapped."""
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


def schedule_settings(official: Mapping[str, Any], unmapped: list[str]) -> dict[str, Any]:
    """The length of the run and the learning rate over it; what has no counterpart is added to unmapped."""
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
