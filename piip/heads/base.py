"""What a model knows of its head."""

from __future__ import annotations

from abc import abstractmethod
from typing import Any

from torch import Tensor, nn


class Head(nn.Module):
    """Turns the maps of a neck into losses and results; one a task."""

    # Whether `loss` and `detect` stay under the caller's autocast and say themselves what must be float32.
    mixed_precision = False
    # Whether `loss` needs the masks of objects.
    needs_masks = False

    @abstractmethod
    def loss(
        self, features: list[Tensor], image_sizes: list[tuple[int, int]], targets: list[dict[str, Tensor]]
    ) -> dict[str, Tensor]:
        """Scalar losses by name, whose sum is trained on.

        features: maps (B, C, H/s, W/s), finest first; image_sizes: valid (h, w) of each image in the batch; targets:
        one an image, in batch pixels.
        """

    @abstractmethod
    def detect(self, features: list[Tensor], image_sizes: list[tuple[int, int]]) -> Any:
        """What the network says of a batch, in the form that `restore` takes."""

    @abstractmethod
    def restore(self, outputs: Any, image_sizes: list[tuple[int, int]], original_sizes: list[tuple[int, int]]) -> Any:
        """The results of `detect`, brought from each image's valid (h, w) in the batch to its original (h, w)."""
