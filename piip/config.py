"""Experiments as data: typed, strict models, and the YAML files they are read from.

A config is YAML read with a safe loader. `base:` names a file to inherit from, relative to the file that says so; mappings
merge key by key, everything else replaces. `key.sub=value` overrides come last, with the value read as YAML and list items
addressed by number (`model.backbone.branches.0.drop_path=0.1`). An unknown key or a wrong value is a `ConfigError` that
names the file, the key and the nearest valid one.
"""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator
from pydantic_core import PydanticCustomError

from piip.errors import ConfigError

# In an installed wheel the configs lie inside the package; in a checkout they lie beside it.
_CONFIG_DIRS = (Path(__file__).parent / "configs", Path(__file__).parent.parent / "configs")


class Strict(BaseModel):
    """Base of every config model: immutable, and an unknown key is an error with a suggestion."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    @model_validator(mode="before")
    @classmethod
    def _reject_unknown_keys(cls, data: Any) -> Any:
        if isinstance(data, dict):
            for key in data:
                if key not in cls.model_fields:
                    near = difflib.get_close_matches(str(key), cls.model_fields, n=1, cutoff=0.5)
                    hint = f"did you mean '{near[0]}'?" if near else f"valid keys: {', '.join(cls.model_fields)}"
                    raise PydanticCustomError("unknown_key", "unknown key '{key}'; {hint}", {"key": str(key), "hint": hint})
        return data


# --- the network ----------------------------------------------------------------------------------------------------

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
    """Cross-branch interaction (paper section 3.2): attention both ways between neighbours, then a convolutional FFN."""

    attention: Literal["deformable", "dense"] = "deformable"
    num_heads: int = Field(16, gt=0)
    points: int = Field(4, gt=0)
    value_ratio: float = Field(0.5, gt=0, description="width of the attention values as a share of the query width")
    ffn_ratio: float = Field(0.25, ge=0, description="hidden width of the FFN as a share of the query width; 0 for none")
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
    mean: tuple[float, float, float] = Field((127.5, 127.5, 127.5), description="RGB mean in 0..255, subtracted from the image")
    std: tuple[float, float, float] = Field((127.5, 127.5, 127.5), description="RGB standard deviation in 0..255")


# --- the data -------------------------------------------------------------------------------------------------------


class CocoData(Strict):
    """Images and instance annotations in COCO format."""

    type: Literal["coco"] = "coco"
    images: Path
    annotations: Path
    max_image_pixels: int = Field(100_000_000, gt=0, description="larger images are refused from their header")
    keep_empty: bool = Field(False, description="train on images without annotations too, as the released recipe does not")
    min_side: int = Field(32, gt=0, description="training leaves out images with a side shorter than this, in pixels")


class ShapesData(Strict):
    """The generated set of overlapping shapes, written once below `root` as COCO-format JPEG and JSON files."""

    type: Literal["shapes"] = "shapes"
    root: Path = Path("data/shapes")
    split: Literal["train", "val"] = "train"
    images: int = Field(gt=0)
    size: int = Field(256, ge=64, description="side of the square images in pixels")
    seed: int = 0


DatasetConfig = Annotated[CocoData | ShapesData, Field(discriminator="type")]


class TransformConfig(Strict):
    """What happens to an image on its way to the network."""

    resize: tuple[tuple[int, int], ...] = Field(
        min_length=1, description="(long, short) limits in pixels of the keep-ratio resize; training picks one at random"
    )
    flip: float = Field(0.0, ge=0, le=1, description="probability of a horizontal flip")
    pad_divisor: int = Field(32, gt=0, description="the batch is padded with zeros to a multiple of this")


class DataConfig(Strict):
    train: DatasetConfig
    val: DatasetConfig
    train_transforms: TransformConfig
    val_transforms: TransformConfig
    batch_size: int = Field(16, gt=0, description="images per optimizer step, over all processes and accumulation steps")
    eval_batch_size: int = Field(1, gt=0, description="images per process and evaluation step")
    workers: int = Field(2, ge=0, description="loader processes per training process")


# --- the training run -----------------------------------------------------------------------------------------------


class OptimConfig(Strict):
    """AdamW with layer-wise learning-rate decay as released (FACTS of the official optimizer constructor)."""

    lr: float = Field(1e-4, gt=0)
    weight_decay: float = Field(0.05, ge=0)
    betas: tuple[float, float] = (0.9, 0.999)
    layer_decay: float = Field(1.0, gt=0, le=1, description="learning-rate factor per layer from the output downwards")
    clip_grad_norm: float | None = Field(None, gt=0)
    accumulate: int = Field(1, gt=0, description="forward-backward passes per optimizer step")


class ScheduleConfig(Strict):
    """Learning rate over the run; the length is given in epochs or in iterations, and so are the milestones."""

    epochs: int | None = Field(None, gt=0)
    iterations: int | None = Field(None, gt=0)
    policy: Literal["step", "cosine", "poly"] = "step"
    milestones: tuple[int, ...] = ()
    gamma: float = Field(0.1, gt=0, le=1)
    power: float = Field(1.0, gt=0)
    min_lr_ratio: float = Field(0.0, ge=0, le=1)
    warmup_iterations: int = Field(500, ge=0)
    warmup_ratio: float = Field(0.001, ge=0, le=1)

    @model_validator(mode="after")
    def _one_length(self) -> ScheduleConfig:
        if (self.epochs is None) == (self.iterations is None):
            raise ValueError("give exactly one of epochs and iterations")
        return self


class TrainConfig(Strict):
    seed: int = 0
    deterministic: bool = Field(False, description="bitwise equal runs on a GPU too, at some cost; on a CPU they always are")
    precision: Literal["auto", "fp32", "bf16"] = Field("auto", description="auto: bf16 autocast on GPUs that have it")
    ema: float | None = Field(None, gt=0, lt=1, description="decay of the exponential moving average of the weights")
    ema_warmup: bool = Field(False, description="let the decay rise as 1 - steps^(-2/3) up to ema, for short runs")
    eval_every: int = Field(1, gt=0, description="in the unit of schedule: epochs or iterations")
    checkpoint_every: int = Field(1, gt=0, description="in the unit of schedule: epochs or iterations")
    keep_checkpoints: int = Field(2, gt=0, description="newest checkpoints kept, besides the best")
    log_every: int = Field(20, gt=0, description="iterations between log lines")


class Published(Strict):
    """What the paper's tables say of this row."""

    model: str
    box_ap: float | None = None
    mask_ap: float | None = None
    params: str | None = None
    flops: str | None = None


