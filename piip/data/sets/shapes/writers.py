"""The generated set on the disk, whole or not there: as instances, label maps or crops of single objects.

An image is a function of (seed, split, number), so that a set is the same wherever it is made.
"""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from pycocotools import mask as mask_utils

from piip.conventions import JPEG_QUALITY
from piip.data.sets.shapes.config import CLASS_NAMES, ShapesData
from piip.data.sets.shapes.drawing import draw_crop, draw_image
from piip.data.transforms.sample import generator
from piip.errors import PiipError
from piip.files import making, sync
from piip.signals import check_stop

logger = logging.getLogger(__name__)


def write_once(config: ShapesData) -> None:
    """Makes sure that the folder of a set exists.

    It is drawn in a temporary folder, renamed at the end, so several processes may ask for it at once. One that a
    killed process left behind is removed.
    Raises PiipError when the files cannot be written, Stopped or KeyboardInterrupt where a signal asks for it.
    """
    if config.folder.is_dir():
        return
    logger.info("drawing images of shapes in %s", config.folder)
    try:
        config.root.mkdir(parents=True, exist_ok=True)
        with making(config.folder) as temporary:
            _WRITERS[config.form](config, temporary)
    except OSError as error:
        raise PiipError(f"cannot write the generated images to {config.folder}: {error.strerror or error}") from None


def _generator(config: ShapesData, number: int) -> np.random.Generator:
    """The random stream of an image: the split is part of its key, so training and evaluation never share one."""
    return generator(config.seed, ("train", "val").index(config.split), number)


def _write_instances(config: ShapesData, folder: Path) -> None:
    """Draws the set into the folder images, with annotations.json beside it."""
    (folder / "images").mkdir()
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    for number in range(config.images):
        image_id, file_name = number + 1, f"{number + 1:06d}.jpg"
        picture, objects = draw_image(config.size, _generator(config, number))
        _save(picture, folder / "images" / file_name)
        images.append({"id": image_id, "file_name": file_name, "height": config.size, "width": config.size})
        for label, visible in objects:
            annotations.append({"id": len(annotations) + 1, "image_id": image_id, **_describe(label, visible)})
    categories = [{"id": label + 1, "name": name} for label, name in enumerate(CLASS_NAMES)]
    text = json.dumps({"images": images, "annotations": annotations, "categories": categories})
    (folder / "annotations.json").write_text(text, encoding="utf-8")
    sync(folder / "annotations.json")


def _describe(label: int, visible: NDArray[np.bool_]) -> dict[str, Any]:
    rle = mask_utils.encode(np.asfortranarray(visible, dtype=np.uint8))
    return {
        "category_id": label + 1,
        "bbox": mask_utils.toBbox(rle).tolist(),
        "area": float(mask_utils.area(rle)),
        "iscrowd": 0,
        "segmentation": {"size": rle["size"], "counts": rle["counts"].decode()},
    }


def _write_label_maps(config: ShapesData, folder: Path) -> None:
    """Draws the set into the folders images and labels; 0 is the background."""
    (folder / "images").mkdir()
    (folder / "labels").mkdir()
    for number in range(config.images):
        picture, objects = draw_image(config.size, _generator(config, number))
        labels = np.zeros((config.size, config.size), dtype=np.uint8)
        for label, visible in objects:
            labels[visible] = 1 + label
        _save(picture, folder / "images" / f"{number + 1:06d}.jpg")
        _save(Image.fromarray(labels), folder / "labels" / f"{number + 1:06d}.png")


def _write_crops(config: ShapesData, folder: Path) -> None:
    """Draws one crop per image of the set, in a folder for every class."""
    for name in CLASS_NAMES:
        (folder / name).mkdir()
    for number in range(config.images):
        picture, label = draw_crop(config.size, _generator(config, number))
        _save(picture, folder / CLASS_NAMES[label] / f"{number + 1:06d}.jpg")


_WRITERS = {"instances": _write_instances, "label_maps": _write_label_maps, "crops": _write_crops}


def _save(image: Image.Image, path: Path) -> None:
    """Writes an image and waits until it is on the disk."""
    check_stop()  # a set may take minutes
    image.save(path, quality=JPEG_QUALITY)
    sync(path)
