"""Objects in images, whatever format they come from, and the rules by which they are cleaned.

Rules, in the order in which they are tried (what is found -> what happens); everything is counted in the findings:
- negative width or height -> the box is turned round
- no box, or one without area -> that of the mask; without a mask the object is left out
- box outside its image -> the object is left out
- mask that cannot be read, is empty, or does not touch its box -> the mask is left out, the box is kept
- area that contradicts the box, or is the box's where the mask has less -> that of the mask, else of the box
- box below one pixel within its image -> left out of training
- box more than a pixel over its image's edge -> clipped in training; evaluation keeps it as the file has it

This module does not need torch.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from pycocotools import mask as mask_utils

from piip.data.findings import Effect, Findings
from piip.data.sets.instances.masks import BadMaskError, Box, Mask, read_mask, to_rle

# Shares of the box between which an area is not looked at further.
_LEAST_OF_BOX, _MOST_OF_BOX = 1 / 2000, 1.1
# Areas that differ by a greater factor contradict one another.
_SAME_AREA = 1.25


class Annotation(NamedTuple):
    """One object or crowd region. box: (x, y, width, height) in pixels as the file has it; area: None: see measure."""

    id: int | str
    label: int
    box: Box
    area: float | None
    crowd: bool
    ignored: bool  # kept from the training targets, like a crowd
    trainable: bool
    segmentation: Any  # list of polygons, RLE mapping, or None

    def measure(self, height: int, width: int) -> float:
        """The area in pixels: the file's, else the mask's, else the box's."""
        if self.area is not None:
            return self.area
        if self.segmentation is None:
            return self.box[2] * self.box[3]
        return float(mask_utils.area(to_rle(self.segmentation, height, width)))


class ImageRecord(NamedTuple):
    """file_name: relative to the image folder."""

    id: int | str
    file_name: str
    height: int
    width: int
    annotations: tuple[Annotation, ...]


@dataclass
class Instances:
    """Images and their objects as a reader has found them.

    source: the annotation file or folder, for messages. folder: of the images. class_names: name per label.
    category_ids: id in the file per label. findings: what was repaired, left out, or is wrong.
    """

    source: Path
    folder: Path
    class_names: list[str]
    images: list[ImageRecord]
    findings: Findings
    category_ids: list[int | str]

    @property
    def has_masks(self) -> bool:
        """Whether any object has a mask."""
        return any(a.segmentation is not None for image in self.images for a in image.annotations if not a.crowd)

    def rename(self, class_names: Sequence[str]) -> None:
        """Numbers the classes as these names are; an object of another class is an error."""
        if self.class_names == [*class_names]:
            return
        labels = {name: label for label, name in enumerate(class_names)}
        ids = dict(zip(self.class_names, self.category_ids))
        new = [labels.get(name) for name in self.class_names]
        for place, image in enumerate(self.images):
            kept = []
            for a in image.annotations:
                label = new[a.label]
                if label is None:
                    what = f"'{self.class_names[a.label]}': annotation {a.id} of {image.file_name}"
                    self.findings.add("object of a class that class_names does not list", what, "error")
                else:
                    kept.append(a._replace(label=label))
            self.images[place] = image._replace(annotations=tuple(kept))
        self.class_names, self.category_ids = [*class_names], [ids.get(name, name) for name in class_names]


def clip_box(box: Box, height: int, width: int) -> Box:
    """(x, y, width, height) to (x1, y1, x2, y2) within the image."""
    x, y, w, h = box
    return min(max(x, 0), width), min(max(y, 0), height), min(max(x + w, 0), width), min(max(y + h, 0), height)


def clean(
    findings: Findings,
    image: ImageRecord,
    id_: int | str,
    label: int,
    box: Box | None,
    segmentation: Any = None,
    area: float | None = None,
    crowd: bool = False,
    ignored: bool = False,
) -> Annotation | None:
    """An object under the rules at the top of this file, or None when it is left out altogether.

    id_: of the annotation, for messages. box: finite numbers, or None for that of the mask. segmentation: as the file
    has it, polygons or run lengths. area: what the file says, a finite number.
    """

    def tell(kind: str, effect: Effect = "repaired", why: str = "") -> None:
        findings.add(kind, f"annotation {id_} of {image.file_name}{why}", effect)

    height, width = image.height, image.width
    if box is not None and (box[2] < 0 or box[3] < 0):
        x, y, w, h = box
        box = (min(x, x + w), min(y, y + h), abs(w), abs(h))
        tell("box of negative width or height turned round")
    mask = _find_mask(segmentation, box, (height, width), tell) if segmentation else None
    if box is None or not (box[2] > 0 and box[3] > 0):
        if mask is None:
            tell("box without area dropped", "left out")
            return None
        x1, y1, x2, y2 = mask.extent
        box = (x1, y1, x2 - x1, y2 - y1)
        tell("box without area taken from its mask")
    x, y, w, h = box
    left, top, right, bottom = clip_box(box, height, width)
    if right <= left or bottom <= top:
        tell("box outside its image dropped", "left out")
        return None
    if mask is not None:
        mask = _check_mask(mask, (left, top, right, bottom), (height, width), tell)
    found = Annotation(
        id_, label, (x, y, w, h), area, crowd, ignored, True, None if mask is None else mask.segmentation
    )
    if area is not None and (
        not _LEAST_OF_BOX * w * h <= area <= _MOST_OF_BOX * w * h + 2 or (mask is not None and area == w * h)
    ):
        measured = found._replace(area=None).measure(height, width)
        if area <= 0 or not 1 / _SAME_AREA < measured / area < _SAME_AREA:
            found = found._replace(area=None)
            tell("area that contradicts its box computed anew")
    if not crowd:
        if right - left < 1 or bottom - top < 1:
            tell("object below one pixel kept from training", "left out")
            return found._replace(trainable=False)
        if max(-x, -y, x + w - width, y + h - height) > 1:
            tell("box reaching out of its image clipped")
    return found


def _find_mask(segmentation: Any, box: Box | None, size: tuple[int, int], tell: Callable[..., None]) -> Mask | None:
    try:
        return read_mask(segmentation, box, size, tell)
    except BadMaskError as error:
        tell("mask that cannot be read left out", "left out", f": {error}")
        return None


def _check_mask(mask: Mask, box: Box, size: tuple[int, int], tell: Callable[..., None]) -> Mask | None:
    """The mask, unless it has no pixel or none near its box (x1, y1, x2, y2)."""
    x1, y1, x2, y2 = mask.extent
    across, down = min(x2, box[2]) - max(x1, box[0]), min(y2, box[3]) - max(y1, box[1])
    if across <= 0 or down <= 0:
        tell("mask that is empty or outside its box left out", "left out")
        return None
    if (x2 - x1 < 1.5 or y2 - y1 < 1.5) and not mask_utils.area(to_rle(mask.segmentation, *size)):
        tell("mask that is empty or outside its box left out", "left out")
        return None
    union = (box[2] - box[0]) * (box[3] - box[1]) + (x2 - x1) * (y2 - y1) - across * down
    if across * down < 0.5 * union:
        tell("mask that does not fill its box, or reaches out of it", "suspect")
    return mask
