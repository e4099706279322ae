"""Prediction on image files: overlays to look at, and one JSON file of results."""

from __future__ import annotations

import glob
import logging
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from torch import Tensor

from piip.config.experiment import Config
from piip.data.findings import Findings
from piip.data.folders import IRREGULAR, UNREAD, ending_of, list_folder
from piip.data.images import IMAGE_SUFFIXES, UNREAD_SUFFIXES, read_image
from piip.engine.device import choose_device, tf32
from piip.engine.log import Bar, logging_to
from piip.errors import DataError, PiipError, first_few
from piip.files import check_outputs, to_json, write_file
from piip.load import load_model
from piip.signals import StopSignals

_RESULTS = "predictions.json"

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Prediction:
    """What was predicted on one image.

    overlay: the picture that was drawn. found: class name -> number of objects (detection), share of the pixels
    (segmentation) or score (classification). words: the same in words. error: why the image could not be read.
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
    """Predicts on images one by one, and writes an overlay for each, and predictions.json, into `output`.

    images: files, folders, and patterns with wildcards. weights: a run, a checkpoint or a weight file. score_threshold:
    objects with a lower score, from 0 to 1, are left out. device: 'auto' (or None), 'cpu', 'cuda' or 'cuda:N'.
    The writers in `piip.results` describe what predictions.json holds.
    An image that cannot be read is reported and left out. After a signal or on a full disk, the results so far are
    written before the error is raised. Raises DataError if no image can be read, or if an image would be overwritten;
    Stopped after SIGTERM; KeyboardInterrupt after Ctrl-C; and the other kinds of PiipError.
    """
    files = find_images(images)
    overlays = _overlay_paths(files, output)
    labels = [overlay.with_suffix(".png") for overlay in overlays]
    check_outputs([output / _RESULTS, *overlays, *labels], [*files, weights])
    with logging_to() as console:
        target = choose_device(device)
        model = load_model(config, weights, device=target, precision=config.train.precision)
        count = config.model.head.num_classes
        names = model.class_names or config.data.val.known_class_names() or []
        names = names if len(names) == count else [f"class {label}" for label in range(count)]
        limit = config.data.val.max_image_pixels
        writer = config.model.head.build_writer(names, score_threshold=score_threshold)
        predictions: list[Prediction] = []
        failure: OSError | None = None
        stop = StopSignals()
        try:
            output.mkdir(parents=True, exist_ok=True)
            with stop, tf32(config.train.tf32), Bar(console, "predicting", total=len(files)) as bar:
                for file, overlay in zip(files, overlays):
                    if stop.requested:
                        break
                    image = _read(file, limit)
                    if isinstance(image, DataError):
                        predictions.append(Prediction(file, error=str(image)))
                    else:
                        (result,) = model.predict([image])
                        found = writer.add(file, image, result, overlay)
                        predictions.append(Prediction(file, overlay, found, writer.describe(found)))
                    bar.advance()
        except OSError as error:
            failure = error
        progress = f"stopped after {len(predictions)} of {len(files)} images"
        try:
            write_file(output / _RESULTS, to_json(writer.document))
            progress += f"; results are in {output}"
        except OSError as error:
            failure = failure or error
            progress += f"; {_RESULTS} could not be written"
        if failure is not None:
            raise PiipError(f"cannot write to {output}: {failure.strerror or failure}; {progress}") from None
        if stop.requested and len(predictions) < len(files):
            raise stop.error(stop.requested, progress)
    if all(prediction.error for prediction in predictions):
        raise DataError(f"none of the {len(files)} images can be read; the first: {predictions[0].error}")
    return predictions


def find_images(paths: Sequence[str | Path]) -> list[Path]:
    """The image files that files, folders (without their subfolders) and patterns name, each once, in the given order.

    In folders, names that begin with a dot are passed over; so are, with a warning, entries that are no regular files
    and images of formats that are not read. Raises DataError for a path that does not exist, and for folders and
    patterns without images.
    """
    found: list[Path] = []
    passed_over = Findings(first_few([str(path) for path in paths]))
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
    """The image, or the error for which it is left out."""
    try:
        return read_image(file, limit)
    except DataError as error:
        _log.warning("left out: %s", error)
        return error


def _overlay_paths(files: Sequence[Path], output: Path) -> list[Path]:
    """The path of each overlay. Where images of different folders share a name, all but the first get numbers."""
    # The name of an image is never given to the overlay of another image.
    taken = {file.stem.casefold() for file in files}
    seen: Counter[str] = Counter()
    paths = []
    for file in files:
        key, stem = file.stem.casefold(), file.stem
        seen[key] += 1
        while seen[key] > 1:
            stem = f"{file.stem}_{seen[key]}"
            if stem.casefold() not in taken:
                break
            seen[key] += 1
        taken.add(stem.casefold())
        paths.append(output / f"{stem}.jpg")
    return paths
