"""A network as a program: what is exported, and what its file says of itself."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from piip import __version__
from piip.config.experiment import Config
from piip.errors import ConfigError
from piip.heads.base import Exported
from piip.model import Model

INPUT = "images"


@dataclass(frozen=True)
class Form:
    """What an exported program takes and returns.

    size: (h, w) of the images in pixels. batch: how many images it takes; None for any number. pixels: uint8 RGB goes
    in; else float32, normalised. final: see `Head.export`.
    """

    size: tuple[int, int]
    batch: int | None = 1
    pixels: bool = True
    final: bool = False

    def check(self, config: Config) -> None:
        """Raises ConfigError where the network of a config cannot have this form."""
        divisor = config.data.val_transforms.pad_divisor
        if any(side < divisor or side % divisor for side in self.size):
            fitting = "x".join(str(max(1, round(side / divisor)) * divisor) for side in self.size)
            given = "x".join(map(str, self.size))
            raise ConfigError(f"--size {given}: sides must be multiples of {divisor}, as batches have them: {fitting}")
        if self.final and self.batch != 1:
            raise ConfigError("--final is for one image at a time: what is found differs in number between images")

    def example(self, count: int, generator: torch.Generator) -> Tensor:
        """Some images (count, 3, h, w) of coarse coloured noise, as the program takes them."""
        shape = (count, 3, *(max(2, side // 16) for side in self.size))
        pixels = nn.functional.interpolate(
            torch.rand(shape, generator=generator) * 255, size=self.size, mode="bicubic", align_corners=False
        )
        return pixels.clamp(0, 255).round().to(torch.uint8)


class Graph(nn.Module):
    """A model from images to the tensors that its head exports."""

    def __init__(self, model: Model, form: Form) -> None:
        super().__init__()
        self.model, self.form = model, form

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        """(B, 3, h, w), uint8 RGB or normalised float32 -> the outputs."""
        return tuple(self.run(images).tensors.values())

    def run(self, images: Tensor) -> Exported:
        """The same, with names."""
        features = self.model.features(images)
        with torch.autocast(images.device.type, enabled=False):
            return self.model.head.export(features, self.form.size, final=self.form.final)

    def prepare(self, pixels: Tensor) -> Tensor:
        """Images (B, 3, h, w) uint8 RGB as the program takes them."""
        if self.form.pixels:
            return pixels
        mean, std = (torch.tensor(values)[:, None, None] for values in (self.model.config.mean, self.model.config.std))
        return (pixels - mean) / std


def describe(model: Model, config: Config, form: Form) -> dict[str, str]:
    """What a file says of its program: text by key, as ONNX holds it."""
    about: dict[str, Any] = {
        "made_by": f"piip {__version__}",
        "config": config.name,
        "task": config.model.head.task,
        "class_names": model.names,
        "input": "uint8 RGB" if form.pixels else "float32 RGB, (pixels - mean) / std",
        "mean": list(model.config.mean),
        "std": list(model.config.std),
        "final": form.final,
    }
    return {key: value if isinstance(value, str) else json.dumps(value) for key, value in about.items()}
