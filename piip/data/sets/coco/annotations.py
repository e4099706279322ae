"""COCO annotation files, as tools write them: read, repaired where only one thing can be meant, and told about.

Numbers written as text or as 64.0 are numbers; ids may be of any size or text; annotations are numbered where their ids
are missing or repeat; sizes that are missing are those of the image files; categories may be named instead of numbered.
What a file means nevertheless is in `clean` of `piip.data.sets.instances.records`. Everything else is an error, and all
errors are collected. This module does not need torch: 118,000 images with 860,000 objects are read in half a minute.
"""

from __future__ import annotations

import gc
import json
import math
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from piip.data.class_names import check_text
from piip.data.findings import Findings
from piip.data.images import read_size
from piip.data.sets.coco.crowds import Crowds, settle_crowds
from piip.data.sets.instances.image_names import find_image_files
from piip.data.sets.instances.masks import short
from piip.data.sets.instances.numbers import LIMIT, identity, number, truth_value, whole
from piip.data.sets.instances.records import Annotation, ImageRecord, Instances, clean
from piip.errors import DataError

Id = int | str

_CONVERTED = "number or id written as text, or a whole number as 64.0, read"
# Images from which on what was read is not looked through for circles of objects later either, of which it has none.
_LARGE = 20_000
# Of the boxes, that lie within 0 and 1 where a file has fractions of the image for pixels.
_ALMOST_ALL = 0.99


def read_annotations(path: Path, images: Path, *, masks: bool = True, crowds: Crowds = "auto") -> Instances:
    """Reads a COCO instance file.

    images: the folder of the image files. masks: false reads boxes only, and looks at no segmentation.
    crowds: whether annotations with iscrowd 1 are objects, or regions as COCO has them; auto takes them for objects
    where no other annotation has a segmentation, as exports of brush and SAM masks do.
    Boxes in fractions of the image are an error, read as what they mean.
    Category ids, gapped or not, become labels 0, 1, ... in ascending order; where one is text, in the file's order.
    Raises DataError for what is no COCO file at all; all other errors are in the findings.
    """
    with _without_collection():
        found = _read(path, images, masks=masks, crowds=crowds)
        if len(found.images) > _LARGE:
            gc.freeze()
        return found


