"""The ConvNeXt branch (Liu et al., 2022, "A ConvNet for the 2020s"), in timm's implementation."""

from __future__ import annotations

from collections.abc import Mapping
from typing import cast

import timm
from timm.models.convnext import ConvNeXt as TimmConvNeXt
from timm.models.convnext import ConvNeXtStage
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from piip.branches.base import Branch, Tokens
from piip.branches.convnext.config import ConvNeXtConfig
from piip.branches.convnext.pretrained import NAMES
from piip.errors import ConfigError
from piip.features import FeatureSpec


class ConvNeXt(Branch):
    """A ConvNeXt cut into blocks: every stage layer, and every downsampling layer between stages, is one.

    Parameter names are timm's. Raises ConfigError for a model that is no ConvNeXt of timm.
    """

    def __init__(self, config: ConvNeXtConfig) -> None:
        super().__init__()
        network = None
        if timm.is_model(config.model):
            network = timm.create_model(config.model, drop_path_rate=config.drop_path, num_classes=0)
        if not isinstance(network, TimmConvNeXt):
            raise ConfigError(f"'{config.model}' is no ConvNeXt of timm; give a name such as convnext_tiny")
        self.checkpoint_activations = config.checkpoint_activations
        self.stem = network.stem
        self.stages = network.stages
        self.specs = []
        for info, blocks in zip(network.feature_info, self._blocks(), strict=True):
            self.specs += [FeatureSpec(info["num_chs"], info["reduction"])] * len(blocks)

    def units(self) -> list[nn.Module]:
        """Every stage layer, and before it the downsampling layer that leads to its stage."""
        return [block for stage in self._blocks() for block in stage]

    def embed(self, images: Tensor) -> Tokens:
        """Images (B, 3, H, W) -> (B, H/4, W/4, C) of the first stage."""
        return Tokens(self.stem(images).permute(0, 2, 3, 1))

    def run_blocks(self, x: Tokens, start: int, stop: int) -> Tokens:
        """Applies blocks start to stop - 1 to a feature map (B, H, W, C) -> (B, H', W', C'), see `specs`."""
        y = x.map.permute(0, 3, 1, 2)
        for block in self.units()[start:stop]:
            if self.checkpoint_activations and y.requires_grad:
                y = checkpoint(block, y, use_reentrant=False)
            else:
                y = block(y)
        return Tokens(y.permute(0, 2, 3, 1))

    def fit_pretrained(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """timm's names, transformers' and those of its authors."""
        own = self.state_dict()
        return {key if key in own else NAMES.get(key) or key: tensor for key, tensor in tensors.items()}

    def _blocks(self) -> list[list[nn.Module]]:
        """The blocks of every stage, in order; the first stage has no downsampling layer."""
        return [
            [*([] if isinstance(stage.downsample, nn.Identity) else [stage.downsample]), *stage.blocks]
            for stage in cast("list[ConvNeXtStage]", self.stages)
        ]
