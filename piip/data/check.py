"""Everything that is wrong with data, in one pass: what readers find, damaged images, copies, leaks into evaluation.

This module does not need torch.
"""

from __future__ import annotations

import hashlib
import math
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from piip.data.findings import Findings
from piip.data.images import read_pixels, size_fault
from piip.data.sets.config import DatasetConfig
from piip.data.sets.instances.records import ImageRecord, Instances, clean
from piip.errors import DataError

# Objects below this many pixels (the root of their box) are hard to see; long sides of images that are tried for them.
LEAST_SIDE, LONG_SIDES = 8, (640, 1024, 1568, 2048)
# The longest side of a tried size that leaves no more than this share of objects below the least is suggested.
_FEW = 0.05
# Bits of 64 in which the differences of grey of two nearly identical images may differ, and least that such have set.
_NEAR, _LEAST_BITS = 3, 8


@dataclass
class Split:
    """One set of images.

    images: (h, w) by file, zeros for those that cannot be read or were not. objects: by class how many are small,
    medium and large; or how many pixels, or images, as the unit says.
    """

    name: str
    source: str
    findings: Findings
    class_names: list[str] = field(default_factory=list)
    images: dict[Path, tuple[int, int]] = field(default_factory=dict)
    objects: dict[str, list[int]] = field(default_factory=dict)
    unit: str = "objects"
    instances: Instances | None = None


@dataclass(frozen=True)
class _Seen:
    """Of one image: hash of its bytes, and of its look; neither where it cannot be read."""

    bytes: str
    look: int


def check_data(sets: dict[str, DatasetConfig], *, pixels: bool = True) -> list[Split]:
    """Looks at data sets by the names of their splits. pixels: read all images, and not only what is said of them."""
    splits = [_inspect(name, config) for name, config in sets.items()]
    seen = [_look_at(split) if pixels else {} for split in splits]
    _compare(splits, seen)
    return splits


def _inspect(name: str, config: DatasetConfig) -> Split:
    try:
        return config.inspect(name)
    except DataError as error:
        findings = Findings(name)
        findings.add("data that cannot be read", str(error), "error")
        return Split(name, "", findings)


def _look_at(split: Split) -> dict[Path, _Seen]:
    """Reads every image; adds those that are damaged or of another size than is said."""
    seen: dict[Path, _Seen] = {}
    with ThreadPoolExecutor() as pool:
        for (path, size), result in zip(split.images.items(), pool.map(_read_image, split.images)):
            if isinstance(result, str):
                split.findings.add("image that cannot be read", result, "left out")
                split.images[path] = (0, 0)
                continue
            found, seen[path] = result
            if split.unit == "objects" and found != size:
                what = size_fault(path, found, size, Path(split.source))
                split.findings.add("image of another size than annotated", what, "error")
            split.images[path] = found
    return seen


def _read_image(path: Path) -> tuple[tuple[int, int], _Seen] | str:
    try:
        data = path.read_bytes()
        pixels = read_pixels(path)
    except DataError as error:
        return str(error)
    except OSError as error:
        return f"cannot read {path}: {error.strerror}"
    grey = np.asarray(Image.fromarray(pixels).convert("L").resize((9, 8), Image.Resampling.BOX), dtype=np.int16)
    bits = np.packbits(grey[:, 1:] > grey[:, :-1])
    size = pixels.shape[0], pixels.shape[1]
    return size, _Seen(hashlib.blake2b(data, digest_size=16).hexdigest(), int.from_bytes(bits.tobytes(), "big"))


def _compare(splits: Sequence[Split], seen: Sequence[dict[Path, _Seen]]) -> None:
    """Adds copies within a split and between splits, and classes that are numbered differently."""
    for split, images in zip(splits, seen):
        counts = Counter(image.bytes for image in images.values())
        first: dict[str, Path] = {}
        for path, image in images.items():
            other = first.setdefault(image.bytes, path)
            if other != path:
                kind = f"copy of another image of the split (largest group: {max(counts.values())})"
                split.findings.add(kind, f"{path.name} is {other.name}", "suspect")
    for index, split in enumerate(splits[1:], 1):
        for before, others in zip(splits[:index], seen[:index]):
            if split.class_names != before.class_names and split.class_names and before.class_names:
                what = f"{split.class_names} in {split.name}, {before.class_names} in {before.name}"
                split.findings.add("classes that are others, or numbered otherwise, in training", what[:200], "error")
            _find_leaks(split, before, seen[index], others)


