"""The settings of a ConvNeXt branch."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from pydantic import Field

from piip.branches.config import BranchConfig

if TYPE_CHECKING:
    from piip.branches.convnext.convnext import ConvNeXt


class ConvNeXtConfig(BranchConfig):
    """One ConvNeXt branch (Liu et al., 2022), built by timm. Every stage layer and downsampling layer is a block."""

    type: Literal["convnext"] = "convnext"
    model: str = Field(description="timm's name of the architecture, such as convnext_tiny")
    drop_path: float = Field(0.0, ge=0, lt=1, description="rises linearly over the depth, from 0")
    checkpoint_activations: bool = False

    def build(self) -> ConvNeXt:
        from piip.branches.convnext.convnext import ConvNeXt

        return ConvNeXt(self)

    @property
    def label(self) -> str:
        return self.model
