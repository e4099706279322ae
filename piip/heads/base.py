"""What a model knows of its head. A new head needs `loss`, `detect` and `restore`; everything else has a default."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator
from typing import Any, NamedTuple

from torch import Tensor, nn

from piip.errors import ConfigError
from piip.heads.tiles import TileMerger

# (h, w) of every image of a batch.
Sizes = list[tuple[int, int]]


class Views:
    """The views of a batch that the network is run on, one after the other, and the head's outputs for all of them.

    Iteration gives the images (B, 3, H, W) of a view and their valid (h, w); what `Head.detect` returns for them goes
    to `add` before the next view is asked for. After the last one, `outputs` returns what `Head.restore` takes.
    Here the batch itself is the only view.
    """

    def __init__(self, images: Tensor, image_sizes: Sizes) -> None:
        self.images, self.image_sizes = images, image_sizes
        self._added: Any = None

    def __iter__(self) -> Iterator[tuple[Tensor, Sizes]]:
        yield self.images, self.image_sizes

    def add(self, outputs: Any) -> None:
        """Takes the head's outputs for the view that was given last."""
        self._added = outputs

    def outputs(self) -> Any:
        """The head's outputs for the batch."""
        return self._added


class Exported(NamedTuple):
    """What an exported program returns.

    tensors: by name, in order. rows: whether each is a row per object, behind the batch where there is one, in an order
    that means nothing: small errors may change it.
    """

    tensors: dict[str, Tensor]
    rows: bool


class Head(nn.Module):
    """Turns the maps of a neck into losses and results; one per task.

    `features` are maps (B, C, H/s, W/s), finest first; on a backbone without merge the `Tokens` of every branch.
    `image_sizes` are the valid (h, w) of each image in the batch, beyond which it is padding.
    """

    # Whether `loss` and `detect` stay under the caller's autocast and choose themselves what must be float32.
    mixed_precision = False
    # Whether `views` makes images of its own, for which they must be normalised already.
    several_views = False
    # Whether results are objects, for which no map of the image's size is made.
    finds_objects = False

    @abstractmethod
    def loss(self, features: list[Any], image_sizes: Sizes, targets: list[dict[str, Tensor]]) -> dict[str, Tensor]:
        """Scalar losses by name, whose sum is trained on. targets: one per image, in batch pixels."""

    @abstractmethod
    def detect(self, features: list[Any], image_sizes: Sizes) -> Any:
        """The outputs of the network for a batch, in the form that `restore` takes."""

    @abstractmethod
    def restore(self, outputs: Any, image_sizes: Sizes, original_sizes: Sizes) -> Any:
        """The results of `detect`, one per image, brought from its valid (h, w) in the batch to its original (h, w)."""

    def select(self, outputs: Any, *, threshold: float, labels: list[int] | None) -> Any:
        """The outputs of `detect` for objects with at least this score and, unless None, one of these labels.

        Heads that find no objects keep all outputs, and refuse labels with a ConfigError.
        """
        if labels is not None:
            raise ConfigError("classes are chosen among detected objects; this model says something of every class")
        return outputs

    def restore_encoded(self, outputs: Any, image_sizes: Sizes, original_sizes: Sizes) -> Any:
        """The results of `restore`, with compressed run lengths, `rles`, instead of masks, whose pixels are many."""
        return self.restore(outputs, image_sizes, original_sizes)

    def in_batch(self, outputs: Any, image_sizes: Sizes) -> Any:
        """The results in batch pixels, as `Model.infer` returns them."""
        return self.restore(outputs, image_sizes, image_sizes)

    def export(self, features: list[Any], size: tuple[int, int], *, final: bool) -> Exported:
        """What a program that is exported computes; the shapes of all tensors follow from those of the features.

        size: (h, w) of every image, none of which is padded. final: results as of `detect`, of one image, in its
        pixels; else the outputs of the network for every image of a batch, from which results are chosen.
        Raises ConfigError for a head that does not say this.
        """
        raise ConfigError(f"a head of the type {type(self).__name__} cannot be exported: it has no method `export`")

    def merge_tiles(self, size: tuple[int, int]) -> TileMerger:
        """What makes one result of those of the tiles of an image of size (h, w).

        Raises ConfigError for heads whose results are no matter of places.
        """
        raise ConfigError("tiles are for results that have a place in the image; leave out --tile")

    def views(self, images: Tensor, image_sizes: Sizes) -> Views:
        """The views of images (B, 3, H, W) that the network is run on: the images as they are, unless overridden."""
        return Views(images, image_sizes)

    def pretrained(self, branch: int) -> dict[str, nn.Module]:
        """The modules of this head that the pretrained network of a branch has too: its final `norm` and its `head`."""
        return {}

    def class_layers(self) -> dict[nn.Module, int]:
        """The layers whose weights depend on the classes -> how many of their rows each class has.

        Rows count along the first dimension of the layers' parameters, in label order; rows behind those of the last
        class, such as that of the background, belong to no class. Fine-tuning carries the rows of classes over by name.
        """
        return {}

    def parts(self) -> dict[str, str]:
        """The parts that a count of FLOPs tells apart: label -> name of the submodule, "" for the head as a whole."""
        return {f"{name} head": name for name, _ in self.named_children()}

    def run_for_count(self, features: list[Any], image_sizes: Sizes) -> None:
        """Runs what inference runs, for a count of its FLOPs on the meta device, whose tensors have no values.

        A head whose work depends on what it finds runs at its limits.
        """
        self.detect(features, image_sizes)
