"""YOLO's format: a text file per image, whose lines are a class and a box or polygon in fractions of the image.

Where the images lie is said by a data.yaml (`path`, and per split a folder, a list file, or a list of these), or they
lie in a folder beside classes.txt. The labels of `a/images/b.jpg` are `a/labels/b.txt`, or else `a/images/b.txt`. An
image without such a file has no objects. This module does not need torch.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import yaml

from piip.data.class_names import check_text
from piip.data.findings import Findings
from piip.data.folders import list_images
from piip.data.images import read_size
from piip.data.sets.instances.numbers import number, whole
from piip.data.sets.instances.records import Annotation, ImageRecord, Instances, clean
from piip.errors import DataError, first_few

# Files that hold the names of classes where there is no data.yaml, one per line.
_NAMES = ("classes.txt", "obj.names", "labels.txt", "names.txt")
# A little beyond the image is rounding; a coordinate of two images is in pixels.
_BEYOND = 1.5


def find_description(root: Path) -> Path | None:
    """The data.yaml, or file of names, of a folder; the root itself if it is a file."""
    if root.is_file():
        return root
    files = sorted([*root.glob("*.yaml"), *root.glob("*.yml")], key=lambda path: (path.stem != "data", path.name))
    for path in files:
        with suppress(DataError):
            if "names" in _read_description(path):
                return path
    return next((root / name for name in _NAMES if (root / name).is_file()), None)


def read_splits(file: Path) -> list[str]:
    """The splits that a data.yaml names; 'train' of a folder that has none."""
    data = _read_description(file)
    return [split for split in ("train", "val", "test") if data.get(split)]


def read_yolo(root: Path, split: str) -> Instances:
    """Reads a split. Raises DataError for a data.yaml or folder that cannot be read."""
    file = find_description(root)
    if file is None:
        raise DataError(f"{root} holds neither a data.yaml with 'names' nor {first_few(_NAMES)}")
    findings = Findings(f"{file.name} ({split})")
    data = _read_description(file)
    names = _read_names(data.get("names"), file)
    entries = data.get(split)
    if not entries:
        raise DataError(f"{file} has no '{split}'")
    bases = [_base(data, file), file.parent]
    files: set[Path] = set()
    for entry in entries if isinstance(entries, list) else [entries]:
        files |= {*_list_entry(str(entry), bases, file, findings)}
    if not files:
        raise DataError(f"{file}: no images for '{split}'")
    if len({path.is_absolute() for path in files}) > 1:
        files = {path.absolute() for path in files}
    folder = Path(os.path.commonpath([path.parent for path in files]))
    images = []
    for path in sorted(files):
        name = path.relative_to(folder).as_posix()
        try:
            height, width = read_size(path)
        except DataError as error:
            findings.add("image that cannot be read", str(error), "error")
            continue
        image = ImageRecord(name, name, height, width, ())
        objects = tuple(_read_labels(path, image, len(names), findings, keypoints=bool(data.get("kpt_shape"))))
        images.append(image._replace(annotations=objects))
    return Instances(file, folder, names, images, findings, list(range(len(names))))


def _read_description(file: Path) -> dict[str, Any]:
    """What a data.yaml says, or, of a file of names, that the images lie in its folder."""
    try:
        text = file.read_text(encoding="utf-8-sig")
        if file.suffix not in (".yaml", ".yml"):
            return {"names": text.splitlines(), "train": "."}
        data = yaml.safe_load(text)
    # The last two are of dates that there are not, and of brackets in brackets.
    except (OSError, yaml.YAMLError, ValueError, RecursionError) as error:
        raise DataError(f"cannot read {file}: {error}") from None
    if not isinstance(data, dict):
        raise DataError(f"{file} must hold a mapping with 'names', 'train' and 'val'")
    return data


def _read_names(given: Any, file: Path) -> list[str]:
    """Names in the order of labels, from a list, or from a mapping of labels to names."""
    if isinstance(given, dict):
        labels = {whole(label): name for label, name in given.items()}
        if sorted(labels, key=str) != sorted(range(len(labels)), key=str):
            raise DataError(f"{file}: 'names' must number its classes 0, 1, ..., got {first_few([*map(str, given)])}")
        given = [labels[label] for label in range(len(labels))]
    names = [str(name).strip() for name in given] if isinstance(given, list) else []
    while names and not names[-1]:
        names.pop()
    if not names or not all(names):
        raise DataError(f"{file}: 'names' must be a list of names, or a mapping of numbers to names")
    for name in names:
        check_text(name, str(file))
    return names


def _base(data: dict[str, Any], file: Path) -> Path:
    """The folder that paths are relative to: `path`, where it is there, else that of the file."""
    given = Path(str(data.get("path") or "."))
    options = [given if given.is_absolute() else file.parent / given, given, file.parent / given.name]
    return next((option for option in options if os.path.isdir(option)), file.parent)


def _find(entry: str, bases: list[Path]) -> Path | None:
    """A path of the data.yaml. Roboflow writes '../train/images' for a folder beside the file."""
    path = Path(entry.replace("\\", "/"))
    inner = Path(*(part for part in path.parts if part not in ("..", "/", ".")))
    return next((base / name for name in (path, inner) for base in bases if os.path.exists(base / name)), None)


def _list_entry(entry: str, bases: list[Path], file: Path, findings: Findings) -> Iterator[Path]:
    """The images of a folder or of a list file."""
    path = _find(entry, bases)
    if path is None:
        raise DataError(f"{file}: there is no {entry} below {bases[0]}")
    if path.is_dir():
        yield from (path / name for name in list_images(path, findings))
    elif path.suffix != ".txt":
        yield path
    else:
        try:
            lines = path.read_text(encoding="utf-8-sig").splitlines()
        except (OSError, UnicodeDecodeError) as error:
            raise DataError(f"cannot read {path}: {error}") from None
        for line in filter(None, map(str.strip, lines)):
            image = _find(line, [*bases, path.parent])
            if image is None:
                findings.add("image file that is missing", f"{path.name}: there is no {line}", "error")
            else:
                yield image


def _labels_of(image: Path) -> Path:
    """The text file of an image."""
    beside = image.with_suffix(".txt")
    options, parts = [beside], beside.parts
    if "images" in parts:
        last = len(parts) - 1 - parts[::-1].index("images")
        options.insert(0, Path(*parts[:last], "labels", *parts[last + 1 :]))
    return next((path for path in options if path.exists()), image.parent / "labels" / beside.name)


def _read_labels(
    path: Path, image: ImageRecord, classes: int, findings: Findings, *, keypoints: bool
) -> Iterator[Annotation]:
    file = _labels_of(path)
    try:
        lines = file.read_text(encoding="utf-8-sig").splitlines()
    except FileNotFoundError:
        findings.add("image without a file of labels, which has no objects then", image.file_name, "note")
        return
    except (OSError, UnicodeDecodeError) as error:
        findings.add("file of labels that cannot be read", f"{file}: {error}", "error")
        return
    for position, line in enumerate(lines, 1):
        words = line.replace(",", " ").split()
        if not words:
            continue
        where = f"{file.name}, line {position}"
        label, *values = map(number, words)
        numbers = [value for value in values if value is not None]
        if label is None or len(numbers) != len(values) or len(values) < 4:
            what = f"{where}: needs a class and four numbers or a polygon, got '{line.strip()[:60]}'"
            findings.add("line that is no label", what, "error")
            continue
        if label != int(label) or not 0 <= label < classes:
            what = f"{where}: class {label:g}, but there are {classes}, 0 to {classes - 1}"
            findings.add("label beyond the classes", what, "error")
            continue
        if max(map(abs, numbers)) > _BEYOND:
            what = f"{where}: {max(map(abs, numbers)):g} is no fraction of the image"
            findings.add("label in pixels, not in fractions of the image", what, "error")
            continue
        cleaned = _read_object(numbers, image, int(label), position, findings, keypoints=keypoints)
        if cleaned is not None:
            yield cleaned


def _read_object(
    numbers: list[float], image: ImageRecord, label: int, position: int, findings: Findings, *, keypoints: bool
) -> Annotation | None:
    """A box of centre and size, perhaps with a confidence or keypoints behind it, or a polygon."""
    sides = (image.width, image.height)
    if len(numbers) <= 5 or keypoints:
        x, y, w, h = (value * side for value, side in zip(numbers, sides * 2))
        return clean(findings, image, position, label, (x - w / 2, y - h / 2, w, h))
    polygon = [value * sides[index % 2] for index, value in enumerate(numbers[: len(numbers) // 2 * 2])]
    return clean(findings, image, position, label, None, [polygon])
