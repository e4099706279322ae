"""The experiment as a whole: its model, its data, and how the model is trained."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from piip.backbone.config import BackboneConfig
from piip.config.strict import Strict, scaled
from piip.data.sets.config import DatasetConfig
from piip.data.transforms.config import TransformsConfig
from piip.errors import ConfigError
from piip.heads.config import HeadConfig
from piip.heads.mask_rcnn.config import MaskRCNNConfig
from piip.metrics.config import MetricConfig
from piip.necks.config import FPNConfig, NeckConfig


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
        self.head.check_network(self.backbone, self.neck)
        return self


class DataConfig(Strict):
    train: DatasetConfig
    val: DatasetConfig
    train_transforms: TransformsConfig
    val_transforms: TransformsConfig
    batch_size: int = Field(
        16, gt=0, description="images per optimizer step, over all processes and accumulation steps"
    )
    eval_batch_size: int = Field(1, gt=0, description="images per process and evaluation step")
    workers: int = Field(2, ge=0, le=256, description="loader processes per training process")


class OptimConfig(Strict):
    """AdamW with layer-wise learning-rate decay as released (mmcv_custom/layer_decay_optimizer_constructor.py)."""

    lr: float = Field(1e-4, gt=0)
    weight_decay: float = Field(0.05, ge=0)
    betas: tuple[float, float] = (0.9, 0.999)
    layer_decay: float = Field(1.0, gt=0, le=1, description="learning-rate factor per layer from the output downwards")
    new_lr_scale: float = Field(
        1.0, gt=0, description="learning-rate factor of parameters that no pretrained network has, as in interactions"
    )
    decay_all: bool = Field(False, description="weight decay on norms and biases too, as in plain AdamW")
    clip_grad_norm: float | None = Field(None, gt=0)
    accumulate: int = Field(1, gt=0, description="forward-backward passes per optimizer step")


class ScheduleConfig(Strict):
    """The learning rate over the run, whose length and milestones are given either in epochs or in iterations."""

    epochs: int | None = Field(None, gt=0)
    iterations: int | None = Field(None, gt=0)
    policy: Literal["step", "cosine", "poly", "timm_cosine"] = Field(
        "step", description="timm_cosine: that of the released classification loop, with the settings timm_..."
    )
    milestones: tuple[int, ...] = Field((), examples=[[8, 11]])
    gamma: float = Field(0.1, gt=0, le=1)
    power: float = Field(1.0, gt=0)
    min_lr_ratio: float = Field(0.0, ge=0, le=1)
    warmup_iterations: int = Field(500, ge=0)
    warmup_ratio: float = Field(0.001, ge=0, le=1)
    timm_warmup_epochs: int = Field(5, ge=0)
    timm_warmup_lr: float = Field(1e-6, ge=0, description="where the warm-up starts, for all parameters alike")
    timm_min_lr: float = Field(1e-5, ge=0, description="where the cosine ends, for all parameters alike")

    @model_validator(mode="after")
    def _one_length(self) -> ScheduleConfig:
        if (self.epochs is None) == (self.iterations is None):
            raise ValueError(
                "give exactly one of epochs and iterations, and null for the other, as in schedule.iterations=null"
            )
        if self.policy == "timm_cosine" and self.epochs is None:
            raise ValueError("policy timm_cosine counts epochs: give epochs instead of iterations")
        return self


class TrainConfig(Strict):
    seed: int = 0
    deterministic: bool = Field(
        False, description="deterministic kernels on GPUs too, at some cost; torch warns of operators without one"
    )
    precision: Literal["auto", "fp32", "bf16"] = Field("auto", description="auto: bf16 autocast on GPUs that have it")
    tf32: bool | None = Field(
        None,
        description="TF32 on GPUs for what stays in float32; null: torch's own setting, convolutions but not products",
    )
    compile: bool = Field(
        False, description="compile blocks and interactions, which takes a minute or more at the first step"
    )
    checkpoint_activations: Literal["none", "all", "matmul"] = Field(
        "none",
        description="what blocks and interactions compute again in the backward pass instead of keeping it: all, or "
        "all but matrix products; branches have a setting of their own",
    )
    ema: float | None = Field(None, gt=0, lt=1, description="decay of the exponential moving average of the weights")
    evaluate_ema: bool = Field(True, description="false: the average is kept, but the weights themselves are evaluated")
    ema_warmup: bool = Field(False, description="let the decay rise as 1 - steps^(-2/3) up to ema, for short runs")
    eval_every: int = Field(1, gt=0, description="in the unit of schedule: epochs or iterations")
    early_stopping: int | None = Field(
        None, gt=0, description="end when so many evaluations in a row are no better than the best; null: never"
    )
    checkpoint_every: int = Field(1, gt=0, description="in the unit of schedule: epochs or iterations")
    keep_checkpoints: int = Field(2, gt=0, description="newest checkpoints kept, besides the best")
    log_every: int = Field(20, gt=0, description="iterations between log lines")
    freeze: tuple[str, ...] = Field(
        (),
        examples=[["backbone.branches.0", "neck"]],
        description="parts of the model that do not train, by the names of modules or parameters, wildcards allowed; "
        "a module that is frozen as a whole runs as in evaluation, without dropout and with fixed batch norms",
    )


class ParallelConfig(Strict):
    """How several processes share a network in training; by default every one has all of it."""

    shard: Literal["all"] | Annotated[int, Field(gt=0)] = Field(
        1, description="how many processes share parameters, gradients and optimizer; 1: none, all: all"
    )
    replicate: int | None = Field(
        None, gt=0, description="how many groups of such processes repeat each other's shares; null: the rest"
    )
    reshard_after_forward: bool = Field(
        True, description="false keeps parameters whole from a block's forward to its backward: faster, more memory"
    )
    offload: bool = Field(False, description="keep what a GPU shares in the host's memory between its uses")


class Published(Strict):
    """The figures of this row in the paper's tables."""

    model: str
    box_ap: float | None = None
    mask_ap: float | None = None
    miou: float | None = None
    top1: float | None = None
    params: str | None = None
    flops: str | None = None

    @property
    def scores(self) -> dict[str, float]:
        """The figures by metric, in percent."""
        return {name: value for name, value in self if isinstance(value, float)}


