"""The settings of a branch that is a vision transformer of timm."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from pydantic import Field

from piip.branches.config import BranchConfig
from piip.branches.timm_names import timm_network

if TYPE_CHECKING:
    from piip.branches.timm_vit.timm_vit import TimmViT


class TimmViTConfig(BranchConfig):
    """One vision transformer of timm with all its parts, plain or rotary: DINOv3, DINOv2, EVA-02, PE, CLIP, SigLIP."""

    type: Literal["timm_vit"] = "timm_vit"
    model: str = Field(description="timm's name of the architecture, such as vit_small_patch16_dinov3")
    patch_size: int | None = Field(None, gt=0, description="null: the architecture's; weights are resampled to another")
    embed_dim: int | None = Field(None, gt=0, description="null: the architecture's; weights fit no other")
    depth: int | None = Field(None, gt=0, description="null: the architecture's; weights fit no other")
    num_heads: int | None = Field(None, gt=0, description="null: the architecture's; weights fit no other")
    window_size: int = Field(0, ge=0, description="side of the attention windows in tokens; 0 is global attention")
    global_blocks: tuple[int, ...] = Field(
        (), description="blocks that attend globally although window_size is set", examples=[[2, 5, 8, 11]]
    )
    drop_path: float = Field(0.0, ge=0, lt=1, description="rises linearly over the depth, from 0")
    checkpoint_activations: bool = False

    @classmethod
    def objection(cls, name: str) -> str | None:
        from timm.models.eva import Eva
        from timm.models.vision_transformer import VisionTransformer

        fits = type(timm_network(name)) in (VisionTransformer, Eva)
        return None if fits else "is no vision transformer that timm builds of blocks of one width"

    def build(self) -> TimmViT:
        from piip.branches.timm_vit.timm_vit import TimmViT

        return TimmViT(self)

    @property
    def label(self) -> str:
        return self.model.partition(".")[0]

    @property
    def has_class_token(self) -> bool:
        return timm_network(self.model).cls_token is not None
