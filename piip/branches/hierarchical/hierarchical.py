"""A hierarchical network of timm as a branch: whatever is a chain of blocks on maps."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from typing import Any

import timm
import torch
import torch.nn.functional as F
from timm.models.convnext import ConvNeXt
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from piip.branches.base import Branch, Tokens
from piip.branches.hierarchical.chain import find_chain, sizing
from piip.branches.hierarchical.config import ChainConfig
from piip.branches.hierarchical.convnext_names import NAMES
from piip.branches.timm_names import timm_network
from piip.errors import ConfigError


class Hierarchical(Branch):
    """timm's network without what follows its blocks; parameter names are timm's.

    Swin networks keep their windows and their shifts on maps of any size, padded, as dense tasks use them.
    """

    def __init__(self, config: ChainConfig) -> None:
        super().__init__()
        config.check_model(config.model)
        chain = find_chain(config.model)
        self.model, self.has_layer_decay = config.model, config.has_layer_decay
        self.settings: dict[str, Any] = {"num_classes": 0, **sizing(config.model)}
        try:
            network = self._network(**{"drop_path_rate": config.drop_path} if config.drop_path else {})
        except TypeError:
            raise ConfigError(f"'{config.model}' has no stochastic depth in timm: set drop_path to 0") from None
        self.checkpoint_activations = config.checkpoint_activations
        self.stem_name, self.stem_last = chain.stem, chain.stem_channels_last
        self.unit_names, self.channels_last = chain.units, chain.channels_last
        self.specs, self.multiple = list(chain.specs), chain.multiple
        used = {name.partition(".")[0] for name in (chain.stem, *chain.units)}
        for name, child in network.named_children():
            if name in used:
                self.add_module(name, child)
        positions = hasattr(network, "pos_embed_window")
        self.pos_embed: nn.Parameter | None = network.pos_embed if positions else None
        self.pos_embed_window: nn.Parameter | None = network.pos_embed_window if positions else None

    def units(self) -> list[nn.Module]:
        """Every layer of a stage, and before it the downsampling layer that leads to its stage."""
        return [self.get_submodule(name) for name in self.unit_names]

    def embed(self, images: Tensor) -> Tokens:
        """Images (B, 3, H, W) -> (B, H/s, W/s, C) of the first stage, s mostly 4.

        Where the network takes certain multiples only, images are first resized to the next ones, which leaves every
        cell at its place in the image.
        """
        x = self.get_submodule(self.stem_name)(resize_to_multiple(images, self.multiple))
        if self.pos_embed is not None and self.pos_embed_window is not None:
            x = _add_positions(x, self.pos_embed, self.pos_embed_window)
        return Tokens(x if self.stem_last else x.permute(0, 2, 3, 1))

    def run_blocks(self, x: Tokens, start: int, stop: int) -> Tokens:
        """Applies blocks start to stop - 1 to a feature map (B, H, W, C) -> (B, H', W', C'), see `specs`."""
        y = x.map
        for unit, (takes_last, gives_last) in list(zip(self.units(), self.channels_last))[start:stop]:
            y = y if takes_last else y.permute(0, 3, 1, 2)
            if self.checkpoint_activations and torch.is_grad_enabled():
                y = checkpoint(unit, y, use_reentrant=False)
            else:
                y = unit(y)
            y = y if gives_last else y.permute(0, 2, 3, 1)
        return Tokens(y)

    def fit_pretrained(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """timm's own reading of published files; of ConvNeXts the names of transformers and of its authors too."""
        own = self.state_dict()
        if isinstance(timm_network(self.model), ConvNeXt):
            return {key if key in own else NAMES.get(key) or key: tensor for key, tensor in tensors.items()}
        read = getattr(sys.modules[type(timm_network(self.model)).__module__], "checkpoint_filter_fn", None)
        if read is None:
            return dict(tensors)
        with torch.device("meta"):
            network = self._network()
        return dict(read(dict(tensors), network))

    def layer_of(self, parameter: str) -> int | None:
        """0 for the stem, i + 1 for block i; None for all of a ConvNeXt."""
        if not self.has_layer_decay:
            return None
        names = (index for index, name in enumerate(self.unit_names, 1) if parameter.startswith(f"{name}."))
        return next(names, 0)

    def _network(self, **settings: Any) -> Any:
        return timm.create_model(self.model.partition(".")[0], **self.settings, **settings)


def resize_to_multiple(images: Tensor, multiple: int) -> Tensor:
    """Images (B, 3, H, W) -> the same with sides that are the next multiples of a number of pixels."""
    size = [-(-side // multiple) * multiple for side in images.shape[2:]]
    if size == list(images.shape[2:]):
        return images
    return F.interpolate(images, size=size, mode="bilinear", align_corners=False)


def _add_positions(x: Tensor, grid: Tensor, window: Tensor) -> Tensor:
    """As SAM 2's Hiera: positions (1, C, h, w) in the whole grid, and those (1, C, m, m) inside a window, on a map.

    x: (B, H, W, C), which comes back with both added.
    """
    height, width = x.shape[1:3]
    tiles = (-(-height // window.shape[2]), -(-width // window.shape[3]))
    positions = F.interpolate(grid, size=(height, width), mode="bicubic") + window.tile(tiles)[:, :, :height, :width]
    return x + positions.permute(0, 2, 3, 1)