class Config(Strict):
    """One experiment."""

    name: str
    official: str | None = Field(None, description="file stem of the official config this reproduces; accepted as an alias")
    published: Published | None = None
    model: ModelConfig
    data: DataConfig
    optim: OptimConfig = OptimConfig()
    schedule: ScheduleConfig
    train: TrainConfig = TrainConfig()


# --- reading --------------------------------------------------------------------------------------------------------


def config_dir() -> Path:
    """The folder of the shipped configs."""
    for path in _CONFIG_DIRS:
        if (path / "base").is_dir():
            return path
    raise ConfigError("the shipped configs are missing from this installation; reinstall piip")


@cache
def shipped_configs() -> dict[str, Path]:
    """Every shipped experiment by name ('detection/mask_rcnn_...'), without the building blocks in base/."""
    root = config_dir()
    names = {path.relative_to(root).with_suffix("").as_posix(): path for path in sorted(root.rglob("*.yaml"))}
    return {name: path for name, path in names.items() if not name.startswith("base/")}


@cache
def _official_aliases() -> dict[str, str]:
    raw = {name: _read_yaml(path) for name, path in shipped_configs().items()}
    return {data["official"]: name for name, data in raw.items() if data.get("official")}


def find_config(name: str | Path) -> Path:
    """The file behind a path, a shipped name, or an official file stem."""
    path = Path(name)
    if path.suffix in (".yaml", ".yml"):
        if not path.is_file():
            raise ConfigError(f"config file not found: {path}")
        return path
    shipped, aliases = shipped_configs(), _official_aliases()
    key = aliases.get(str(name), str(name))
    if key in shipped:
        return shipped[key]
    near = difflib.get_close_matches(str(name), [*shipped, *aliases], n=1, cutoff=0.4)
    hint = f"did you mean '{near[0]}'?" if near else "see `piip models` for the shipped ones"
    raise ConfigError(f"unknown config '{name}'; {hint}")


def load_config(name: str | Path, overrides: Sequence[str] = ()) -> Config:
    """Reads, merges and checks a config.

    name: a path to a YAML file, a shipped name, or an official file stem.
    overrides: `key.sub=value` strings.
    Raises ConfigError naming the file, the key and the remedy.
    """
    path = find_config(name)
    data, origin = _load_merged(path, ())
    for override in overrides:
        _apply_override(data, origin, override)
    known = {file: key for key, file in shipped_configs().items()}
    data.setdefault("name", known.get(path, path.stem))
    return config_from_dict(data, origin=origin, source=str(path))


