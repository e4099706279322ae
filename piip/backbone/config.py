"""The settings of the pyramid network: its branches, and the interactions between neighbours."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field, model_validator

from piip.branches.config import BranchConfig
from piip.config.strict import Strict


class InteractionConfig(Strict):
    """Cross-branch interaction (paper section 3.2): attention both ways between neighbours, then an FFN."""

    attention: Literal["deformable", "dense"] = "deformable"
    num_heads: int = Field(16, gt=0)
    points: int = Field(4, gt=0)
    value_ratio: float = Field(0.5, gt=0, description="width of the attention values as a share of the query width")
    ffn_ratio: float = Field(
        0.25, ge=0, description="hidden width of the FFN as a share of the query width; 0 for none"
    )
    projection: bool = Field(True, description="project the other branch's tokens to this branch's width first")
    norm: Literal["layer", "none"] = "layer"
    drop_path: float = Field(0.4, ge=0, lt=1)
    mixed_precision: bool = Field(
        True, description="false: under bf16 the linear layers of deformable attention stay in float32, as released"
    )


class BackboneConfig(Strict):
    """N branches, finest resolution first, and the interactions between neighbours."""

    in_pixels: ClassVar = ("resolutions",)
    every_branch: dict[str, Any] = Field(
        {}, description="settings of every branch, which each may override; empty once they are filled in"
    )
    branches: tuple[BranchConfig, ...] = Field(min_length=1, examples=[[{"size": "S"}, {"size": "B"}]])
    resolutions: tuple[Annotated[int, Field(gt=0)], ...] = Field(
        description="per branch the longer side of the image it sees, in pixels, as in the tables; of these only the "
        "ratios count, since the transforms resize what the finest branch sees",
        examples=[[1568, 1120, 672]],
    )
    interactions: int | tuple[tuple[int, ...], ...] = Field(
        12,
        description="how many, spaced evenly over every branch; or per branch the block each interaction follows",
        examples=[[[2, 5, 8, 11], [5, 11, 17, 23]]],
    )
    interaction: InteractionConfig = InteractionConfig()
    outputs: tuple[Annotated[int, Field(ge=0)], ...] = Field(
        (),
        max_length=3,
        examples=[[0, 1, 10]],
        description="three interactions whose merged maps are the first levels of the feature pyramid, before that of "
        "the last interaction, as in the rows with ConvNeXt; none: all levels are scaled from one map",
    )
    finest_level: bool = Field(
        True, description="false leaves out the 4x upsampled level of the feature pyramid, as for DINO"
    )
    merge: bool | Literal["linear"] = Field(
        True,
        description="linear: with linear layers instead of 3 x 3 convolutions; false returns the maps of the branches "
        "as they are, as for classification",
    )
    merge_width: int | None = Field(
        None, gt=0, multiple_of=32, description="channels of the merged maps; null: those of the last branch"
    )

    @model_validator(mode="before")
    @classmethod
    def _fill_branches(cls, data: Any) -> Any:
        if not isinstance(data, dict) or not isinstance(shared := data.get("every_branch"), dict) or not shared:
            return data
        branches = data.get("branches")
        if not isinstance(branches, list | tuple):
            return data
        if len(shared) > sum(len(member.model_fields) for member in BranchConfig.known().values()):
            raise ValueError(f"every_branch has {len(shared)} settings, more than there are")
        filled = [shared | branch if isinstance(branch, dict) else branch for branch in branches]
        return data | {"branches": filled, "every_branch": {}}

    @model_validator(mode="after")
    def _finest_first(self) -> BackboneConfig:
        text = "/".join(map(str, self.resolutions))
        if len(self.resolutions) != len(self.branches):
            raise ValueError(f"{len(self.branches)} branches need as many resolutions, got {text}")
        if sorted(self.resolutions, reverse=True) != list(self.resolutions):
            raise ValueError(f"resolutions: branches are listed finest resolution first, got {text}")
        if self.outputs and not self.merge:
            raise ValueError("outputs name what is merged: leave them out with merge: false")
        if self.merge_width and (not self.merge or len(self.branches) == 1):
            raise ValueError("merge_width is of merged branches: leave it out with merge: false and a single branch")
        if self.outputs and (len(self.outputs) != 3 or list(self.outputs) != sorted(set(self.outputs))):
            raise ValueError(f"outputs: name three interactions in rising order, got {list(self.outputs)}")
        return self

    @property
    def branch_names(self) -> list[str]:
        """'T 1568' and so on: label and resolution of each branch."""
        return [f"{branch.label} {size}" for branch, size in zip(self.branches, self.resolutions)]
