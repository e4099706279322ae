"""The settings of branches whose stages get coarser and wider."""

from __future__ import annotations

from abc import abstractmethod
from typing import TYPE_CHECKING, Literal

from pydantic import Field

from piip.branches.config import BranchConfig
from piip.branches.timm_names import timm_network

if TYPE_CHECKING:
    from piip.branches.base import Branch


class ChainConfig(BranchConfig):
    """One network of timm that is a chain of blocks on maps; see `piip.branches.hierarchical.chain`.

    Every layer of a stage, and every downsampling layer between stages, is a block.
    """

    model: str = Field(description="timm's name of the architecture, such as swin_tiny_patch4_window7_224")
    drop_path: float = Field(0.0, ge=0, lt=1, description="rises linearly over the depth, from 0")
    checkpoint_activations: bool = False

    @classmethod
    def objection(cls, name: str) -> str | None:
        from piip.branches.hierarchical.chain import find_chain

        if timm_network(name) is None:
            return "is no network of timm"
        try:
            find_chain(name)
        except ValueError as error:
            return str(error)
        return None

    @property
    @abstractmethod
    def has_layer_decay(self) -> bool:
        """Whether its learning rates follow the layers where the optimizer decays them by layer."""

    def build(self) -> Branch:
        from piip.branches.hierarchical.hierarchical import Hierarchical

        return Hierarchical(self)

    @property
    def label(self) -> str:
        return self.model


class HierarchicalConfig(ChainConfig):
    """One hierarchical network of timm, such as Swin, Hiera, SAM 2's Hiera, DaViT, FocalNet or MambaOut."""

    type: Literal["hierarchical"] = "hierarchical"

    @classmethod
    def objection(cls, name: str) -> str | None:
        return None if _is_hiera(name) else super().objection(name)

    def build(self) -> Branch:
        from piip.branches.hierarchical.hiera import Hiera

        return Hiera(self) if _is_hiera(self.model) else super().build()

    @property
    def has_layer_decay(self) -> bool:
        return True


class ConvNeXtConfig(ChainConfig):
    """One ConvNeXt (Liu et al., 2022; Woo et al., 2023), which trains at the full rate in all layers, as released."""

    type: Literal["convnext"] = "convnext"
    model: str = Field(description="timm's name of the architecture, such as convnext_tiny")

    @classmethod
    def objection(cls, name: str) -> str | None:
        from timm.models.convnext import ConvNeXt

        return None if isinstance(timm_network(name), ConvNeXt) else "is no ConvNeXt of timm"

    @property
    def has_layer_decay(self) -> bool:
        return False


def _is_hiera(name: str) -> bool:
    from timm.models.hiera import Hiera

    return isinstance(timm_network(name), Hiera)
