"""labelme's format: a JSON file per image with its shapes. This module does not need torch."""

from __future__ import annotations

import base64
import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from pycocotools import mask as mask_utils

from piip.data.findings import Findings
from piip.data.images import decode_pixels
from piip.data.sets.instances.documents import Document, Shape, read_documents
from piip.data.sets.instances.numbers import coordinate, size_of
from piip.data.sets.instances.records import Instances
from piip.errors import DataError

# Corners of the polygon that a circle becomes.
_CORNERS = 36
# Shapes that surround nothing.
_LINES = ("point", "points", "line", "linestrip")


def read_labelme(root: Path, *, class_names: Sequence[str] | None) -> Instances:
    """Reads a folder of images and JSON files. Raises DataError for a folder that cannot be read.

    Shapes of one class and one group_id are one object. Points and lines, which surround nothing, are left out.
    """
    return read_documents(root, ".json", _parse, class_names=class_names)


def _parse(file: Path, findings: Findings) -> Document | None:
    try:
        data = json.loads(file.read_bytes())
    except (OSError, ValueError, RecursionError) as error:
        findings.add("file of annotations that cannot be read", f"{file.name}: {error}", "error")
        return None
    if not isinstance(data, dict) or not isinstance(data.get("shapes"), list):
        return None
    size = size_of(data.get("imageHeight"), data.get("imageWidth"))
    groups: dict[Any, list[Shape]] = {}
    for position, entry in enumerate(data["shapes"]):
        where = f"{file.name}: shape {position + 1}"
        shape = _read_shape(entry, size, findings, where) if isinstance(entry, dict) else None
        if shape is None:
            continue
        group = entry.get("group_id")
        groups.setdefault((shape.name, position if group is None else f"group {group}"), []).append(shape)
    shapes = [shape for group in groups.values() for shape in _join(group)]
    return Document(str(data.get("imagePath") or file.name), size, shapes)


def _join(shapes: list[Shape]) -> list[Shape]:
    """The shapes of a group: polygons are parts of one object."""
    polygons = [part for shape in shapes if isinstance(shape.segmentation, list) for part in shape.segmentation]
    others = [shape for shape in shapes if not isinstance(shape.segmentation, list)]
    return [*others, *([shapes[0]._replace(box=None, segmentation=polygons)] if polygons else [])]


def _read_shape(entry: dict[str, Any], size: tuple[int, int], findings: Findings, where: str) -> Shape | None:
    name, kind = str(entry.get("label") or "").strip(), entry.get("shape_type") or "polygon"
    if kind in _LINES:
        findings.add("point or line, which surrounds nothing", f"{where} ({name})", "left out")
        return None
    given = entry.get("points")
    given = given if isinstance(given, list) else []
    points = [[coordinate(value) for value in point] for point in given if isinstance(point, list)]
    flat = [value for point in points for value in point if value is not None]
    if not name or len(flat) != 2 * len(points) or len(points) < (3 if kind == "polygon" else 2):
        findings.add("shape without label or with too few points", f"{where} ({kind} '{name}')", "error")
        return None
    box = (flat[0], flat[1], flat[2] - flat[0], flat[3] - flat[1])
    if kind == "circle":
        radius = math.hypot(box[2], box[3])
        angles = [2 * math.pi * corner / _CORNERS for corner in range(_CORNERS)]
        ring = [(flat[0] + radius * math.cos(a), flat[1] + radius * math.sin(a)) for a in angles]
        return Shape(name, None, [[value for point in ring for value in point]])
    if kind == "rectangle" and len(points) == 2:
        return Shape(name, box)
    if kind == "mask":
        return _read_mask(name, str(entry.get("mask") or ""), box, size, findings, where)
    return Shape(name, None, [flat])


def _read_mask(
    name: str, text: str, box: tuple[float, ...], size: tuple[int, int], findings: Findings, where: str
) -> Shape | None:
    """A mask is a PNG of its box, whose corners are pixels that belong to it."""
    left, top = round(box[0]), round(box[1])
    outer = (float(left), float(top), box[2] + 1, box[3] + 1)
    try:
        pixels = decode_pixels(base64.b64decode(text), "the mask").any(axis=2)
        whole_mask = np.zeros(size, dtype=np.uint8, order="F")
        whole_mask[top : top + pixels.shape[0], left : left + pixels.shape[1]] = pixels
    except (DataError, ValueError) as error:
        findings.add("mask that cannot be read left out", f"{where}: {error}", "left out")
        return Shape(name, outer)
    rle = mask_utils.encode(whole_mask)
    return Shape(name, outer, {"size": rle["size"], "counts": rle["counts"].decode()})
