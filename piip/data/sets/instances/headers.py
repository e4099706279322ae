"""Whether image files have the sizes that annotations say, as far as their headers tell, before anything is trained."""

from __future__ import annotations

from contextlib import suppress

import numpy as np
from numpy.typing import NDArray

from piip.data.images import read_pixels, read_size, size_fault
from piip.data.sets.instances.records import ImageRecord, Instances
from piip.errors import DataError

# Headers that are read before training; of larger sets every so many images. A minute on a slow disk.
_MOST = 10_000


def check_headers(found: Instances, *, max_pixels: int) -> None:
    """Adds images of another size than annotated to the findings, as errors.

    Images that cannot be read are told when it is their turn: training takes others, evaluation counts them as missed.
    """
    step = -(-len(found.images) // _MOST) or 1
    for image in found.images[::step]:
        with suppress(DataError):
            if read_size(found.folder / image.file_name, max_pixels) != (image.height, image.width):
                check_size(found, image, read_pixels(found.folder / image.file_name))


def check_size(found: Instances, image: ImageRecord, pixels: NDArray[np.uint8]) -> None:
    """Tells of an image (H, W, 3) whose size is not that of the annotations."""
    size, wanted = pixels.shape[:2], (image.height, image.width)
    if size != wanted:
        what = size_fault(found.folder / image.file_name, size, wanted, found.source)
        found.findings.add("image of another size than annotated", what, "error")
