"""Prediction on image files: overlays to look at, and one JSON file of results."""

from __future__ import annotations

import glob
import logging
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from torch import Tensor

from piip.config import Config
from piip.data import known_class_names
from piip.data.files import IRREGULAR, UNREAD, ending_of, list_folder
from piip.data.images import IMAGE_SUFFIXES, MAX_IMAGE_PIXELS, UNREAD_SUFFIXES, read_image
from piip.data.report import Report
from piip.engine.checkpoint import load_weights
from piip.engine.device import choose_device, compute_dtype, tf32
from piip.engine.log import Bar, logging_to
from piip.errors import DataError, PiipError, first_few
from piip.files import to_json, write_file
from piip.model import build_model
from piip.precision import prepare
from piip.results import build_writer

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Prediction:
    """Of one image: its file, the overlay drawn, what was found and that in words; error if it could not be read.

    found: class name -> objects (detection), share of the pixels (segmentation) or score (classification).
    """

    image: Path
    overlay: Path | None = None
    found: dict[str, float] = field(default_factory=dict)
    words: str = ""
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
    What predictions.json holds is said by the writers in `piip.results`.
    An image that cannot be read is reported and left out. Raises DataError if none can, or if an image would be
    overwritten, and the kinds of PiipError.
    """
    files = find_images(images)
    overlays = _overlay_paths(files, output)
    _check_inputs_stay(files, overlays)
    with logging_to() as console:
        target = choose_device(device)
        model = build_model(config.model)
        model.transforms = config.data.val_transforms
        loaded = load_weights(model, weights)
        count = config.model.head.num_classes
        names = loaded.class_names or known_class_names(config.data.val) or []
        names = names if len(names) == count else [f"class {label}" for label in range(count)]
        prepare(model.to(target), compute_dtype(target, config.train.precision))
        limit = getattr(config.data.val, "max_image_pixels", MAX_IMAGE_PIXELS)
        writer = build_writer(model.head.task, names, score_threshold=score_threshold)
        predictions: list[Prediction] = []
        try:
            output.mkdir(parents=True, exist_ok=True)
            with tf32(config.train.tf32), Bar(console, "predicting", total=len(files)) as bar:
                for file, overlay in zip(files, overlays):
                    image = _read(file, limit)
                    if isinstance(image, DataError):
                        predictions.append(Prediction(file, error=str(image)))
                        continue
                    (result,) = model.predict([image])
                    stem = overlay.with_suffix("")
                    found = writer.add(file, image, result, stem)
                    predictions.append(Prediction(file, overlay, found, writer.describe(found)))
                    bar.advance()
            write_file(output / "predictions.json", to_json(writer.document))
        except OSError as error:
            raise PiipError(f"cannot write to {output}: {error.strerror or error}") from None
    if all(prediction.error for prediction in predictions):
        raise DataError(f"none of the {len(files)} images can be read; the first: {predictions[0].error}")
    return predictions


def find_images(paths: Sequence[str | Path]) -> list[Path]:
    """The image files behind files, folders (not their subfolders) and patterns, each once, in the given order.

    In folders names that begin with a dot are passed over, and with a warning what is no regular file and images of
    formats that are not read. Raises DataError for what is not there, and for folders and patterns without images.
    """
    found: list[Path] = []
    passed_over = Report(first_few([str(path) for path in paths]))
    for given in map(Path, paths):
        if given.is_dir():
            listing = list_folder(given, IMAGE_SUFFIXES | UNREAD_SUFFIXES)
            candidates = [given / name for name in listing.files]
            for name in listing.irregular:
                passed_over.add(IRREGULAR, name)
        elif given.is_file():
            found.append(given)
            continue
        elif glob.has_magic(str(given)):
            candidates = [path for path in map(Path, sorted(glob.glob(str(given), recursive=True))) if path.is_file()]
        elif given.exists():
            raise DataError(f"{given} is neither a file nor a folder")
        else:
            raise DataError(f"image not found: {given}")
        matches = [path for path in candidates if ending_of(path.name) in IMAGE_SUFFIXES]
        for path in candidates:
            if ending_of(path.name) in UNREAD_SUFFIXES:
                passed_over.add(UNREAD, path.name)
        if not matches:
            raise DataError(f"no images in {given}; looked for {', '.join(sorted(IMAGE_SUFFIXES))}")
        found += matches
    if passed_over.counts:
        _log.warning("%s", passed_over)
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


def _check_inputs_stay(files: Sequence[Path], overlays: Sequence[Path]) -> None:
    """Raises DataError if an overlay, or a PNG that a writer puts beside it, would take the place of an image."""
    given = {file.resolve() for file in files}
    for overlay in overlays:
        for suffix in (".jpg", ".png"):
            path = overlay.with_name(f"{overlay.stem}{suffix}")
            if path.resolve() in given:
                raise DataError(f"the prediction would overwrite the image {path}; choose another --output")
