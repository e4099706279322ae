"""The settings of a plain vision transformer branch."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field, model_validator

from piip.branches.config import BranchConfig
from piip.branches.timm_names import timm_network
from piip.branches.vit.timm_settings import vit_settings
from piip.errors import ConfigError

if TYPE_CHECKING:
    from piip.branches.vit.vit import ViT


# Widths of the DeiT family (Touvron et al., 2021 and 2022), of ViT-H and of InternViT-6B, by their letters in rows.
VIT_SIZES = {
    "T": {"embed_dim": 192, "depth": 12, "num_heads": 3},
    "S": {"embed_dim": 384, "depth": 12, "num_heads": 6},
    "B": {"embed_dim": 768, "depth": 12, "num_heads": 12},
    "L": {"embed_dim": 1024, "depth": 24, "num_heads": 16},
    "H": {"embed_dim": 1280, "depth": 32, "num_heads": 16},
    "6B": {"embed_dim": 3200, "depth": 48, "num_heads": 25},
}


class ViTConfig(BranchConfig):
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

    @model_validator(mode="before")
    @classmethod
    def _fill_from_size(cls, data: Any) -> Any:
        if not isinstance(data, dict):
            return data
        if not {"size", "model", "embed_dim"} & data.keys() and data.keys() <= cls.model_fields.keys():
            name = data.get("init")
            example = name if isinstance(name, str) and timm_network(name) is not None else "vit_small_patch16_dinov3"
            raise ValueError(f"which network? give model, a name of timm such as {example}, or size, such as S")
        if isinstance(size := data.get("size"), str) and size in VIT_SIZES:
            data = VIT_SIZES[size] | data
        if isinstance(name := data.get("model"), str):
            known = _known_settings(cls, name)
            for key in ("embed_dim", "num_heads", "mlp_ratio"):
                if data.get(key, known[key]) != known[key]:
                    raise ValueError(
                        f"{key} {data[key]} contradicts model '{name}', whose is {known[key]}; leave one out"
                    )
            data = {key: value for key, value in known.items() if key in cls.model_fields} | data
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

    @classmethod
    def objection(cls, name: str) -> str | None:
        try:
            registers = vit_settings(name)["registers"]
        except ValueError as error:
            return str(error)
        return f"has {registers} registers, which a ViT branch does not carry" if registers else None

    def build(self) -> ViT:
        from piip.branches.vit.vit import ViT

        return ViT(self)

    @property
    def label(self) -> str:
        return str(self.size or self.embed_dim)

    @property
    def has_class_token(self) -> bool:
        return self.class_token


def _known_settings(cls: type[ViTConfig], name: str) -> dict[str, Any]:
    try:
        return vit_settings(name)
    except ValueError:
        try:
            cls.check_model(name)
        except ConfigError as error:
            raise ValueError(str(error)) from None
        raise
