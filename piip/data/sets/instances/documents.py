"""What formats with a file of annotations per image share: which image a file is of, and which classes there are."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

from piip.data.class_names import check_text
from piip.data.findings import Findings
from piip.data.folders import list_files, list_images
from piip.data.images import read_size
from piip.data.sets.instances.records import ImageRecord, Instances, clean
from piip.errors import DataError


class Shape(NamedTuple):
    """One object of a file: its class by name, and what `clean` takes of it."""

    name: str
    box: tuple[float, float, float, float] | None
    segmentation: Any = None
    crowd: bool = False


class Document(NamedTuple):
    """What a file says: the image's name, perhaps of another machine, its (h, w) or zeros, and the objects."""

    image: str
    size: tuple[int, int]
    shapes: list[Shape]


def read_documents(
    root: Path,
    suffix: str,
    parse: Callable[[Path, Findings], Document | None],
    *,
    class_names: Sequence[str] | None,
    only: Iterable[str] | None = None,
) -> Instances:
    """The images of a folder with the objects that the files below it, with an ending, describe.

    parse: reads a file; None for one of another kind. class_names: in label order; those of all files, sorted, if None.
    only: stems of the images to take. An image without a file has no objects.
    Raises DataError for a folder that cannot be read and for one without such files.
    """
    findings = Findings(str(root))
    images = list(list_images(root, findings))
    by_stem: dict[str, list[str]] = {}
    for name in images:
        by_stem.setdefault(PurePosixPath(name).stem, []).append(name)
    found: dict[str, Document] = {}
    for file in sorted(list_files(root, {suffix}, findings)):
        document = parse(root / file, findings)
        if document is None:
            continue
        image = _image_of(file, document.image, by_stem)
        if image is None:
            findings.add("file of annotations whose image is missing", f"{file} ({document.image})", "error")
        elif image in found:
            findings.add("image that two files of annotations are for", f"{image} ({file})", "error")
        else:
            found[image] = document
    if not found:
        unread = [example for examples in findings.examples.values() for example in examples]
        raise DataError("; ".join([f"{root}: no image with a file of annotations, *{suffix}", *unread[:1]]))
    names = list(class_names or sorted({shape.name for document in found.values() for shape in document.shapes}))
    for name in names:
        check_text(name, str(root))
    taken = None if only is None else set(only)
    chosen = [name for name in images if taken is None or PurePosixPath(name).stem in taken]
    records = [*_records(root, chosen, found, names, findings)]
    return Instances(root, root, names, records, findings, list(range(len(names))))


def _records(
    root: Path, images: list[str], found: dict[str, Document], names: list[str], findings: Findings
) -> Iterator[ImageRecord]:
    labels = {name: label for label, name in enumerate(names)}
    for image in images:
        document = found.get(image, Document(image, (0, 0), []))
        if image not in found:
            findings.add("image without a file of annotations, which has no objects then", image, "note")
        height, width = document.size
        try:
            if not height:
                height, width = read_size(root / image)
        except DataError as error:
            findings.add("image of unknown size that cannot be read", str(error), "error")
            continue
        record = ImageRecord(image, image, height, width, ())
        objects = []
        for number, (name, box, segmentation, crowd) in enumerate(document.shapes, 1):
            if name not in labels:
                findings.add("object of a class that is not listed", f"'{name}' in {image}", "error")
                continue
            objects.append(clean(findings, record, number, labels[name], box, segmentation, None, crowd))
        yield record._replace(annotations=tuple(a for a in objects if a is not None))


def _image_of(file: str, given: str, by_stem: dict[str, list[str]]) -> str | None:
    """The image that a file of annotations is for: of the name that it gives, or else of its own, the nearest one."""
    for stem in (PurePosixPath(file).stem, PurePosixPath(given.replace("\\", "/")).stem):
        names = by_stem.get(stem, [])
        beside = [name for name in names if PurePosixPath(name).parent == PurePosixPath(file).parent]
        # As of train/Annotations/a.xml and train/JPEGImages/a.jpg.
        near = [name for name in names if PurePosixPath(name).parent.parent == PurePosixPath(file).parent.parent]
        if len(beside or near or names) == 1:
            return (beside or near or names)[0]
    return None
