"""The digest by which data are known as the same, wherever they lie."""

from __future__ import annotations

import json
from hashlib import sha256

from piip.data.sets.base import ImageDataset

_BLOCK = 1 << 20


def fingerprint(dataset: ImageDataset) -> str:
    """A digest of a data set's images, by number, id and shape, of its classes, and of its annotation file.

    No path is part of it, and neither are the pixels, which would all have to be read.
    """
    ids = [dataset.image_id(index) for index in range(len(dataset))]
    digest = sha256(json.dumps([dataset.class_names, ids]).encode())
    digest.update(dataset.aspect_ratios.tobytes())
    if dataset.source.is_file():
        with dataset.source.open("rb") as file:
            while block := file.read(_BLOCK):
                digest.update(block)
    return digest.hexdigest()
