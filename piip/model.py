"""A model is a backbone, a neck and a head; this is the one place where they meet.

Three ways in: `Model.loss` for training, `Model.infer` for a prepared batch, `Model.predict` for images as they come.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from itertools import pairwise
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor, nn

from piip.backbone import PIIP, CrossBranchAttention, Interaction, InteractionUnit, Merge, OnlyBranch
from piip.branches import Branch, ConvNeXt, ViT
from piip.config import (
    BackboneConfig,
    BranchConfig,
    ClassifierConfig,
    ConvNeXtConfig,
    HeadConfig,
    InteractionConfig,
    ModelConfig,
    NeckConfig,
    TransformConfig,
    load_config,
)
from piip.errors import ConfigError
from piip.features import FeatureSpec
from piip.heads import DINO, Classifier, Head, MaskRCNN, UperNet
from piip.necks import FPN, ChannelMapper, GivenPyramid, SimplePyramid
from piip.ops import pyramid_resize

if TYPE_CHECKING:
    from piip.data import Batch


class Model(nn.Module):
    """Backbone, neck and head of one task.

    config: what the model was built from, with the normalisation of its images.
    transforms: how `predict` prepares an image; the validation transforms of the experiment.
    class_names: one a class, in label order; empty when unknown.
    """

    def __init__(self, *, backbone: PIIP, neck: nn.Module, head: Head, config: ModelConfig) -> None:
        super().__init__()
        self.backbone = backbone
        self.neck = neck
        self.head = head
        self.config = config
        self.transforms: TransformConfig | None = None
        self.class_names: list[str] = []

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        """The losses, so that a wrapper such as DistributedDataParallel sees training as a forward pass."""
        return self.loss(batch)

    def loss(self, batch: Batch) -> dict[str, Tensor]:
        """Scalar losses by name; the training loss is their sum."""
        features = self.features(batch.images, batch.image_sizes)
        with self._head_precision(batch.images.device):
            return self.head.loss(features, batch.image_sizes, batch.targets)

    def features(self, images: Tensor, image_sizes: Sequence[tuple[int, int]] | None = None) -> list[Tensor]:
        """Images (B, 3, H, W), normalised, or uint8 with their valid sizes -> the neck's maps (B, C, H/s, W/s)."""
        if images.dtype == torch.uint8:
            maps = self.backbone(images, mean=self.config.mean, std=self.config.std, valid_sizes=image_sizes)
        else:
            maps = self.backbone(images)
        # As released: under autocast the backbone runs in bfloat16, the neck in float32.
        with torch.autocast(images.device.type, enabled=False):
            return self.neck([x.float() for x in maps])

    @torch.inference_mode()
    def infer(self, images: Tensor, image_sizes: Sequence[tuple[int, int]]) -> Any:
        """Results in batch pixels.

        images: (B, 3, H, W), normalised and zero-padded at the bottom and right, or padded uint8 pixels; image_sizes:
        each image's valid (h, w).
        Returns the head's results: for detection a dict per image with boxes (n, 4) xyxy, scores (n,), labels (n,) and
        masks (n, h, w) bool; for segmentation logits (B, classes, H, W), for classification logits (B, classes).
        """
        return self.head.in_batch(self._view(images, image_sizes), list(image_sizes))

    @torch.inference_mode()
    def infer_batch(self, batch: Batch) -> Any:
        """Results of a batch in each image's original pixels, one per image, as metrics take them.

        They are those of `predict`, but masks are compressed run lengths, `rles`.
        """
        outputs = self._view(batch.images, batch.image_sizes)
        return self.head.restore_encoded(outputs, batch.image_sizes, batch.original_sizes)

    @torch.inference_mode()
    def predict(self, images: Sequence[Tensor | str | PathLike[str]]) -> Any:
        """Results for images as they come, each in its own pixels.

        images: uint8 (3, H, W) RGB tensors or paths. They are resized, normalised and padded as in validation.
        Raises DataError for a file that cannot be read, ConfigError if the model was built without transforms.
        """
        from piip.data import prepare, read_image

        if self.transforms is None:
            raise ConfigError("this model has no transforms; build it with piip.create_model, or set model.transforms")
        pixels = [image if isinstance(image, Tensor) else read_image(Path(image)) for image in images]
        batch, image_sizes = prepare(pixels, self.transforms)
        device = next(self.parameters()).device
        original_sizes = [(image.shape[1], image.shape[2]) for image in pixels]
        return self.head.restore(self._view(batch.to(device), image_sizes), image_sizes, original_sizes)

    def _view(self, images: Tensor, image_sizes: Sequence[tuple[int, int]]) -> Any:
        if images.dtype == torch.uint8 and self.head.several_views:
            mean, std = self.config.mean, self.config.std
            (images,) = pyramid_resize(images, scale_factors=[1.0], mean=mean, std=std, valid_sizes=image_sizes)
        return self.head.view(self._detect, images, list(image_sizes))

    def _detect(self, images: Tensor, image_sizes: list[tuple[int, int]]) -> Any:
        features = self.features(images, image_sizes)
        with self._head_precision(images.device):
            return self.head.detect(features, image_sizes)

    def _head_precision(self, device: torch.device) -> AbstractContextManager[object]:
        """As released, heads run in float32 under autocast; but one that is costly may choose for itself."""
        return nullcontext() if self.head.mixed_precision else torch.autocast(device.type, enabled=False)

    def layer_ids(self) -> dict[str, int]:
        """Layer of every parameter that layer-wise learning-rate decay scales; all others train at the full rate."""
        return {f"backbone.{name}": layer for name, layer in self.backbone.layer_ids().items()}

    def new_parameters(self) -> set[str]:
        """Names of the parameters that no pretrained network of a branch has."""
        branches = list(self.backbone.branches)
        known = [*branches, *(part for index in range(len(branches)) for part in self.head.pretrained(index).values())]
        pretrained = {id(parameter) for part in known for parameter in part.parameters()}
        return {name for name, parameter in self.named_parameters() if id(parameter) not in pretrained}

    @property
    def num_layers(self) -> int:
        """Layers counted by learning-rate decay: the embedding, the deepest branch's blocks, and everything behind."""
        return self.backbone.depth + 2


