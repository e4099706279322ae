"""COCO annotation files: read, checked, and cleaned by a documented rule that reports what it does.

Rules, in the order they are tried (kind of report -> what happens):
- box without area (width or height not positive, or not finite) -> dropped from training and evaluation
- box outside its image -> dropped from training and evaluation
- no usable segmentation, in a file where other annotations have one -> dropped from training and evaluation
- box below one pixel within its image (width or height), or an area of zero or less -> dropped from training
- box more than a pixel over its image's edge -> clipped in training; evaluation keeps it as the file has it
Polygons are drawn as far as they lie in the image. Numbers of 2^31 or more, and corners of polygons or areas that are
not finite, are errors: no image has such a place. So is an outline that crosses columns ten million times.
A file whose annotations have no segmentation at all is a detection set: its targets have boxes only.
"""

from __future__ import annotations

import json
import logging
import math
from collections import defaultdict
from pathlib import Path
from typing import Any, NamedTuple

from piip.data.class_names import check_text
from piip.data.report import Report
from piip.data.sets.coco.polygons import crossings
from piip.data.sets.coco.rle import covers
from piip.errors import DataError

logger = logging.getLogger(__name__)

# No coordinate, side or area in pixels is as large; run lengths have 32 bits.
_LIMIT = 2**31
# Columns of pixels that an outline may cross, over all its edges: it takes a second to draw.
_CROSSINGS = 10_000_000


class Annotation(NamedTuple):
    """One object or crowd region. box: (x, y, width, height) in pixels as the file has it."""

    id: int
    label: int
    box: tuple[float, float, float, float]
    area: float | None
    crowd: bool
    ignored: bool  # kept from the training targets, like a crowd
    trainable: bool
    segmentation: Any  # list of polygons, RLE mapping, or None


class ImageRecord(NamedTuple):
    id: int
    file_name: str
    height: int
    width: int
    annotations: tuple[Annotation, ...]


class AnnotationFile(NamedTuple):
    """images: sorted by id; category_ids: label -> id in the file, ascending; class_names: label -> name."""

    images: list[ImageRecord]
    category_ids: list[int]
    class_names: list[str]
    has_masks: bool
    report: Report


def read_annotations(path: Path) -> AnnotationFile:
    """Reads and checks a COCO instance file.

    Category ids, gapped or not, become labels 0, 1, ... in ascending order of id.
    Raises DataError naming the file and the entry at fault.
    """
    data = _load_json(path)
    images = _by_id(data, "images", {"file_name": str, "height": int, "width": int}, path)
    categories = _by_id(data, "categories", {"name": str}, path)
    entries = _by_id(data, "annotations", {"image_id": int, "category_id": int, "bbox": list}, path)
    if not images or not categories:
        raise DataError(f"{path} has no {'categories' if images else 'images'}")
    for id_, category in categories.items():
        check_text(category["name"], f"{path}: category {id_}")
    category_ids = sorted(categories)
    labels = {category: label for label, category in enumerate(category_ids)}
    for id_, image in images.items():
        height, width = image["height"], image["width"]
        if not (0 < height < _LIMIT and 0 < width < _LIMIT and height * width < _LIMIT):
            raise DataError(f"{path}: image {id_} has a size of {_short(width)} x {_short(height)} pixels")

    report = Report(path.name)
    has_masks = any(entry.get("segmentation") for entry in entries.values())
    per_image: dict[int, list[Annotation]] = defaultdict(list)
    for id_, entry in entries.items():
        if entry["image_id"] not in images:
            raise DataError(
                f"{path}: annotation {id_} is for image {_short(entry['image_id'])}, not listed in the file"
            )
        if entry["category_id"] not in labels:
            raise DataError(
                f"{path}: annotation {id_} has category {_short(entry['category_id'])}, not listed in the file"
            )
        image = images[entry["image_id"]]
        annotation = _clean(entry, labels[entry["category_id"]], image, has_masks, report, f"{path}: annotation {id_}")
        if annotation is not None:
            per_image[image["id"]].append(annotation)
    records = [
        ImageRecord(id_, image["file_name"], image["height"], image["width"], tuple(per_image[id_]))
        for id_, image in sorted(images.items())
    ]
    return AnnotationFile(records, category_ids, [categories[id_]["name"] for id_ in category_ids], has_masks, report)


def clip_box(box: tuple[float, float, float, float], height: int, width: int) -> tuple[float, float, float, float]:
    """(x, y, width, height) to (x1, y1, x2, y2) within the image."""
    x, y, w, h = box
    return min(max(x, 0), width), min(max(y, 0), height), min(max(x + w, 0), width), min(max(y + h, 0), height)


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
    if missing:
        raise DataError(f"{path} is not a COCO annotation file: it has no list {', '.join(map(repr, missing))}")
    return data


