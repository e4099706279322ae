"""Prediction on image files: overlays to look at, and one JSON file of results."""

from __future__ import annotations

import glob
import logging
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from pycocotools import mask as mask_utils
from torch import Tensor

from piip.config import Config
from piip.data.images import MAX_IMAGE_PIXELS, read_image
from piip.engine.checkpoint import load_weights
from piip.engine.device import autocast, choose_device
from piip.engine.draw import draw_detections
from piip.engine.files import replacing, to_json, write_file
from piip.engine.log import Bar, logging_to
from piip.errors import DataError, PiipError
from piip.model import build_model

_SUFFIXES = {".jpg", ".jpeg", ".png", ".bmp", ".gif", ".ppm", ".pgm", ".tif", ".tiff", ".webp", ".avif"}
_JPEG_QUALITY = 92

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Prediction:
    """Of one image: its file, the overlay drawn, how many objects of each class; error if it could not be read."""

    image: Path
    overlay: Path | None = None
    counts: dict[str, int] = field(default_factory=dict)
    error: str | None = None


def run_prediction(
    config: Config,
    images: Sequence[str | Path],
    *,
    weights: Path,
    output: Path,
    score_threshold: float = 0.3,
    device: str | None = None,
) -> list[Prediction]:
    """Predicts on images, one by one; writes an overlay for each, and predictions.json, into `output`.

    images: files, folders, and patterns with wildcards. weights: a run, a checkpoint or a weight file.
    predictions.json holds images, categories and annotations in COCO's form: bbox [x, y, width, height] in pixels of
    the upright image, segmentation as compressed run lengths, score, and the label as category_id.
    An image that cannot be read is reported and left out. Raises DataError if none can, and the kinds of PiipError.
    """
    files = find_images(images)
    with logging_to() as console:
        target = choose_device(device)
        model = build_model(config.model)
        model.transforms = config.data.val_transforms
        loaded = load_weights(model, weights)
        names = loaded.class_names or [f"class {label}" for label in range(config.model.head.num_classes)]
        model.to(target).eval()
        limit = getattr(config.data.val, "max_image_pixels", MAX_IMAGE_PIXELS)
        categories = [{"id": label, "name": name} for label, name in enumerate(names)]
        document: dict[str, Any] = {"images": [], "categories": categories, "annotations": []}
        predictions: list[Prediction] = []
        try:
            output.mkdir(parents=True, exist_ok=True)
            with Bar(console, "predicting", total=len(files)) as bar:
                for file, overlay in zip(files, _overlay_paths(files, output)):
                    image = _read(file, limit)
                    if isinstance(image, DataError):
                        predictions.append(Prediction(file, error=str(image)))
                        continue
                    with autocast(target, config.train.precision):
                        result = _keep(model.predict([image])[0], score_threshold)
                    _add(document, file, image, result)
                    with replacing(overlay) as temporary:
                        draw_detections(image, result, names).save(temporary, "JPEG", quality=_JPEG_QUALITY)
                    counts = Counter(names[label] for label in result["labels"].tolist())
                    predictions.append(Prediction(file, overlay, dict(counts)))
                    bar.advance()
            write_file(output / "predictions.json", to_json(document))
        except OSError as error:
            raise PiipError(f"cannot write to {output}: {error.strerror or error}") from None
    if all(prediction.error for prediction in predictions):
        raise DataError(f"none of the {len(files)} images can be read; the first: {predictions[0].error}")
    return predictions


def find_images(paths: Sequence[str | Path]) -> list[Path]:
    """The image files behind files, folders (not their subfolders) and patterns, each once, in the given order.

    Raises DataError for what is not there, and for folders and patterns without images.
    """
    found: list[Path] = []
    for given in map(Path, paths):
        if given.is_dir():
            matches = sorted(path for path in given.iterdir() if path.suffix.lower() in _SUFFIXES)
        elif given.is_file():
            matches = [given]
        elif glob.has_magic(str(given)):
            names = sorted(glob.glob(str(given), recursive=True))
            matches = [path for path in map(Path, names) if path.suffix.lower() in _SUFFIXES]
        else:
            raise DataError(f"image not found: {given}")
        if not matches:
            raise DataError(f"no images in {given}; looked for {', '.join(sorted(_SUFFIXES))}")
        found += matches
    return list(dict.fromkeys(found))


def _read(file: Path, limit: int) -> Tensor | DataError:
    """The image, or why it is left out."""
    try:
        return read_image(file, limit)
    except DataError as error:
        _log.warning("left out: %s", error)
        return error


def _overlay_paths(files: Sequence[Path], output: Path) -> list[Path]:
    """A name for each overlay; images of the same name from different folders get numbers."""
    seen: Counter[str] = Counter()
    paths = []
    for file in files:
        seen[file.stem] += 1
        number = f"_{seen[file.stem]}" if seen[file.stem] > 1 else ""
        paths.append(output / f"{file.stem}{number}.jpg")
    return paths


def _keep(result: dict[str, Tensor], score_threshold: float) -> dict[str, Tensor]:
    kept = result["scores"] >= score_threshold
    return {name: value[kept].cpu() for name, value in result.items()}


def _add(document: dict[str, Any], file: Path, image: Tensor, result: dict[str, Tensor]) -> None:
    """Adds an image and its detections to the document."""
    image_id = len(document["images"]) + 1
    height, width = image.shape[1:]
    document["images"].append({"id": image_id, "file_name": str(file), "width": width, "height": height})
    rles = [None] * len(result["scores"])
    if "masks" in result:
        rles = mask_utils.encode(np.asfortranarray(result["masks"].numpy().transpose(1, 2, 0).astype(np.uint8)))
    for box, score, label, rle in zip(
        result["boxes"].tolist(), result["scores"].tolist(), result["labels"].tolist(), rles
    ):
        entry: dict[str, Any] = {
            "id": len(document["annotations"]) + 1,
            "image_id": image_id,
            "category_id": label,
            "bbox": [box[0], box[1], box[2] - box[0], box[3] - box[1]],
            "score": score,
        }
        if rle is not None:
            entry |= {
                "area": float(mask_utils.area(rle)),
                "segmentation": {"size": list(rle["size"]), "counts": rle["counts"].decode()},
            }
        document["annotations"].append(entry)