def _find_leaks(split: Split, other: Split, images: dict[Path, _Seen], others: dict[Path, _Seen]) -> None:
    shared = [path for path in split.images if path in other.images]
    for path in shared:
        split.findings.add(f"image that is in {other.name} too", path.name, "suspect")
    by_bytes = {image.bytes: path for path, image in others.items()}
    by_part: dict[tuple[int, int], list[Path]] = {}
    for path, image in others.items():
        for part in _parts(image.look):
            by_part.setdefault(part, []).append(path)
    for path, image in images.items():
        if path in other.images:
            continue
        twin = by_bytes.get(image.bytes)
        if twin is not None:
            split.findings.add(f"copy of an image in {other.name}", f"{path.name} is {twin.name}", "suspect")
            continue
        alike = (p for part in _parts(image.look) for p in by_part.get(part, []))
        like = next((p for p in alike if (image.look ^ others[p].look).bit_count() <= _NEAR), None)
        if like is not None:
            what = f"{path.name} is much like {like.name}"
            split.findings.add(f"image nearly identical to one in {other.name}", what, "suspect")


def _parts(look: int) -> list[tuple[int, int]]:
    """Four numbered parts of the bits: where no more than three bits differ one part is equal."""
    # Of images without any structure all bits are alike.
    has_structure = _LEAST_BITS <= look.bit_count() <= 64 - _LEAST_BITS
    return [(part, look >> 16 * part & 0xFFFF) for part in range(4)] if has_structure else []


def small_shares(split: Split, sides: Sequence[int] = LONG_SIDES) -> dict[int, float]:
    """By long side of the resized images: the share of objects whose box is then below LEAST_SIDE pixels."""
    if split.instances is None:
        return {}
    lengths = [
        math.sqrt(a.box[2] * a.box[3]) / max(image.height, image.width)
        for image in split.instances.images
        for a in image.annotations
        if not a.crowd
    ]
    relative = np.array(lengths or [np.inf])
    return {side: float((relative * side < LEAST_SIDE).mean()) for side in sides}


def suggest_side(shares: dict[int, float]) -> int | None:
    """The smallest of the sides that leaves few objects too small, else the largest."""
    return next((side for side, share in sorted(shares.items()) if share <= _FEW), max(shares, default=None))


def wrong(splits: Sequence[Split]) -> int:
    """How many things were found that are more than notes."""
    return sum(sum(split.findings.of("repaired", "left out", "error", "suspect").values()) for split in splits)


def as_document(splits: Sequence[Split], sides: Sequence[int] = LONG_SIDES) -> dict[str, Any]:
    """What was found, for JSON."""
    return {"ok": not wrong(splits), "splits": [_split_document(split, sides) for split in splits]}


def _split_document(split: Split, sides: Sequence[int]) -> dict[str, Any]:
    findings, shares = split.findings, small_shares(split, sides)
    return {
        "name": split.name,
        "source": split.source,
        "images": len(split.images),
        "classes": split.class_names,
        split.unit: split.objects,
        "small_objects": {str(side): share for side, share in shares.items()},
        "suggested_long_side": suggest_side(shares),
        "findings": [
            {"kind": kind, "effect": findings.effects[kind], "count": count, "examples": findings.examples[kind]}
            for kind, count in findings.counts.items()
        ],
    }


def _resized(image: ImageRecord, size: tuple[int, int]) -> ImageRecord:
    """The image with its true size, and what of its objects lies in it."""
    image = image._replace(height=size[0], width=size[1])
    ignored = Findings("")
    kept = [
        clean(ignored, image, a.id, a.label, a.box, a.segmentation, a.area, a.crowd, a.ignored)
        for a in image.annotations
    ]  # fmt: skip
    return image._replace(annotations=tuple(a for a in kept if a is not None))


def repaired(split: Split, report: Callable[[str], None]) -> dict[str, Any]:
    """A clean COCO file of a split's instances; report: is told what was done."""
    found = split.instances
    if found is None:
        raise DataError(f"{split.source or split.name}: only boxes and masks are written anew, as a COCO file")
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    for number, image in enumerate(found.images, 1):
        size = split.images[found.folder / image.file_name]
        if size != (image.height, image.width):
            image = _resized(image, size)
        if size == (0, 0):
            continue
        images.append({"id": number, "file_name": image.file_name, "height": size[0], "width": size[1]})
        annotations += [
            {
                "id": len(annotations) + place,
                "image_id": number,
                "category_id": a.label + 1,
                "bbox": [*a.box],
                "area": a.measure(*size),
                "iscrowd": int(a.crowd),
                "segmentation": a.segmentation or [],
            }
            for place, a in enumerate(image.annotations, 1)
        ]
    for kind, count in split.findings.of("repaired", "left out", "error").items():
        effect = split.findings.effects[kind]
        report(f"{effect if effect != 'error' else 'left out or corrected'}: {count} x {kind}")
    categories = [{"id": label, "name": name} for label, name in enumerate(found.class_names, 1)]
    report(f"{len(images)} images, {len(annotations)} annotations and {len(categories)} categories written")
    return {"images": images, "annotations": annotations, "categories": categories}
