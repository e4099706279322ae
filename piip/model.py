"""A model is a backbone, a neck and a head; this is the one place where they meet.

Three ways in: `Model.loss` for training, `Model.infer` for a prepared batch, `Model.predict` for images as they come.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, TypedDict

import torch
from PIL import Image
from torch import Tensor, nn

from piip import host
from piip.backbone.piip import PIIP
from piip.config.experiment import ModelConfig
from piip.config.strict import nearest
from piip.data.batch import Batch
from piip.data.inputs import ImageInput, all_to_pixels, is_image, to_pixels
from piip.data.transforms.batch import prepare
from piip.data.transforms.config import TransformsConfig
from piip.data.windowed import InMemory, Pixels
from piip.errors import ConfigError, DataError, first_few, visible
from piip.heads.base import Head
from piip.in_tiles import see_in_tiles
from piip.necks.base import Neck
from piip.ops import pyramid_resize
from piip.results.base import ResultWriter
from piip.results.result import Result
from piip.tiling import Tiling

_NO_TRANSFORMS = "this model has no transforms; build it with piip.create_model, or set model.transforms"
# Tiles that a device gets together.
TILES_AT_ONCE = 4


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
    tiling: how `predict` and `infer_batch` cut images that are larger than a tile; None takes them whole.
    """

    def __init__(self, *, backbone: PIIP, neck: Neck, head: Head, config: ModelConfig) -> None:
        super().__init__()
        self.backbone = backbone
        self.neck = neck
        self.head = head
        self.config = config
        self.transforms: TransformsConfig | None = None
        self.class_names: list[str] = []
        self.tiling: Tiling | None = None

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        """The losses, so that a wrapper such as DistributedDataParallel sees training as a forward pass.

        Raises DataError for anything but a batch of a loader.
        """
        if not isinstance(batch, Batch):
            raise DataError(
                f"a model is called with a Batch of its loader, not with {type(batch).__name__}; for results use "
                "model.predict(images) or model.infer(images, image_sizes), for maps model.features(images)"
            )
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

        They are those of `predict`, but masks are compressed run lengths, `rles`. With a tiling the images of the batch
        have their original sizes.
        """
        if self.tiling is not None:
            images = zip(batch.images, batch.image_sizes, strict=True)
            return [self._in_tiles(InMemory(image[:, :h, :w]), self.tiling, encoded=True) for image, (h, w) in images]
        outputs = self._detect(batch.images, batch.image_sizes)
        return self.head.restore_encoded(outputs, batch.image_sizes, batch.original_sizes)

    @torch.inference_mode()
    def predict(
        self,
        images: ImageInput | Iterable[ImageInput],
        *,
        threshold: float = 0.0,
        classes: str | Sequence[str] | None = None,
        tile: int | None = None,
        overlap: float = 0.2,
    ) -> Any:
        """The `Result` of one image, or a list of them for a list of images, in each image's own pixels.

        images: paths, bytes of files, open files, Pillow images of any mode, uint8 arrays (H, W, 3) RGB or (H, W) grey,
        or uint8 tensors (3, H, W) RGB. They are resized, normalised and padded as in validation.
        threshold: objects with a lower score are left out. classes: the names of those that are not left out.
        tile: the side in pixels of tiles that images larger than that are cut into, each seen as if it were an image,
        so that small objects are seen larger; overlap: the share of a tile that the next one sees too.
        `piip.heads.tiles` says how their results become one.
        Raises DataError for what is no image or cannot be read, ConfigError for a class that there is not, and if the
        model was built without transforms or is in another precision than `piip.precision.prepare` makes.
        """
        if self.transforms is None:
            raise ConfigError(_NO_TRANSFORMS)
        self._check_precision()
        labels = self.check_classes([classes] if isinstance(classes, str) else classes)
        alone = is_image(images)
        pixels = [to_pixels(images)] if alone else all_to_pixels(images)
        tiling = self.tiling if tile is None else Tiling(tile, overlap)
        writer = self._writer()
        if tiling is not None:
            results = [
                Result(self._in_tiles(InMemory(image), tiling, threshold=threshold, labels=labels), writer)
                for image in pixels
            ]
            return results[0] if alone else results
        batch, image_sizes = prepare(pixels, self.transforms)
        device = next(self.parameters()).device
        original_sizes = [(image.shape[1], image.shape[2]) for image in pixels]
        outputs = self.head.select(self._detect(batch.to(device), image_sizes), threshold=threshold, labels=labels)
        results = [Result(found, writer) for found in self.head.restore(outputs, image_sizes, original_sizes)]
        return results[0] if alone else results

    @torch.inference_mode()
    def predict_parts(
        self, image: Pixels, tiling: Tiling, *, threshold: float = 0.0, classes: Sequence[str] | None = None
    ) -> Result:
        """The result of an image that need not be in memory, masks as `rles`. Arguments and errors as of `predict`."""
        self._check_precision()
        labels = self.check_classes(classes)
        return Result(self._in_tiles(image, tiling, threshold=threshold, labels=labels, encoded=True), self._writer())

    def _in_tiles(
        self,
        image: Pixels,
        tiling: Tiling,
        *,
        threshold: float = 0.0,
        labels: list[int] | None = None,
        encoded: bool = False,
    ) -> dict[str, Any]:
        if self.transforms is None:
            raise ConfigError(_NO_TRANSFORMS)
        device = next(self.parameters()).device

        def look(batch: Tensor, image_sizes: list[tuple[int, int]]) -> Any:
            return self.head.select(self._detect(batch.to(device), image_sizes), threshold=threshold, labels=labels)

        merger, together = self.head.merge_tiles(image.size), 1 if host.is_host(device) else TILES_AT_ONCE
        see_in_tiles(look, image, tiling, merger, self.transforms, together=together)
        return merger.result(encoded=encoded)

    def draw(self, image: ImageInput, result: dict[str, Tensor]) -> Image.Image:
        """A picture of an image and the result that `predict` found for it. Raises DataError as `predict` does."""
        return self._writer().draw(to_pixels(image), result)

    @property
    def names(self) -> list[str]:
        """The name of every class, in label order: `class_names`, or numbers where these are not known."""
        count = self.config.head.num_classes
        return self.class_names if len(self.class_names) == count else [f"class {label}" for label in range(count)]

    @property
    def finds_objects(self) -> bool:
        """Whether results are objects, for which no map of the image's size is made."""
        return self.head.finds_objects

    def _writer(self) -> ResultWriter:
        return self.config.head.build_writer(self.names, score_threshold=0.0)

    def check_classes(self, classes: Sequence[str] | None) -> list[int] | None:
        """The labels of classes by their names; None for None. Raises ConfigError for a name that there is not."""
        for name in classes or ():
            if name not in self.names:
                hint = nearest(str(name), self.names) or f"there are {first_few(self.names)}"
                raise ConfigError(f"the model knows no class '{visible(str(name))}'; {hint}")
        return None if classes is None else [self.names.index(name) for name in classes]

    def _check_precision(self) -> None:
        dtypes = {parameter.dtype for parameter in self.parameters()}
        if torch.float32 not in dtypes or dtypes - {torch.float32, torch.bfloat16}:
            found = ", ".join(sorted(str(dtype).removeprefix("torch.") for dtype in dtypes))
            raise ConfigError(
                f"the weights of this model are {found}, in which it does not compute; model.float() undoes that, and "
                "piip.precision.prepare(model, torch.bfloat16) makes a model for inference in lower precision"
            )

    def _detect(self, images: Tensor, image_sizes: Sequence[tuple[int, int]]) -> Any:
        """Runs backbone, neck and head on every view of the images; returns what `Head.restore` takes."""
        if self.head.several_views:
            how = self._normalisation(images, image_sizes)
            (images,) = pyramid_resize(images, scale_factors=[1.0], **how)
        views = self.head.views(images, list(image_sizes))
        for view, view_sizes in views:
            views.add(self._detect_once(view, view_sizes))
        return views.outputs()

    def _detect_once(self, images: Tensor, image_sizes: list[tuple[int, int]]) -> Any:
        """The head's outputs for one view; its maps, which are large, are gone before the next one is run."""
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
                branch.load_pretrained(config.init, head=self._pretrained_head(index))

    def layer_ids(self) -> dict[str, int]:
        """Layer of every parameter that layer-wise learning-rate decay scales; all others train at the full rate."""
        return {f"backbone.{name}": layer for name, layer in self.backbone.layer_ids().items()}

    def new_parameters(self) -> set[str]:
        """Names of the parameters that no pretrained network of a branch has."""
        branches = list(self.backbone.branches)
        heads = [part for index in range(len(branches)) for part in self._pretrained_head(index).values()]
        known = [*branches, *heads]
        pretrained = {id(parameter) for part in known for parameter in part.parameters()}
        return {name for name, parameter in self.named_parameters() if id(parameter) not in pretrained}

    def _pretrained_head(self, index: int) -> dict[str, nn.Module]:
        """The parts of the head that a branch's pretrained network has; none behind a merge of several branches."""
        merged = self.backbone.merge is not None and len(self.backbone.branches) > 1
        return {} if merged else self.head.pretrained(index)

    @property
    def num_layers(self) -> int:
        """Layers counted by learning-rate decay: the embedding, the deepest branch's blocks, and everything behind."""
        return self.backbone.depth + 2


def draw(image: ImageInput, result: Result) -> Image.Image:
    """A picture of an image and what `Model.predict` found on it. Raises DataError for anything else."""
    if not isinstance(result, Result):
        raise DataError(
            f"draw takes the result of one image from model.predict, not {type(result).__name__}; model.draw(image, "
            "result) takes any dict that holds the same"
        )
    return result.writer.draw(to_pixels(image), result)
