"""Pascal VOC's format: an XML file per image with the boxes of its objects. This module does not need torch."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from xml.etree import ElementTree

from piip.data.findings import Findings
from piip.data.sets.instances.documents import Document, Shape, read_documents
from piip.data.sets.instances.numbers import coordinate, size_of
from piip.data.sets.instances.records import Instances
from piip.errors import DataError

_CORNERS = ("xmin", "ymin", "xmax", "ymax")


def read_voc(root: Path, *, split: str | None, class_names: Sequence[str] | None) -> Instances:
    """Reads a folder of images and XML files. Raises DataError for a folder or a list of images that is not there.

    Objects marked as difficult are regions that nothing is learned from and no figure counts, as in VOC's evaluation.
    """
    only = None
    if split is not None:
        file = root / "ImageSets" / "Main" / f"{split}.txt"
        try:
            # Lists of one class have a number behind each image.
            only = [line.split()[0] for line in file.read_text(encoding="utf-8-sig").splitlines() if line.strip()]
        except (OSError, UnicodeDecodeError) as error:
            raise DataError(f"cannot read {file}: {error}") from None
    return read_documents(root, ".xml", _parse, class_names=class_names, only=only)


def _parse(file: Path, findings: Findings) -> Document | None:
    try:
        tree = ElementTree.parse(file).getroot()
    # Of encodings, Python's reader knows those of one byte per character, UTF-8 and UTF-16; others raise the last two.
    except (OSError, ElementTree.ParseError, LookupError, ValueError) as error:
        findings.add("file of annotations that cannot be read", f"{file.name}: {error}", "error")
        return None
    if tree.tag != "annotation":
        return None
    # VOC itself counts pixels from 1; tools that write its format count from 0.
    shift = 1 if "voc" in (tree.findtext("source/database") or "").lower() else 0
    shapes: list[Shape] = []
    for entry in tree.iterfind("object"):
        name = (entry.findtext("name") or "").strip()
        corners = [coordinate(entry.findtext(f"bndbox/{key}")) for key in _CORNERS]
        known = [corner for corner in corners if corner is not None]
        outline = entry.find("polygon")
        polygon = [coordinate(point.text) for point in outline] if outline is not None else []
        if not name or (len(known) < 4 and not polygon):
            what = f"{file.name}: object {len(shapes) + 1} '{name}' has no name or no box"
            findings.add("object without name or box", what, "error")
            continue
        box = None
        if len(known) == 4:
            left, top, right, bottom = known
            box = (left - shift, top - shift, right - left + shift, bottom - top + shift)
        crowd = (entry.findtext("difficult") or "0").strip() == "1"
        if crowd:
            kind = "object marked as difficult, which nothing is learned from and no figure counts"
            findings.add(kind, f"{name} in {file.name}", "left out")
        shapes.append(Shape(name, box, [polygon] if polygon else None, crowd))
    size = size_of(tree.findtext("size/height"), tree.findtext("size/width"))
    return Document(tree.findtext("filename") or file.name, size, shapes)