def create_model(name: str | Path, weights: str | Path | None = None, **overrides: Any) -> Model:
    """Builds the model of a config, in evaluation mode.

    name: a shipped config name, an official file stem, or a path to a YAML file.
    weights: a checkpoint or exported file to load; None leaves the fresh initialisation.
    overrides: config values by dotted key, for example `**{"model.head.num_classes": 3}`.
    Raises ConfigError, CheckpointError.
    """
    config = load_config(name, [f"{key}={_as_yaml(value)}" for key, value in overrides.items()])
    model = build_model(config.model)
    model.transforms = config.data.val_transforms
    if weights is not None:
        from piip.engine.checkpoint import load_weights

        model.class_names = load_weights(model, weights).class_names or []
    return model.eval()


def _as_yaml(value: Any) -> str:
    import yaml

    return yaml.safe_dump(value, default_flow_style=True).removesuffix("...\n").strip()


def build_model(config: ModelConfig) -> Model:
    """A freshly initialised model; no file is read."""
    # Class tokens are read before the last interaction, whose parameters would never learn.
    maps_read = not (isinstance(config.head, ClassifierConfig) and config.head.token == "class")
    backbone = build_backbone(config.backbone, last_interaction=maps_read)
    neck = build_neck(config.neck, backbone.specs)
    return Model(backbone=backbone, neck=neck, head=build_head(config.head, neck.specs), config=config)


_NECKS = {"fpn": FPN, "channel_mapper": ChannelMapper, "none": GivenPyramid}
_HEADS: dict[str, Callable[..., Head]] = {
    "mask_rcnn": MaskRCNN,
    "dino": DINO,
    "upernet": UperNet,
    "classifier": Classifier,
}


def build_neck(config: NeckConfig, specs: Sequence[FeatureSpec]) -> FPN | ChannelMapper | GivenPyramid:
    """The neck on a backbone's maps."""
    return _NECKS[config.type](specs=specs, **config.model_dump(exclude={"type"}))


def build_head(config: HeadConfig, specs: Sequence[FeatureSpec]) -> Head:
    """The head of a task on a neck's maps."""
    return _HEADS[config.type](specs=specs, **config.model_dump(exclude={"type"}))