@contextmanager
def _without_collection() -> Iterator[None]:
    """Keeps Python from looking through millions of small lists again and again for circles of objects to free."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


def _read(path: Path, images: Path, *, masks: bool, crowds: Crowds) -> Instances:
    data = _load_json(path)
    findings = Findings(path.name)
    labels, names = _read_categories(data["categories"], findings)
    places, records = _read_images(data["images"], images, path, findings)
    if not records or not names:
        findings.raise_errors(path)
        raise DataError(f"{path} has no {'categories' if records else 'images'}")
    reader = _Reader(places, records, labels, names, findings, masks)
    if "annotations" not in data:
        findings.add("file without a list of annotations read as one without objects", path.name, "repaired")
    entries = data.get("annotations", [])
    objects = reader.read(entries)
    objects = settle_crowds(objects, reader.drawn, names, crowds, findings)
    found = [record._replace(annotations=tuple(own)) for record, own in zip(records, objects) if record.height > 0]
    if any(isinstance(record.id, str) for record in found):
        found = [record._replace(id=str(record.id)) for record in found]
    found.sort(key=lambda record: record.id)
    return Instances(path, images, names, found, findings, list(labels))


def _load_json(path: Path) -> dict[str, Any]:
    try:
        if path.exists() and not path.is_file():
            raise DataError(f"cannot read annotation file {path}: it is a folder, a pipe or a device")
        data = json.loads(path.read_bytes())
    except FileNotFoundError:
        raise DataError(f"annotation file not found: {path}") from None
    except OSError as error:
        raise DataError(f"cannot read annotation file {path}: {error.strerror}") from None
    except RecursionError:
        raise DataError(f"{path} is not valid JSON: brackets in brackets in brackets, too deep to be read") from None
    except ValueError as error:
        raise DataError(f"{path} is not valid JSON: {error}") from None
    missing = [key for key in ("images", "annotations", "categories") if not isinstance(data, dict) or key not in data]
    if missing not in ([], ["annotations"]):
        raise DataError(f"{path} is not a COCO annotation file: it has no list {', '.join(map(repr, missing))}")
    for key in data.keys() & {"images", "annotations", "categories"}:
        if not isinstance(data[key], list):
            raise DataError(f"{path}: '{key}' must be a list, got {type(data[key]).__name__}")
    return data


def _read_categories(entries: list[Any], findings: Findings) -> tuple[dict[Id, int], list[str]]:
    """Label by category id, in the order of labels, and the names."""
    names: dict[Id, str] = {}
    given = (entry.get("supercategory") for entry in entries if isinstance(entry, dict))
    supers = Counter(name for name in given if isinstance(name, str))
    for position, entry in enumerate(entries, 1):
        where = f"category number {position} of the list"
        id_ = identity(entry.get("id")) if isinstance(entry, dict) else None
        if id_ is None:
            findings.add("category without id", f"{where} has no 'id'{_given(entry, 'id')}", "error")
            continue
        if type(entry["id"]) is not int:
            findings.add(_CONVERTED, f"category {id_}", "repaired")
        name = entry.get("name")
        if isinstance(name, int | float) and not isinstance(name, bool):
            findings.add("category name that is a number read as text", f"category {id_}", "repaired")
            name = str(name)
        if not isinstance(name, str) or not name.strip():
            findings.add("category without name", f"category {id_} has no 'name'", "error")
            continue
        try:
            check_text(name, f"category {id_}")
        except DataError as error:
            findings.add("category name that is no text", str(error), "error")
        if names.get(id_, name) != name:
            findings.add("category id that two classes have", f"category id {id_} occurs more than once", "error")
        names[id_] = name
        if supers[name] and supers[name] >= len(entries) - 1 > 0:
            what = f"'{name}' (category {id_}), of which all other classes are a kind; class_names can leave it out"
            findings.add("category that is the supercategory of all others, a class without objects", what, "suspect")
    for name, count in Counter(names.values()).items():
        if count > 1:
            findings.add("class name that several categories have", name, "suspect")
    order: Iterable[Id] = names
    if all(isinstance(id_, int) for id_ in names):
        order = sorted(names, key=lambda id_: (isinstance(id_, str), id_))
    return {id_: label for label, id_ in enumerate(order)}, [names[id_] for id_ in order]


def _read_images(
    entries: list[Any], folder: Path, path: Path, findings: Findings
) -> tuple[dict[Id, int], list[ImageRecord]]:
    """The place of every image by its id, and the images, without objects; those that cannot be used have no height."""
    places: dict[Id, int] = {}
    records: list[ImageRecord] = []
    for position, entry in enumerate(entries, 1):
        id_ = identity(entry.get("id")) if isinstance(entry, dict) else None
        if id_ is None:
            what = f"image number {position} of the list has no 'id'{_given(entry, 'id')}"
            findings.add("image without id", what, "error")
            continue
        if type(entry["id"]) is float or (isinstance(entry["id"], str) and isinstance(id_, int)):
            findings.add(_CONVERTED, f"image {short(id_)}", "repaired")
        name = entry.get("file_name") or entry.get("coco_url")
        if not isinstance(name, str):
            findings.add("image without file name", f"image {short(id_)} has no 'file_name'", "error")
            continue
        if "file_name" not in entry:
            kind = "image named by its coco_url, as in LVIS (whose own AP is not computed here)"
            findings.add(kind, name, "repaired")
        if id_ in places:
            if records[places[id_]].file_name == name:
                findings.add("image listed twice read once", name, "repaired")
            else:
                findings.add("image id that two images have", f"image id {id_} occurs more than once", "error")
            continue
        places[id_] = len(records)
        height, width = (_side(entry, key, id_, findings) for key in ("height", "width"))
        records.append(ImageRecord(id_, name, height, width, ()))
    files = find_image_files(folder, [record.file_name for record in records], path, findings)
    for place, (record, file) in enumerate(zip(records, files)):
        height, width = record.height, record.width
        if file is None:
            height = width = 0
        elif height <= 0 or width <= 0:
            try:
                height, width = read_size(folder / file)
                findings.add("image size that is missing read from the image", file, "repaired")
            except DataError as error:
                findings.add("image of unknown size that cannot be read", str(error), "error")
        elif not (height < LIMIT and width < LIMIT and height * width < LIMIT):
            what = f"image {record.id} has a size of {short(width)} x {short(height)} pixels"
            findings.add("image size beyond reason", what, "error")
            height = width = 0
        if file != record.file_name or (height, width) != (record.height, record.width):
            records[place] = record._replace(file_name=file or record.file_name, height=height, width=width)
    return places, records


def _side(entry: dict[str, Any], key: str, id_: Id, findings: Findings) -> int:
    """Height or width; 0 where the file does not know it."""
    value = entry.get(key)
    if type(value) is int:
        return value
    side = whole(value)
    if side is not None:
        findings.add(_CONVERTED, f"{key} of image {short(id_)}", "repaired")
    return side or 0


def _given(entry: Any, key: str) -> str:
    return f" (got {short(entry[key])})" if isinstance(entry, dict) and entry.get(key) is not None else ""


class _FieldError(ValueError):
    """A field of an annotation that cannot be read: the kind of the fault, and what follows the annotation's id."""


