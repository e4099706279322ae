"""Networks of every task with one block a branch, whose deformable attention matters: seconds to export."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import nn

from piip.config.experiment import Config
from piip.config.load import load_config
from piip.load import build_model

NAMES = {
    "mask_rcnn": "detection/mask_rcnn_piip_nano",
    "dino": "detection/dino_piip_nano_shapes",
    "upernet": "segmentation/upernet_piip_nano_shapes",
    "classifier": "classification/piip_nano_shapes",
}
OVERRIDES = ["model.backbone.interactions=1", *(f"model.backbone.branches.{index}.depth=1" for index in range(3))]
FEWER = {"dino": ["model.head.encoder_layers=1", "model.head.decoder_layers=1"]}


@dataclass(frozen=True)
class Small:
    """A config with the words that make it, and a file of weights."""

    config: Config
    words: list[str]
    weights: Path


def small(kind: str, folder: Path) -> Small:
    """The network of a kind; interactions, which start from zero, are turned on."""
    torch.manual_seed(0)
    words = [*OVERRIDES, *FEWER.get(kind, ())]
    config = load_config(NAMES[kind], words)
    model = build_model(config.model)
    for name, parameter in model.named_parameters():
        if "gamma" in name:
            nn.init.constant_(parameter, 0.5)
        elif "sampling_offsets.weight" in name or "attention_weights.weight" in name:
            nn.init.normal_(parameter, std=0.1)
    weights = folder / f"{kind}.safetensors"
    save_file(model.state_dict(), weights)
    return Small(config, [NAMES[kind], *words], weights)
