"""What the network is made of: branches, interactions, neck and head."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field, Tag, model_validator

from piip.config.base import Strict, type_or
from piip.config.timm_vit import vit_settings

# Widths of the DeiT family (Touvron et al., 2021 and 2022), of ViT-H and of InternViT-6B, by their letters in rows.
VIT_SIZES = {
    "T": {"embed_dim": 192, "depth": 12, "num_heads": 3},
    "S": {"embed_dim": 384, "depth": 12, "num_heads": 6},
    "B": {"embed_dim": 768, "depth": 12, "num_heads": 12},
    "L": {"embed_dim": 1024, "depth": 24, "num_heads": 16},
    "H": {"embed_dim": 1280, "depth": 32, "num_heads": 16},
    "6B": {"embed_dim": 3200, "depth": 48, "num_heads": 25},
}


class ViTConfig(Strict):
    """One plain vision transformer branch.

    `size` fills embed_dim, depth and num_heads, and `model` all that the architecture says; each may be overridden, but
    for the widths and heads of a model.

    The defaults are DeiT III's; the options below mlp_ratio turn it into its relatives.
    """

    type: Literal["vit"] = "vit"
    size: Literal["T", "S", "B", "L", "H", "6B"] | None = None
    model: str | None = Field(None, description="timm's name of a plain ViT, whose architecture fills the settings")
    embed_dim: int = Field(gt=0)
    depth: int = Field(gt=0)
    num_heads: int = Field(gt=0)
    mlp_ratio: float = Field(4.0, gt=0)
    patch_size: int = Field(16, gt=0)
    pretrain_size: int = Field(224, gt=0, description="image side the position embedding was learned at, in pixels")
    window_size: int = Field(0, ge=0, description="side of the attention windows in tokens; 0 is global attention")
    global_blocks: tuple[int, ...] = Field(
        (), description="blocks that attend globally although window_size is set", examples=[[2, 5, 8, 11]]
    )
    layer_scale: float | None = Field(1.0, description="initial value of the residual gains; null for none")
    norm: Literal["layer", "rms"] = "layer"
    norm_eps: float = Field(1e-6, gt=0)
    activation: Literal["gelu", "gelu_tanh"] = Field("gelu", description="gelu_tanh: the approximation of fused MLPs")
    qkv_bias: Literal["all", "qv", "none"] = Field("all", description="qv: none for the keys, as in BEiT")
    qk_norm: bool = Field(False, description="normalise queries and keys over the whole width, as InternViT-6B does")
    position: Literal["absolute", "relative"] = Field(
        "absolute", description="relative: a learned bias inside each attention window, as in BEiT"
    )
    embed_norm: bool = Field(False, description="normalise the embedded patches, as Uni-Perceiver does")
    frame_embed: bool = Field(
        False, description="add one learned vector to all patches: Uni-Perceiver's embedding of a video's first frame"
    )
    class_token: bool = Field(False, description="carry a class token beside the patches, as classification does")
    drop_path: float = Field(0.0, ge=0, lt=1)
    drop_path_schedule: Literal["constant", "linear"] = Field(
        "constant", description="linear: rising from 0 in the first block to drop_path in the last"
    )
    checkpoint_activations: bool = False
    init: str | None = Field(None, description="file or timm name of pretrained weights")

    @model_validator(mode="before")
    @classmethod
    def _fill_from_size(cls, data: Any) -> Any:
        if not isinstance(data, dict):
            return data
        if isinstance(size := data.get("size"), str) and size in VIT_SIZES:
            data = VIT_SIZES[size] | data
        if isinstance(name := data.get("model"), str):
            known = vit_settings(name)
            for key in ("embed_dim", "num_heads", "mlp_ratio"):
                if data.get(key, known[key]) != known[key]:
                    raise ValueError(
                        f"{key} {data[key]} contradicts model '{name}', whose is {known[key]}; leave one out"
                    )
            data = known | data
        return data

    @model_validator(mode="after")
    def _check(self) -> ViTConfig:
        if self.embed_dim % self.num_heads:
            raise ValueError(f"embed_dim {self.embed_dim} is not divisible by num_heads {self.num_heads}")
        if self.position == "relative" and (not self.window_size or self.global_blocks):
            raise ValueError("a relative position bias needs attention windows: set window_size, and no global_blocks")
        if self.class_token and self.window_size:
            raise ValueError("a class token needs global attention in every block: set window_size to 0")
        return self


class ConvNeXtConfig(Strict):
    """One ConvNeXt branch (Liu et al., 2022), built by timm. Every stage layer and downsampling layer is a block."""

    type: Literal["convnext"] = "convnext"
    model: str = Field(description="timm's name of the architecture, such as convnext_tiny")
    drop_path: float = Field(0.0, ge=0, lt=1, description="rises linearly over the depth, from 0")
    checkpoint_activations: bool = False
    init: str | None = Field(None, description="file or timm name of pretrained weights")


BranchConfig = Annotated[Annotated[ViTConfig, Tag("vit")] | Annotated[ConvNeXtConfig, Tag("convnext")], type_or("vit")]


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
        description="three interactions whose merged maps are the first levels of the pyramid, before that of the last "
        "interaction, as in the rows with ConvNeXt; none: all levels are scaled from one map",
    )
    finest_level: bool = Field(True, description="false leaves out the pyramid's 4x upsampled level, as for DINO")
    merge: bool = Field(True, description="false returns the maps of the branches as they are, as for classification")

    @model_validator(mode="before")
    @classmethod
    def _fill_branches(cls, data: Any) -> Any:
        if not isinstance(data, dict) or not isinstance(shared := data.get("every_branch"), dict) or not shared:
            return data
        branches = data.get("branches")
        if not isinstance(branches, list | tuple):
            return data
        if len(shared) > len(ViTConfig.model_fields) + len(ConvNeXtConfig.model_fields):
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
        if self.outputs and (len(self.outputs) != 3 or list(self.outputs) != sorted(set(self.outputs))):
            raise ValueError(f"outputs: name three interactions in rising order, got {list(self.outputs)}")
        return self


class FPNConfig(Strict):
    """Feature pyramid network (Lin et al., 2017); extra levels are max-pooled from the last."""

    type: Literal["fpn"] = "fpn"
    out_channels: int = Field(256, gt=0)
    levels: int = Field(5, gt=0)


class ChannelMapperConfig(Strict):
    """A convolution and group norm per map, to one width; extra levels halve the resolution of the one before."""

    type: Literal["channel_mapper"] = "channel_mapper"
    out_channels: int = Field(256, gt=0, multiple_of=32)
    levels: int = Field(4, gt=0)


class NoNeckConfig(Strict):
    """The maps of the backbone go to the head as they are."""

    type: Literal["none"] = "none"


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


class DINOConfig(Strict):
    """DINO (Zhang et al., 2023) with the settings of the released configs as defaults; on a `channel_mapper` neck."""

    type: Literal["dino"] = "dino"
    num_classes: int = Field(80, gt=0)
    num_queries: int = Field(900, gt=0, description="cells of the encoder that become queries")
    encoder_layers: int = Field(6, ge=0)
    decoder_layers: int = Field(6, gt=0)
    num_heads: int = Field(8, gt=0)
    points: int = Field(4, gt=0, description="places a head looks at in every map")
    ffn_dim: int = Field(2048, gt=0)
    denoising_queries: int = Field(100, gt=0, description="disturbed objects to restore per image, in whole groups")
    label_noise: float = Field(0.5, ge=0, le=2, description="twice the share of their labels that are drawn anew")
    box_noise: float = Field(1.0, ge=0, description="most their sides move, in half widths and heights")
    max_detections: int = Field(300, gt=0)
    mixed_precision: bool = Field(
        True, description="false: under bf16 all of the head stays in float32, as released, at a higher cost"
    )
    checkpoint_activations: bool = Field(
        False, description="encoder layers keep only their input for the backward pass and compute again"
    )


class UperNetConfig(Strict):
    """UperNet (Xiao et al., 2018) and an auxiliary FCN, with the settings of the released configs as defaults."""

    in_pixels: ClassVar = ("window", "stride")
    type: Literal["upernet"] = "upernet"
    num_classes: int = Field(150, gt=0)
    channels: int = Field(1536, gt=0)
    pool_scales: tuple[int, ...] = Field((1, 2, 3, 6), description="cells a side of the pooled maps of the last level")
    dropout: float = Field(0.1, ge=0, lt=1)
    auxiliary_level: int | None = Field(2, ge=0, description="map that a second, simple head works on; null for none")
    auxiliary_weight: float = Field(0.4, ge=0, description="weight of the second head's loss")
    window: int | None = Field(
        512, gt=0, description="evaluation slides a window of this side in pixels over the image; null: the whole image"
    )
    stride: int = Field(341, gt=0, description="step between windows in pixels")
    test_scales: tuple[float, ...] = Field(
        (1.0,), min_length=1, description="evaluation averages over the image at these scales"
    )
    test_flip: bool = Field(False, description="evaluation averages over the image and its mirror image")

    @model_validator(mode="after")
    def _no_gaps(self) -> UperNetConfig:
        if self.window is not None and self.stride > self.window:
            raise ValueError(f"stride {self.stride} leaves gaps between windows of {self.window} pixels")
        return self


class ClassifierConfig(Strict):
    """A norm and a linear classifier a branch, whose logits are averaged; on a backbone without merge."""

    type: Literal["classifier"] = "classifier"
    num_classes: int = Field(1000, gt=0)
    token: Literal["first_patch", "class", "mean"] = Field(
        "first_patch",
        description="what is classified: the top-left patch (as the released checkpoints do), the class token, or the "
        "mean over the patches",
    )
    norm_eps: float = Field(1e-6, gt=0)


NeckConfig = Annotated[
    Annotated[FPNConfig, Tag("fpn")]
    | Annotated[ChannelMapperConfig, Tag("channel_mapper")]
    | Annotated[NoNeckConfig, Tag("none")],
    type_or("fpn"),
]
HeadConfig = Annotated[
    Annotated[MaskRCNNConfig, Tag("mask_rcnn")]
    | Annotated[DINOConfig, Tag("dino")]
    | Annotated[UperNetConfig, Tag("upernet")]
    | Annotated[ClassifierConfig, Tag("classifier")],
    type_or("mask_rcnn"),
]


class ModelConfig(Strict):
    backbone: BackboneConfig
    neck: NeckConfig = FPNConfig()
    head: HeadConfig = MaskRCNNConfig()
    mean: tuple[float, float, float] = Field(
        (127.5, 127.5, 127.5), description="RGB mean in 0..255, subtracted from the image"
    )
    std: tuple[float, float, float] = Field((127.5, 127.5, 127.5), description="RGB standard deviation in 0..255")

    @model_validator(mode="after")
    def _fitting_head(self) -> ModelConfig:
        classifies = isinstance(self.head, ClassifierConfig)
        if classifies and (self.backbone.merge or self.neck.type != "none"):
            raise ValueError(
                "a classifier reads the maps of the branches: set backbone.merge: false and neck: {type: none}"
            )
        if not classifies and not self.backbone.merge:
            raise ValueError(
                f"backbone.merge: false is for head: {{type: classifier}}; {self.head.type} needs the merged maps"
            )
        if isinstance(self.head, ClassifierConfig) and self.head.token == "class":
            without = [i for i, b in enumerate(self.backbone.branches) if not getattr(b, "class_token", False)]
            if without:
                raise ValueError(
                    f"head.token: class needs a class token in every branch: set class_token: true in branch "
                    f"{without[0]}, or take head.token: mean"
                )
        return self
