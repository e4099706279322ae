"""What the network is made of: branches, interactions, neck and head."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from piip.config.base import Strict

# Widths of the DeiT family (Touvron et al., 2021 and 2022), by the letter used in branch lists.
VIT_SIZES = {
    "T": {"embed_dim": 192, "depth": 12, "num_heads": 3},
    "S": {"embed_dim": 384, "depth": 12, "num_heads": 6},
    "B": {"embed_dim": 768, "depth": 12, "num_heads": 12},
    "L": {"embed_dim": 1024, "depth": 24, "num_heads": 16},
}


class ViTConfig(Strict):
    """One plain vision transformer branch. `size` fills embed_dim, depth and num_heads; each may be overridden."""

    type: Literal["vit"] = "vit"
    size: Literal["T", "S", "B", "L"] | None = None
    embed_dim: int = Field(gt=0)
    depth: int = Field(gt=0)
    num_heads: int = Field(gt=0)
    mlp_ratio: float = Field(4.0, gt=0)
    patch_size: int = Field(16, gt=0)
    pretrain_size: int = Field(224, gt=0, description="image side the position embedding was learned at, in pixels")
    window_size: int = Field(0, ge=0, description="side of the attention windows in tokens; 0 is global attention")
    global_blocks: tuple[int, ...] = Field((), description="blocks that attend globally although window_size is set")
    layer_scale: float | None = Field(1.0, description="initial value of the residual gains; null for none")
    drop_path: float = Field(0.0, ge=0, lt=1)
    drop_path_schedule: Literal["constant", "linear"] = "constant"
    checkpoint_activations: bool = False
    init: str | None = Field(None, description="file or timm name of pretrained weights")

    @model_validator(mode="before")
    @classmethod
    def _fill_from_size(cls, data: Any) -> Any:
        if isinstance(data, dict) and data.get("size") in VIT_SIZES:
            return VIT_SIZES[data["size"]] | data
        return data

    @model_validator(mode="after")
    def _check(self) -> ViTConfig:
        if self.embed_dim % self.num_heads:
            raise ValueError(f"embed_dim {self.embed_dim} is not divisible by num_heads {self.num_heads}")
        return self


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


class BackboneConfig(Strict):
    """N branches, finest resolution first, and the interactions between neighbours."""

    branches: tuple[ViTConfig, ...] = Field(min_length=1)
    resolutions: tuple[Annotated[int, Field(gt=0)], ...] = Field(
        description="per branch the longer side of the image it sees, in pixels, as in the tables"
    )
    interactions: int | tuple[tuple[int, ...], ...] = Field(
        12, description="how many, spaced evenly over every branch; or per branch the block each interaction follows"
    )
    interaction: InteractionConfig = InteractionConfig()

    @model_validator(mode="after")
    def _finest_first(self) -> BackboneConfig:
        text = "/".join(map(str, self.resolutions))
        if len(self.resolutions) != len(self.branches):
            raise ValueError(f"{len(self.branches)} branches need as many resolutions, got {text}")
        if sorted(self.resolutions, reverse=True) != list(self.resolutions):
            raise ValueError(f"branches are listed finest resolution first, got {text}")
        return self


class FPNConfig(Strict):
    """Feature pyramid network (Lin et al., 2017); extra levels are max-pooled from the last."""

    type: Literal["fpn"] = "fpn"
    out_channels: int = Field(256, gt=0)
    levels: int = Field(5, gt=0)


class MaskRCNNConfig(Strict):
    """Mask R-CNN (He et al., 2017) with the settings of the released configs as defaults."""

    type: Literal["mask_rcnn"] = "mask_rcnn"
    num_classes: int = Field(80, gt=0)
    anchor_scale: float = Field(8.0, gt=0, description="anchor side at stride s is anchor_scale * s pixels")
    anchor_ratios: tuple[float, ...] = (0.5, 1.0, 2.0)
    rpn_batch: int = Field(256, gt=0, description="anchors sampled per image for the RPN losses")
    rpn_pre_nms_train: int = Field(2000, gt=0)
    rpn_pre_nms_test: int = Field(1000, gt=0)
    rpn_proposals: int = Field(1000, gt=0)
    rpn_nms: float = Field(0.7, gt=0, le=1)
    roi_batch: int = Field(512, gt=0, description="proposals sampled per image for the box losses")
    fc_channels: int = Field(1024, gt=0)
    mask_channels: int = Field(256, gt=0)
    mask_convs: int = Field(4, ge=0)
    score_threshold: float = Field(0.05, ge=0, lt=1)
    nms: float = Field(0.5, gt=0, le=1)
    max_detections: int = Field(100, gt=0)


class ModelConfig(Strict):
    backbone: BackboneConfig
    neck: FPNConfig = FPNConfig()
    head: MaskRCNNConfig = MaskRCNNConfig()
    mean: tuple[float, float, float] = Field(
        (127.5, 127.5, 127.5), description="RGB mean in 0..255, subtracted from the image"
    )
    std: tuple[float, float, float] = Field((127.5, 127.5, 127.5), description="RGB standard deviation in 0..255")