def _by_id(data: dict[str, Any], section: str, keys: dict[str, type], path: Path) -> dict[int, dict[str, Any]]:
    """The entries of a section by their id, each with the keys it must have, of the right type."""
    if not isinstance(data[section], list):
        raise DataError(f"{path}: '{section}' must be a list, got {type(data[section]).__name__}")
    entries: dict[int, dict[str, Any]] = {}
    name = {"images": "image", "categories": "category", "annotations": "annotation"}[section]
    for position, entry in enumerate(data[section]):
        if not isinstance(entry, dict) or type(entry.get("id")) is not int:
            given = f" (got {_short(entry['id'])})" if isinstance(entry, dict) and "id" in entry else ""
            raise DataError(f"{path}: {name} number {position + 1} of the list has no integer 'id'{given}")
        for key, kind in keys.items():
            if key not in entry:
                raise DataError(f"{path}: {name} {entry['id']} has no '{key}'")
            if type(entry[key]) is not kind:
                raise DataError(
                    f"{path}: {name} {entry['id']}: '{key}' must be {kind.__name__}, got {_short(entry[key])}"
                )
        if entry["id"] in entries:
            raise DataError(f"{path}: {name} id {entry['id']} occurs more than once")
        entries[entry["id"]] = entry
    return entries


def _clean(
    entry: dict[str, Any], label: int, image: dict[str, Any], has_masks: bool, report: Report, where: str
) -> Annotation | None:
    """The annotation under the rules at the top of this file, or None when it is dropped altogether."""
    height, width = image["height"], image["width"]
    box = entry["bbox"]
    if len(box) != 4 or not all(isinstance(value, int | float) for value in box):
        raise DataError(f"{where}: 'bbox' must be four numbers, got {_short(box)}")
    _check_reason(box, "bbox", where)
    x, y, w, h = (float(value) for value in box)
    area = entry.get("area")
    if area is not None:
        if isinstance(area, bool) or not isinstance(area, int | float):
            raise DataError(f"{where}: 'area' must be a number, got {_short(area)}")
        _check_reason([area], "area", where, finite=True)
    crowd = bool(entry.get("iscrowd"))
    what = f"annotation {entry['id']} of {image['file_name']}"

    if not (w > 0 and h > 0 and all(math.isfinite(value) for value in (x, y, w, h))):
        report.add("box without area dropped", what)
        return None
    left, top, right, bottom = clip_box((x, y, w, h), height, width)
    if right <= left or bottom <= top:
        report.add("box outside its image dropped", what)
        return None
    segmentation = _check_segmentation(entry.get("segmentation"), height, width, where)
    if has_masks and segmentation is None:
        report.add("annotation without segmentation dropped", what)
        return None
    trainable = True
    if not crowd:
        if right - left < 1 or bottom - top < 1 or (area is not None and area <= 0):
            report.add("object below one pixel kept from training", what)
            trainable = False
        elif max(-x, -y, x + w - width, y + h - height) > 1:
            report.add("box reaching out of its image clipped", what)
    ignored = bool(entry.get("ignore"))
    return Annotation(entry["id"], label, (x, y, w, h), area, crowd, ignored, trainable, segmentation)


def _check_segmentation(segmentation: Any, height: int, width: int, where: str) -> Any:
    """The usable part of a segmentation: polygons of three corners or more, or run lengths of the image's size."""
    if not segmentation:
        return None
    if isinstance(segmentation, list):
        try:
            for polygon in segmentation:
                _check_reason(polygon, "segmentation", where, finite=True)
                if len(polygon) * width > _CROSSINGS and crossings(polygon, width) > _CROSSINGS:
                    raise DataError(f"{where}: 'segmentation' goes to and fro too often for an outline to be drawn")
        except TypeError:
            raise DataError(f"{where}: 'segmentation' must be a list of polygons, each a list of numbers") from None
        return [polygon for polygon in segmentation if len(polygon) >= 6 and len(polygon) % 2 == 0] or None
    if not isinstance(segmentation, dict) or not isinstance(segmentation.get("counts"), list | str):
        raise DataError(f"{where}: 'segmentation' is neither a list of polygons nor a run-length mapping with 'counts'")
    size, counts = segmentation.get("size"), segmentation["counts"]
    if size != [height, width]:
        raise DataError(f"{where}: the run lengths are for a size of {_short(size)}, the image has [{height}, {width}]")
    if not covers(counts, height * width):
        raise DataError(f"{where}: the run lengths do not sum up to the {height * width} pixels of the image")
    return {"size": [height, width], "counts": counts}


def _check_reason(numbers: list[float], key: str, where: str, *, finite: bool = False) -> None:
    """Raises DataError for a number that no image can mean, among them NaN and infinities if it has to be finite."""
    # NaN compares as false, and hides from the least and the greatest unless it comes first.
    if not len(numbers) or (
        -_LIMIT < min(numbers) <= max(numbers) < _LIMIT and not (finite and math.isnan(sum(numbers)))
    ):
        return
    for number in numbers:
        beyond = not -_LIMIT < number < _LIMIT
        if beyond and (finite or isinstance(number, int) or math.isfinite(number)):
            raise DataError(f"{where}: '{key}' holds a number beyond reason, {_short(number)}")


def _short(value: object) -> str:
    """The value for a message, cut where it is long."""
    if isinstance(value, int) and abs(value) >= 10**18:
        return f"an integer of {value.bit_length()} bits"
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
