"""Prediction on image files: overlays to look at, and one JSON file of results."""

from __future__ import annotations

import glob
import itertools
import logging
import math
import os
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from piip.config.experiment import Config
from piip.data.findings import Findings
from piip.data.folders import UNREAD, ending_of, list_images
from piip.data.images import IMAGE_SUFFIXES, UNREAD_SUFFIXES, read_image
from piip.data.windowed import TIFF_SUFFIXES, InMemory, TiffFile
from piip.engine.device import choose_device, tf32
from piip.engine.log import Bar, logging_to
from piip.errors import DataError, PiipError, first_few
from piip.files import check_outputs, to_json, write_file
from piip.load import load_model
from piip.signals import StopSignals
from piip.tiling import Tiling

RESULTS = "predictions.json"
# TIFF files with more pixels are read in parts, where tiles are; overlays of such images have this longest side.
PARTS, _LARGEST_OVERLAY = 2**26, 4096
_OWN = "image in the folder of the output, passed over"

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
    classes: Sequence[str] | None = None,
    device: str | None = None,
    compile: bool = False,
    tiling: Tiling | None = None,
) -> list[Prediction]:
    """Predicts on images one by one, and writes an overlay for each, and predictions.json, into `output`.

    images: files, folders with all that is below them, and patterns with wildcards. weights: a run, a checkpoint or a
    weight file. score_threshold: objects with a lower score, from 0 to 1, are left out. classes: the names of those
    that are not left out, or None. device: 'auto' (or None), 'cpu', 'cuda' or 'cuda:N'. compile: as of `create_model`.
    tiling: how larger images are cut; detectors then read TIFF files above PARTS pixels in parts, of any size, and draw
    smaller overlays of them, without masks.
    The writers in `piip.results` describe what predictions.json holds; images that cannot be read are its `errors`.
    Overlays lie below `output` as the images lie below the folder, or the pattern's first folder, that was given.
    An image that cannot be read is reported and left out. After a signal or on a full disk, the results so far are
    written before the error is raised. Raises DataError if no image can be read, or if an image would be overwritten;
    Stopped after SIGTERM; KeyboardInterrupt after Ctrl-C; and the other kinds of PiipError.
    """
    files = find_images(images, output)
    overlays = _overlay_paths(files, output)
    labels = [overlay.with_suffix(".png") for overlay in overlays]
    check_outputs([output / RESULTS, *overlays, *labels], [*files, weights])
    with logging_to() as console:
        target = choose_device(device)
        model = load_model(config, weights, device=target, precision=config.train.precision, compile=compile)
        model.check_classes(classes)
        limit = config.data.val.max_image_pixels
        writer = config.model.head.build_writer(model.names, score_threshold=score_threshold)
        writer.root = output
        predictions: list[Prediction] = []
        failure: OSError | None = None
        stop = StopSignals()
        try:
            output.mkdir(parents=True, exist_ok=True)
            with stop, tf32(config.train.tf32), Bar(console, "predicting", len(files), unit="images") as bar:
                for file, overlay in zip(files, overlays):
                    if stop.requested:
                        break
                    try:
                        image = _open(file, limit, in_parts=tiling is not None and model.finds_objects)
                    except DataError as error:
                        _log.warning("left out: %s", error)
                        predictions.append(Prediction(file, error=str(error)))
                    else:
                        overlay.parent.mkdir(parents=True, exist_ok=True)
                        if tiling is not None:
                            result = model.predict_parts(image, tiling, threshold=score_threshold, classes=classes)
                        else:
                            pixels = image.part(0, 0, *image.size)
                            result = model.predict(pixels, threshold=score_threshold, classes=classes)
                        if isinstance(image, InMemory):
                            found = writer.add(file, image.pixels, result, overlay)
                        else:
                            smaller = image.reduced(_LARGEST_OVERLAY)
                            found = writer.add_smaller(file, smaller, result, overlay, size=image.size)
                        predictions.append(Prediction(file, overlay, found, writer.describe(found)))
                    bar.advance()
        except OSError as error:
            failure = error
        progress = f"stopped after {len(predictions)} of {len(files)} images"
        errors = [{"file_name": str(found.image), "error": found.error} for found in predictions if found.error]
        try:
            write_file(output / RESULTS, to_json(writer.document | ({"errors": errors} if errors else {})))
            progress += f"; results are in {output}"
        except OSError as error:
            failure = failure or error
            progress += f"; {RESULTS} could not be written"
        if failure is not None:
            raise PiipError(f"cannot write to {output}: {failure.strerror or failure}; {progress}") from None
        if stop.requested and len(predictions) < len(files):
            raise stop.error(stop.requested, progress)
    if all(prediction.error for prediction in predictions):
        raise DataError(f"none of the {len(files)} images can be read; the first: {predictions[0].error}")
    return predictions


