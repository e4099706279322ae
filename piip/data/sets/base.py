"""What the engine knows of a data set."""

from __future__ import annotations

from abc import abstractmethod
from itertools import zip_longest
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset

from piip.conventions import ImageId
from piip.data.findings import Findings
from piip.errors import ConfigError, DataError, first_few, visible


class ImageDataset(Dataset[dict[str, Any]]):
    """Images with what is to be learned of them; a subclass reads one format.

    class_names: one per class, in label order. source: the file or folder that messages name. report: what was dropped,
    clipped or replaced. aspect_ratios: height / width per image; images of like shape share a batch. provides: the
    entries of its targets.
    """

    class_names: list[str]
    source: Path
    report: Findings
    aspect_ratios: NDArray[np.float64]
    provides: frozenset[str]

    @abstractmethod
    def __len__(self) -> int: ...

    @abstractmethod
    def image_id(self, index: int) -> ImageId:
        """What messages and results know the image by: its number in the annotations, or its file."""

    def file_name(self, index: int) -> str:
        """The file that an image comes from, as reports name it; by default its id."""
        return str(self.image_id(index))

    @abstractmethod
    def image(self, index: int) -> Tensor:
        """The image, uint8 RGB (3, H, W), upright. Raises DataError when it cannot be used."""

    @abstractmethod
    def target(self, index: int) -> dict[str, Tensor]:
        """What is to be learned, in pixels of the original image, by the names in `provides`."""

    def truth(self, index: int) -> dict[str, Any]:
        """What metrics compare the result of an image with, in pixels of the original image; by default the target.

        Loader processes read it in evaluation and hand it over with the batch, tensors as numpy arrays.
        """
        return self.target(index)

    def __getitem__(self, index: int) -> dict[str, Any]:
        """`image`, `image_id` and `target`, untransformed."""
        return {"image": self.image(index), "image_id": self.image_id(index), "target": self.target(index)}


def check_classes(num_classes: int, dataset: ImageDataset) -> None:
    """Raises ConfigError when a head for `num_classes` classes does not fit the data."""
    names = dataset.class_names
    if num_classes != len(names):
        raise ConfigError(
            f"model.head.num_classes is {num_classes}, but {dataset.source} has {len(names)} classes "
            f"({first_few(names)}); set model.head.num_classes={len(names)}"
        )


def check_same_classes(train: ImageDataset, val: ImageDataset) -> None:
    """Raises DataError when training and evaluation data number their classes differently."""
    for label, (a, b) in enumerate(zip_longest(train.class_names, val.class_names)):
        if a != b:
            names = (f"'{visible(name)}'" if name is not None else "missing" for name in (a, b))
            raise DataError(
                f"class {label} is {next(names)} in {train.source} and {next(names)} in {val.source}; "
                "give both the same categories"
            )


def check_targets(needs: frozenset[str], dataset: ImageDataset) -> None:
    """Raises DataError when a head learns from what the data does not have, such as masks."""
    missing = sorted(needs - dataset.provides)
    if missing:
        has = ", ".join(sorted(dataset.provides)) or "nothing to learn from"
        boxes = "; for boxes alone set model.head.masks=false, or take {type: dino} (base/dino)"
        raise DataError(
            f"{dataset.source} has {has}, but this model's head learns from {', '.join(missing)} too; choose data that "
            f"fit the head, or a head that fits the data{boxes if missing == ['masks'] else ''}"
        )