def config_from_dict(data: dict[str, Any], *, origin: dict[str, str] | None = None, source: str = "config") -> Config:
    """Checks already merged data, for example the resolved config stored beside a checkpoint."""
    try:
        return Config.model_validate(data)
    except ValidationError as error:
        raise ConfigError("\n".join(_describe(item, origin or {}, source) for item in error.errors())) from None


def dump_config(config: Config) -> str:
    """The resolved config as YAML that `load_config` reads back to an equal config."""
    return yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False, allow_unicode=True)


def _read_yaml(path: Path) -> dict[str, Any]:
    try:
        data = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"cannot read config {path}: {error.strerror}") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} is not valid YAML: {error}") from None
    if not isinstance(data, dict):
        raise ConfigError(f"{path} must hold a mapping of keys, got {type(data).__name__}")
    return data


def _load_merged(path: Path, seen: tuple[Path, ...]) -> tuple[dict[str, Any], dict[str, str]]:
    """The file merged onto its bases, and for every dotted key the file that set it last."""
    path = path.resolve()
    if path in seen:
        raise ConfigError(f"{path}: 'base' leads back to itself: {' -> '.join(p.name for p in (*seen, path))}")
    data = _read_yaml(path)
    bases = data.pop("base", [])
    merged: dict[str, Any] = {}
    origin: dict[str, str] = {}
    for base in [bases] if isinstance(bases, str) else bases:
        base_path = path.parent / base
        if not base_path.is_file():
            raise ConfigError(f"{path}: base file not found: {base}")
        base_data, base_origin = _load_merged(base_path, (*seen, path))
        # Names and published figures belong to one experiment and are not inherited.
        base_data = {key: value for key, value in base_data.items() if key not in ("name", "official", "published")}
        _merge(merged, base_data, origin, base_origin, "")
    _merge(merged, data, origin, None, "", file=str(path))
    return merged, origin


def _merge(
    target: dict[str, Any],
    update: dict[str, Any],
    origin: dict[str, str],
    update_origin: dict[str, str] | None,
    prefix: str,
    file: str = "",
) -> None:
    for key, value in update.items():
        dotted = f"{prefix}{key}"
        origin[dotted] = update_origin.get(dotted, file) if update_origin else file
        if isinstance(value, dict):
            # A mapping of another type ("type: shapes" over "type: coco") replaces the old one: their keys differ.
            same = isinstance(target.get(key), dict) and value.get("type", target[key].get("type")) == target[key].get("type")
            target[key] = target[key] if same else {}
            _merge(target[key], value, origin, update_origin, f"{dotted}.", file)
        else:
            target[key] = value


def _apply_override(data: dict[str, Any], origin: dict[str, str], override: str) -> None:
    key, separator, text = override.partition("=")
    if not separator or not key:
        raise ConfigError(f"override '{override}' is not of the form key.sub=value")
    try:
        value = yaml.safe_load(text)
    except yaml.YAMLError:
        raise ConfigError(f"override '{override}': the value is not valid YAML") from None
    *parents, last = key.split(".")
    node: Any = data
    for depth, part in enumerate(parents):
        node = _child(node, part, f"override '{override}': '{'.'.join(parents[: depth + 1])}'")
    if isinstance(node, list):
        _child(node, last, f"override '{override}': '{key}'")
        node[int(last)] = value
    elif isinstance(node, dict):
        node[last] = value
    else:
        raise ConfigError(f"override '{override}': '{'.'.join(parents)}' holds a single value, not keys")
    origin[key] = "command line"


def _child(node: Any, part: str, where: str) -> Any:
    if isinstance(node, dict):
        return node.setdefault(part, {})
    if isinstance(node, list):
        if not part.isdigit() or int(part) >= len(node):
            raise ConfigError(f"{where} does not exist; the list has items 0 to {len(node) - 1}")
        return node[int(part)]
    raise ConfigError(f"{where} does not exist")


def _describe(error: Any, origin: dict[str, str], source: str) -> str:
    # The tag that pydantic adds to the location inside a discriminated union is no key of the file.
    parts = [str(part) for part in error["loc"] if part not in ("coco", "shapes", "vit", "fpn", "mask_rcnn")]
    if error["type"] == "unknown_key":
        parts.append(error["ctx"]["key"])
    dotted = ".".join(parts)
    keys = (".".join(parts[:end]) for end in range(len(parts), 0, -1))
    file = next((origin[key] for key in keys if key in origin), source)
    message = error["msg"].removeprefix("Value error, ")
    got = "" if error["type"] in ("missing", "unknown_key", "value_error") else f" (got {error['input']!r})"
    return f"{file}: {dotted or 'config'}: {message}{got}"
