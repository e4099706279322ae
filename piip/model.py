"""A model is a backbone, a neck and a head; this is the one place where they meet.

Three ways in: `Model.loss` for training, `Model.infer` for a prepared batch, `Model.predict` for images as they come.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypedDict

import torch
from torch import Tensor, nn

from piip.backbone.piip import PIIP
from piip.config.experiment import ModelConfig
from piip.data.transforms.config import TransformsConfig
from piip.errors import ConfigError
from piip.heads.base import Head
from piip.necks.base import Neck
from piip.ops import pyramid_resize

if TYPE_CHECKING:
    from piip.data.batch import Batch


class _Normalisation(TypedDict):
    """The arguments of `pyramid_resize` and of the backbone that normalise images; None leaves them as they are."""

    mean: Sequence[float] | None
    std: Sequence[float] | None
    valid_sizes: Sequence[tuple[int, int]] | None


class Model(nn.Module):
    """Backbone, neck and head of one task.

    config: what the model was built from, with the normalisation of its images.
    transforms: how `predict` prepares an image; the validation transforms of the experiment.
    class_names: one per class, in label order; empty when unknown.
    """

    def __init__(self, *, backbone: PIIP, neck: Neck, head: Head, config: ModelConfig) -> None:
        super().__init__()
        self.backbone = backbone
        self.neck = neck
        self.head = head
        self.config = config
        self.transforms: TransformsConfig | None = None
        self.class_names: list[str] = []

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        """The losses, so that a wrapper such as DistributedDataParallel sees training as a forward pass."""
        return self.loss(batch)

    def loss(self, batch: Batch) -> dict[str, Tensor]:
        """Scalar losses by name; the training loss is their sum."""
        features = self.features(batch.images, batch.image_sizes)
        with self._head_precision(batch.images.device):
            return self.head.loss(features, batch.image_sizes, batch.targets)

    def features(self, images: Tensor, image_sizes: Sequence[tuple[int, int]] | None = None) -> list[Any]:
        """Images (B, 3, H, W), normalised, or uint8 with their valid sizes -> the neck's maps (B, C, H/s, W/s).

        Without merge and neck, they are the `Tokens` of every branch.
        """
        maps = self.backbone(images, **self._normalisation(images, image_sizes))
        # As released: under autocast the backbone runs in bfloat16, the neck in float32.
        with torch.autocast(images.device.type, enabled=False):
            return self.neck([x.float() for x in maps])

    @torch.inference_mode()
    def infer(self, images: Tensor, image_sizes: Sequence[tuple[int, int]]) -> Any:
        """Results in batch pixels.

        images: (B, 3, H, W), normalised and zero-padded at the bottom and right, or padded uint8 pixels; image_sizes:
        each image's valid (h, w).
        Returns the head's results: for detection a dict per image with boxes (n, 4) xyxy, scores (n,), labels (n,) and,
        from a head that has masks, masks (n, h, w) bool; for segmentation logits (B, classes, H, W); for classification
        logits (B, classes).
        """
        return self.head.in_batch(self._detect(images, image_sizes), list(image_sizes))

    @torch.inference_mode()
    def infer_batch(self, batch: Batch) -> Any:
        """Results of a batch in each image's original pixels, one per image, as metrics take them.

        They are those of `predict`, but masks are compressed run lengths, `rles`.
        """
        outputs = self._detect(batch.images, batch.image_sizes)
        return self.head.restore_encoded(outputs, batch.image_sizes, batch.original_sizes)

    @torch.inference_mode()
    def predict(self, images: Sequence[Tensor | str | PathLike[str]]) -> Any:
        """Results for images as they come, each in its own pixels.

        images: uint8 (3, H, W) RGB tensors or paths. They are resized, normalised and padded as in validation.
        Raises DataError for a file that cannot be read, ConfigError if the model was built without transforms.
        """
        from piip.data.images import read_image
        from piip.data.transforms.batch import prepare

        if self.transforms is None:
            raise ConfigError("this model has no transforms; build it with piip.create_model, or set model.transforms")
        pixels = [image if isinstance(image, Tensor) else read_image(Path(image)) for image in images]
        batch, image_sizes = prepare(pixels, self.transforms)
        device = next(self.parameters()).device
        original_sizes = [(image.shape[1], image.shape[2]) for image in pixels]
        return self.head.restore(self._detect(batch.to(device), image_sizes), image_sizes, original_sizes)

    def _detect(self, images: Tensor, image_sizes: Sequence[tuple[int, int]]) -> Any:
        """Runs backbone, neck and head on every view of the images; returns what `Head.restore` takes."""
        if self.head.several_views:
            how = self._normalisation(images, image_sizes)
            (images,) = pyramid_resize(images, scale_factors=[1.0], **how)
        return self.head.look_at(images, list(image_sizes), self._look)

    def _look(self, images: Tensor, image_sizes: list[tuple[int, int]]) -> Any:
        features = self.features(images, image_sizes)
        with self._head_precision(images.device):
            return self.head.detect(features, image_sizes)

    def _normalisation(self, images: Tensor, image_sizes: Sequence[tuple[int, int]] | None) -> _Normalisation:
        """uint8 pixels are normalised within their valid sizes; other images are normalised already."""
        if images.dtype != torch.uint8:
            return {"mean": None, "std": None, "valid_sizes": None}
        return {"mean": self.config.mean, "std": self.config.std, "valid_sizes": image_sizes}

    def _head_precision(self, device: torch.device) -> AbstractContextManager[object]:
        """As released, heads run in float32 under autocast; but one that is costly may choose for itself."""
        return nullcontext() if self.head.mixed_precision else torch.autocast(device.type, enabled=False)

    def class_rows(self) -> dict[str, int]:
        """Names of the parameters that depend on the classes -> rows of each class, see `Head.class_layers`."""
        layers = self.head.class_layers()
        return {
            f"{name}.{parameter}": layers[module]
            for name, module in self.named_modules()
            if module in layers
            for parameter, _ in module.named_parameters(recurse=False)
        }

    def load_pretrained(self) -> None:
        """Loads the pretrained weights that the config names for branches. Raises CheckpointError."""
        for index, (branch, config) in enumerate(zip(self.backbone.branches, self.config.backbone.branches)):
            if config.init is not None:
                branch.load_pretrained(config.init, head=self.head.pretrained(index))

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