def build_backbone(config: BackboneConfig, *, last_interaction: bool = True) -> PIIP:
    """The branches, interactions, merges and feature pyramid of a config.

    last_interaction: false leaves out the one behind the last blocks, which only maps take part in.
    """
    branches = [build_branch(branch) for branch in config.branches]
    ends = group_ends(config, [branch.depth for branch in branches])
    groups = [[b.specs[stop - 1] for b, stop in zip(branches, stops, strict=True)] for stops in zip(*ends, strict=True)]
    several = len(branches) > 1
    interactions = [_interaction(specs, config.interaction) for specs in groups] if several else []
    if not config.merge:
        kept = interactions if last_interaction else interactions[:-1]
        return PIIP(branches=branches, resolutions=config.resolutions, ends=ends, interactions=kept)
    if config.outputs and config.outputs[-1] >= len(groups) - 1:
        raise ConfigError(f"model.backbone.outputs: name interactions before the last, 0 to {len(groups) - 2}")
    merges = [
        _merge(groups[group], light=bool(config.outputs)) if several else OnlyBranch()
        for group in (*config.outputs, len(groups) - 1)
    ]
    return PIIP(
        branches=branches,
        resolutions=config.resolutions,
        ends=ends,
        interactions=interactions,
        intermediate=dict(zip(config.outputs, merges, strict=False)),
        merge=merges[-1],
        pyramid=_pyramid([groups[group] for group in (*config.outputs, len(groups) - 1)], config),
    )


def _merge(specs: list[FeatureSpec], *, light: bool) -> Merge:
    channels = [spec.channels for spec in specs]
    return Merge(in_channels=channels, out_channels=channels[-1], light=light)


def _interaction(specs: list[FeatureSpec], config: InteractionConfig) -> Interaction:
    """The exchange between all neighbours, whose maps have these specs, finest first."""
    settings = config.model_dump()
    return Interaction(
        [
            InteractionUnit(
                to_fine=CrossBranchAttention(dim=fine.channels, source_dim=coarse.channels, **settings),
                to_coarse=CrossBranchAttention(dim=coarse.channels, source_dim=fine.channels, **settings),
            )
            for fine, coarse in pairwise(specs)
        ]
    )


def _pyramid(groups: list[list[FeatureSpec]], config: BackboneConfig) -> SimplePyramid | GivenPyramid:
    """The pyramid over maps merged after these groups, each given by its branches' maps.

    A merged map has the width of the last branch and the grid of the first.
    """
    merged = [FeatureSpec(specs[-1].channels, specs[0].stride) for specs in groups]
    strides = [spec.stride for spec in merged]
    if len(set(strides)) == 1:
        # The released single-branch baselines normalise over channels where the merged networks use groups.
        norm: Literal["group", "layer"] = "layer" if len(config.branches) == 1 else "group"
        return SimplePyramid(specs=merged, norm=norm, finest=config.finest_level)
    if strides != [strides[0] * 2**level for level in range(len(strides))]:
        raise ConfigError(
            f"model.backbone.outputs: the finest branch has strides {strides} there; they must double: name other "
            "interactions, or set model.backbone.outputs=[] to scale all levels from one map"
        )
    return GivenPyramid(specs=merged)


def build_branch(config: BranchConfig) -> Branch:
    """A branch of the type its config names."""
    if isinstance(config, ConvNeXtConfig):
        return ConvNeXt(**config.model_dump(exclude={"type", "init"}))
    return ViT(**config.model_dump(exclude={"type", "size", "model", "init"}))


def group_ends(config: BackboneConfig, depths: Sequence[int]) -> list[tuple[int, ...]]:
    """Per branch, one past the last block of each group of blocks, an interaction following every group.

    A number of interactions is spread evenly over every branch; a list names, per branch, the block each one follows.
    A single branch has nothing to interact with and is one group, unless a list cuts it. Raises ConfigError when a
    branch is too shallow, or the list does not end with its last block.
    """
    if len(depths) == 1 and isinstance(config.interactions, int):
        return [(depths[0],)]
    if isinstance(config.interactions, int):
        count = config.interactions
        if count < 1 or count > min(depths):
            most = min(depths)
            raise ConfigError(f"model.backbone.interactions: {count} interactions need 1 to {most} blocks a branch")
        return [tuple((index + 1) * depth // count for index in range(count)) for depth in depths]
    ends = [tuple(block + 1 for block in blocks) for blocks in config.interactions]
    same_count = len({len(blocks) for blocks in ends}) == 1 and len(ends) == len(depths)
    if not same_count or any(
        not blocks or blocks[-1] != depth or sorted(set(blocks)) != list(blocks)
        for blocks, depth in zip(ends, depths, strict=True)
    ):
        last = ", ".join(str(depth - 1) for depth in depths)
        raise ConfigError(
            "model.backbone.interactions: give one increasing list a branch, equally long, ending with the branch's "
            f"last block ({last})"
        )
    return ends
