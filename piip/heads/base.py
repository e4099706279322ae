"""What a model knows of its head."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torchvision.ops import clip_boxes_to_image


class Head(nn.Module):
    """Turns the maps of a neck into losses and results; one a task."""

    # Whether `loss` and `detect` stay under the caller's autocast and say themselves what must be float32.
    mixed_precision = False
    # What its results are; it decides how they are written and drawn.
    task: Literal["detection", "segmentation", "classification"]
    # Whether `view` makes images of its own, for which they must be normalised already.
    several_views = False
    # The entries of a target that `loss` learns from.
    needs: frozenset[str]

    def pretrained(self, branch: int) -> dict[str, nn.Module]:
        """What the pretrained network of a branch has of this head: its final `norm` and classifier, `head`, if any."""
        return {}

    def parts(self) -> dict[str, str]:
        """The parts that a count of FLOPs tells apart: label -> name of the submodule, "" for the head as a whole."""
        return {f"{name} head": name for name, _ in self.named_children()}

    def run_for_count(self, features: list[Tensor], image_sizes: list[tuple[int, int]]) -> None:
        """Runs what inference runs, for a count of its FLOPs on the meta device, whose tensors have no values.

        A head whose work depends on what it finds runs at its limits.
        """
        self.detect(features, image_sizes)

    @abstractmethod
    def loss(
        self, features: list[Tensor], image_sizes: list[tuple[int, int]], targets: list[dict[str, Tensor]]
    ) -> dict[str, Tensor]:
        """Scalar losses by name, whose sum is trained on.

        features: maps (B, C, H/s, W/s), finest first; image_sizes: valid (h, w) of each image in the batch; targets:
        one an image, in batch pixels.
        """

    def view(
        self, detect: Callable[[Tensor, list[tuple[int, int]]], Any], images: Tensor, image_sizes: list[tuple[int, int]]
    ) -> Any:
        """How images (B, 3, H, W) are looked at: at once, unless a head wants several views of them.

        detect: runs the network on images and their valid sizes; what it returns is this head's `detect`.
        """
        return detect(images, image_sizes)

    @abstractmethod
    def detect(self, features: list[Tensor], image_sizes: list[tuple[int, int]]) -> Any:
        """What the network says of a batch, in the form that `restore` takes."""

    def in_batch(self, outputs: Any, image_sizes: list[tuple[int, int]]) -> Any:
        """The results of `view` in batch pixels, as `Model.infer` returns them."""
        return self.restore(outputs, image_sizes, image_sizes)

    @abstractmethod
    def restore(self, outputs: Any, image_sizes: list[tuple[int, int]], original_sizes: list[tuple[int, int]]) -> Any:
        """The results of `detect`, brought from each image's valid (h, w) in the batch to its original (h, w)."""

    def restore_encoded(
        self, outputs: Any, image_sizes: list[tuple[int, int]], original_sizes: list[tuple[int, int]]
    ) -> Any:
        """The results of `restore`, but `rles`, compressed run lengths, in place of masks, whose pixels are many."""
        return self.restore(outputs, image_sizes, original_sizes)


def restore_boxes(boxes: Tensor, image_size: tuple[int, int], original_size: tuple[int, int]) -> Tensor:
    """Boxes (n, 4) xyxy, in pixels of an image resized to image_size (h, w), in those of its original_size (h, w)."""
    scale = torch.tensor([image_size[1] / original_size[1], image_size[0] / original_size[0]] * 2)
    return clip_boxes_to_image(boxes / scale.to(boxes.device, non_blocking=True), original_size)