def _open(file: Path, limit: int, *, in_parts: bool) -> InMemory | TiffFile:
    """An image to predict on. Raises DataError as `read_image` and `TiffFile` do."""
    if in_parts and file.suffix.lower() in TIFF_SUFFIXES:
        image = TiffFile(file)
        if math.prod(image.size) > PARTS:
            return image
    return InMemory(read_image(file, limit))


def find_images(paths: Sequence[str | Path], output: Path | None = None) -> dict[Path, Path]:
    """The image files that files, folders and patterns name, each once, in the given order.

    They come with their names: paths relative to the folder, or to the folder that a pattern begins with.
    Names that begin with a dot are passed over in folders; so are, with a warning, what is no regular file, images of
    formats that are not read, and images in `output` where that lies below the folder. Raises DataError for a path that
    does not exist, and for folders and patterns without images.
    """
    found: dict[Path, Path] = {}
    passed_over = Findings(first_few([str(path) for path in paths]))
    for given in map(Path, paths):
        if given.is_dir():
            root, own = given, "" if output is None else os.path.relpath(output.resolve(), given.resolve())
            names = list(list_images(given, passed_over))
            kept = [Path(name) for name in names if not name.startswith(f"{own}/")]
            for name in names:
                if name.startswith(f"{own}/"):
                    passed_over.add(_OWN, name)
        elif given.is_file():
            found.setdefault(given, Path(given.name))
            continue
        elif glob.has_magic(str(given)):
            root = Path(*itertools.takewhile(lambda part: not glob.has_magic(part), given.parts))
            files = [path for path in map(Path, sorted(glob.glob(str(given), recursive=True))) if path.is_file()]
            kept = [path.relative_to(root) for path in files if ending_of(path.name) in IMAGE_SUFFIXES]
            for path in files:
                if ending_of(path.name) in UNREAD_SUFFIXES:
                    passed_over.add(UNREAD, path.name)
        elif given.exists():
            raise DataError(f"{given} is neither a file nor a folder")
        else:
            raise DataError(f"image not found: {given}")
        if not kept:
            raise DataError(f"no images in {given}; looked for {', '.join(sorted(IMAGE_SUFFIXES))}")
        for path in kept:
            found.setdefault(root / path, Path(path.name) if ".." in path.parts else path)
    if passed_over.counts:
        _log.warning("%s", passed_over)
    return found


def _overlay_paths(files: Mapping[Path, Path], output: Path) -> list[Path]:
    """The path of each overlay. Where images of different folders share a name, all but the first get numbers."""
    stems = [name.with_name(name.stem) for name in files.values()]
    # The name of an image is never given to the overlay of another image, and that of a folder to none.
    taken = {_folded(stem) for stem in stems}
    folders = {_folded(parent) for stem in stems for parent in stem.parents}
    seen: Counter[str] = Counter()
    paths = []
    for stem in stems:
        key = _folded(stem)
        for number in itertools.count(seen[key] + 1):
            numbered = stem if number == 1 else stem.with_name(f"{stem.name}_{number}")
            name = _folded(numbered)
            if (number == 1 or name not in taken) and folders.isdisjoint({f"{name}.jpg", f"{name}.png"}):
                break
        seen[key] = number
        taken.add(name)
        paths.append(output / f"{numbered}.jpg")
    return paths


def _folded(path: Path) -> str:
    """The path as file systems that ignore case see it."""
    return path.as_posix().casefold()