class Config(Strict):
    """One experiment."""

    name: str
    official: str | None = Field(
        None, description="file stem of the official config this reproduces; accepted as an alias"
    )
    released: bool = Field(True, description="false: no weights of the official config were released")
    published: Published | None = None
    alternative: str | None = Field(
        None, description="config of another form of this network, for checkpoints that fit that form instead"
    )
    alias: str | None = Field(None, description="a short name for this config")
    weights: str | None = Field(
        None,
        pattern=r"^[\w.-]+$",
        description="weights that come with the package: what evaluation and prediction take unless others are named",
    )
    scale: float = Field(
        1.0,
        gt=0,
        le=100,
        exclude=True,
        description="factor of every size in pixels of what the network sees: resolutions, resize, crop, windows of "
        "evaluation; 1 once it is applied",
    )
    model: ModelConfig
    data: DataConfig
    metrics: tuple[MetricConfig, ...] = Field(
        (),
        description="what results are measured by; the first figure of the first decides which checkpoint is the best. "
        "Empty: what belongs to data.val",
        examples=[[{"type": "coco", "backend": "pycocotools"}]],
    )
    optim: OptimConfig = OptimConfig()
    schedule: ScheduleConfig
    train: TrainConfig = TrainConfig()
    parallel: ParallelConfig = ParallelConfig()

    @property
    def chosen_metrics(self) -> tuple[MetricConfig, ...]:
        """What results are measured by: `metrics`, or what belongs to the validation data. Raises ConfigError."""
        chosen = self.metrics or self.data.val.default_metrics()
        if not chosen:
            raise ConfigError(f"data of type {self.data.val.type} has no metrics of its own; name some in metrics")
        return chosen

    @model_validator(mode="after")
    def _apply_scale(self) -> Config:
        return self if self.scale == 1 else scaled(self, self.scale).model_copy(update={"scale": 1.0})

    @model_validator(mode="after")
    def _one_task(self) -> Config:
        task = self.model.head.task
        for name in ("train_transforms", "val_transforms"):
            found = getattr(self.data, name).task
            if found != task:
                raise ValueError(
                    f"data.{name} are for {found}, but model.head {self.model.head.type} is for {task}: set "
                    f"data.{name}.type: {task}, with its settings"
                )
        for metric in self.metrics:
            if metric.task not in (None, task):
                raise ValueError(
                    f"metrics: {metric.type} is for {metric.task}, model.head {self.model.head.type} for {task}: "
                    "take it out, or leave metrics empty for what belongs to the data"
                )
        return self