class _Reader:
    """Annotations, one after the other. drawn: which of (crowd, has a segmentation) there were."""

    def __init__(
        self,
        places: dict[Id, int],
        images: list[ImageRecord],
        labels: dict[Id, int],
        names: list[str],
        findings: Findings,
        masks: bool,
    ) -> None:
        self._places: dict[Any, int] = {**places}
        self._labels: dict[Any, int] = {**labels}
        self._images, self._findings, self._masks = images, findings, masks
        counts = Counter(names)
        self._by_name = {name: label for label, name in enumerate(names) if counts[name] == 1}
        self._by_file = {image.file_name: place for place, image in enumerate(images)}
        self.drawn: set[tuple[bool, bool]] = set()

    def read(self, entries: list[Any]) -> list[list[Annotation]]:
        """The objects of every image."""
        found: list[list[Annotation]] = [[] for _ in self._images]
        seen: set[Id] = set()
        in_fractions = self._find_fractions(entries)
        for position, entry in enumerate(entries, 1):
            if not isinstance(entry, dict):
                what = f"annotation number {position} is {short(entry)}"
                self._findings.add("annotation that is no mapping", what, "error")
                continue
            id_ = entry.get("id")
            if type(id_) is not int or id_ in seen:
                id_ = self._number(id_, position, seen)
            seen.add(id_)
            given = entry.get("image_id")
            place = self._places.get(given) if type(given) in (int, str) else None
            if place is None:
                place = self._find_image(entry, id_)
            given = entry.get("category_id")
            label = self._labels.get(given) if type(given) in (int, str) else None
            if label is None:
                label = self._find_label(entry, id_)
            try:
                box = self._read_box(entry, id_)
                area = self._read_area(entry, id_)
                crowd = self._read_crowd(entry, id_)
            except _FieldError as error:
                kind, fault = error.args
                self._findings.add(kind, f"annotation {id_}{fault}", "error")
                continue
            if place is None or label is None:
                continue
            segmentation = entry.get("segmentation")
            self.drawn.add((crowd, bool(segmentation)))
            image = self._images[place]
            if image.height <= 0:
                continue
            if in_fractions and box is not None:
                box = box[0] * image.width, box[1] * image.height, box[2] * image.width, box[3] * image.height
            if not (self._masks or box is None or box[2] == 0 or box[3] == 0):
                segmentation = None
            ignored = truth_value(entry.get("ignore")) or False
            cleaned = clean(self._findings, image, id_, label, box, segmentation, area, crowd, ignored)
            if cleaned is not None:
                found[place].append(cleaned if self._masks else cleaned._replace(segmentation=None))
        return found

    def _find_fractions(self, entries: list[Any]) -> bool:
        """Whether almost all boxes are in fractions of the image, an error. Most files show after a few that not."""
        allowed = len(entries) * (1 - _ALMOST_ALL)
        within = others = 0
        for entry in entries:
            box = entry.get("bbox") if isinstance(entry, dict) else None
            values = [number(value) for value in box] if isinstance(box, list) and len(box) == 4 else [None]
            if all(value is not None and 0 <= value <= 1 for value in values) and values[2] and values[3]:
                within += 1
            elif values != [None]:
                others += 1
                if others > allowed:
                    return False
        boxes = within + others
        if not within or within < _ALMOST_ALL * boxes:
            return False
        what = (
            f"{within} of {boxes} boxes lie within 0 and 1: they look like fractions of the image; multiply x and "
            "width by its width, y and height by its height (`piip data check FILE --repair OUT` does)"
        )
        self._findings.add("boxes in fractions of the image", what, "error", count=within)
        return True

    def _number(self, given: Any, position: int, seen: set[Id]) -> Id:
        id_ = identity(given)
        if id_ is None or id_ in seen:
            kind = "annotation without id numbered" if id_ is None else "annotation id that repeats numbered anew"
            self._findings.add(kind, f"annotation number {position}", "repaired")
            return f"number {position}"
        if isinstance(given, float):
            self._converted("id", id_)
        return id_

    def _converted(self, key: str, id_: Id) -> None:
        self._findings.add(_CONVERTED, f"{key} of annotation {id_}", "repaired")

    def _find_image(self, entry: dict[str, Any], id_: Id) -> int | None:
        place = self._look_up(entry, "image_id", id_, self._places, self._by_file, "image given by its file name")
        if entry.get("image_id") is None:
            self._findings.add("annotation without image", f"annotation {id_} has no 'image_id'", "error")
        elif place is None:
            what = f"annotation {id_} is for image {short(entry['image_id'])}, not listed in the file"
            self._findings.add("annotation for an image that is not listed left out", what, "left out")
        return place

    def _find_label(self, entry: dict[str, Any], id_: Id) -> int | None:
        label = self._look_up(entry, "category_id", id_, self._labels, self._by_name, "category given by its name")
        if entry.get("category_id") is None:
            self._findings.add("annotation without category", f"annotation {id_} has no 'category_id'", "error")
        elif label is None:
            what = f"annotation {id_} has category {short(entry['category_id'])}, not listed in the file"
            self._findings.add("annotation whose category is not listed", what, "error")
        return label

    def _look_up(
        self, entry: dict[str, Any], key: str, id_: Id, by_id: dict[Any, int], by_name: dict[str, int], named: str
    ) -> int | None:
        """Which image or category an annotation gives otherwise than by its id as the file has it. named: by name."""
        given = entry.get(key)
        found = by_id.get(identity(given))
        if found is not None:
            self._converted(key, id_)
        elif isinstance(given, str) and given in by_name:
            found = by_name[given]
            self._findings.add(named, f"annotation {id_}", "repaired")
        return found

    def _read_box(self, entry: dict[str, Any], id_: Id) -> tuple[float, float, float, float] | None:
        """The box; None for that of the mask."""
        box: Any = entry.get("bbox")
        try:
            x, y, w, h = box
            if -LIMIT < x < LIMIT and -LIMIT < y < LIMIT and -LIMIT < w < LIMIT and -LIMIT < h < LIMIT:
                return box
        except (TypeError, ValueError):
            pass
        has_mask = bool(entry.get("segmentation"))
        if not box and has_mask:
            return None
        if box is None:
            raise _FieldError("annotation without box", " has no 'bbox'")
        if not isinstance(box, list) or len(box) != 4:
            raise _FieldError("box that is not four numbers", f": 'bbox' must be four numbers, got {short(box)}")
        if any(isinstance(value, float) and not math.isfinite(value) for value in box):
            return None if has_mask else (0, 0, 0, 0)
        x, y, w, h = (number(value) for value in box)
        if x is None or y is None or w is None or h is None:
            raise _FieldError("box that is not four numbers", f": 'bbox' must be four numbers, got {short(box)}")
        for value in (x, y, w, h):
            if not -LIMIT < value < LIMIT:
                raise _FieldError("box beyond reason", f": 'bbox' holds a number beyond reason, {short(value)}")
        self._converted("box", id_)
        return x, y, w, h

    def _read_area(self, entry: dict[str, Any], id_: Id) -> float | None:
        given = entry.get("area")
        if given is None or (type(given) in (int, float) and -LIMIT < given < LIMIT):
            return given
        area = number(given)
        if area is None or not -LIMIT < area < LIMIT:
            beyond = isinstance(given, int | float) and not isinstance(given, bool)
            fault = "holds a number beyond reason," if beyond else "must be a number, got"
            raise _FieldError("area that is no number", f": 'area' {fault} {short(given)}")
        self._converted("area", id_)
        return area

    def _read_crowd(self, entry: dict[str, Any], id_: Id) -> bool:
        given = entry.get("iscrowd")
        if given is None or type(given) in (int, bool):
            return bool(given)
        crowd = truth_value(given)
        if crowd is None:
            raise _FieldError("iscrowd that is neither 0 nor 1", f": 'iscrowd' must be 0 or 1, got {short(given)}")
        self._converted("iscrowd", id_)
        return crowd
