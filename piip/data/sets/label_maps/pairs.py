"""Which image belongs to which label map, and whether they fit. This module does not need torch."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from piip.conventions import NO_LABEL
from piip.data.check import Split
from piip.data.findings import Findings
from piip.data.folders import list_files, list_images
from piip.data.images import read_index_header, read_indices
from piip.data.sets.label_maps.class_names import read_class_names
from piip.data.sets.label_maps.config import LabelMapData
from piip.data.sizes import check_sizes
from piip.data.split import names_in_part
from piip.errors import DataError, first_few

# Maps that are looked at before training; of larger sets every so many. Some seconds.
_MOST_MAPS = 1_000


class Pair(NamedTuple):
    """Files relative to their folders, and the size of the map."""

    image: str
    labels: str
    height: int
    width: int


def find_pairs(config: LabelMapData, report: Findings) -> Iterator[Pair]:
    """The images with their maps, sorted by name.

    Raises DataError for images without a map, two images with the same map, and maps that are no PNGs of numbers.
    """
    found = sorted(list_files(config.labels, {".png"}, report))
    maps = {stem: name for name in found if (stem := _stem(name, config.label_suffix)) is not None}
    images: dict[str, str] = {}
    for name in sorted(list_images(config.images, report)):
        stem = _stem(name, config.image_suffix)
        other = name if stem is None else images.setdefault(stem, name)
        if other != name:
            raise DataError(f"{other} and {name} in {config.images} would share a label map; rename or remove one")
    missing = [name for stem, name in images.items() if stem not in maps]
    if missing or not images:
        which = f"{len(missing)} of {len(images)} images have no PNG of their name: {first_few(missing)}"
        fault = which if images else "no images"
        raise DataError(f"{config.images} with the label maps {config.labels}: {fault}; correct 'images' or 'labels'")
    for stem, name in maps.items():
        if stem not in images:
            report.add("label map without an image left out", name)
    kept = names_in_part(images.values(), config.part)
    for stem, name in images.items():
        if name in kept:
            height, width, _ = read_index_header(config.labels / maps[stem])
            yield Pair(name, maps[stem], height, width)


def _stem(name: str, suffix: str) -> str | None:
    """The name without its ending and a suffix before that; None where it does not have it."""
    stem = os.path.splitext(name)[0]
    return stem.removesuffix(suffix) if stem.endswith(suffix) else None


def check_pairs(config: LabelMapData, pairs: Sequence[Pair], classes: int, findings: Findings) -> NDArray[np.int64]:
    """Adds maps of another size than their image, and labels that there are not, to the findings.

    Returns how many pixels (256,) of the maps that were looked at have each label, as they are stored.
    """
    sizes = [(config.images / pair.image, (pair.height, pair.width), config.labels / pair.labels) for pair in pairs]
    check_sizes(sizes, "label map of another size than its image", findings, config.max_image_pixels)
    counts = np.zeros(NO_LABEL + 1, dtype=np.int64)
    first = int(config.reduce_zero_label)
    for pair in pairs[:: -(-len(pairs) // _MOST_MAPS) or 1]:
        try:
            stored = read_indices(config.labels / pair.labels, config.max_image_pixels)
        except DataError as error:
            findings.add("label map that cannot be read", str(error), "left out")
            continue
        values, pixels = np.unique(stored, return_counts=True)
        fault = label_fault(config.labels / pair.labels, values, classes, first)
        if fault:
            findings.add("label without a class", fault, "error")
        known = values <= NO_LABEL
        counts[values[known]] += pixels[known]
    if counts[NO_LABEL] and counts[0] and not counts[1:NO_LABEL].any():
        findings.add("maps of 0 and 255 alone", only_no_label_fault(config.labels), "error")
    return counts


def label_fault(path: Path, values: NDArray[np.int32], classes: int, first: int) -> str | None:
    """What is wrong with a map of some values, where the first class has the number `first`."""
    wrong = values[(values != NO_LABEL) & (values >= classes + first)]
    if not wrong.size:
        return None
    return (
        f"label map {path} holds {wrong.min()}, but its {classes} classes have the numbers {first} to "
        f"{classes - 1 + first}, and {NO_LABEL} is no label; correct the map or the class names"
    )


def only_no_label_fault(folder: Path) -> str:
    """What is said of maps in which nothing but the background has a label."""
    fault = f"the label maps of {folder} hold only 0 and {NO_LABEL}, which is never a label"
    return f"{fault}; save what is to be found as 1"


def inspect_pairs(config: LabelMapData, name: str) -> Split:
    """The pixels of every label, and what is wrong with the maps, for `piip data check`."""
    findings, names = Findings(name), read_class_names(config.class_names)
    pairs = [*find_pairs(config, findings)]
    counts = check_pairs(config, pairs, len(names), findings)
    labels = zip(names, counts[int(config.reduce_zero_label) :])
    pixels = {label: [int(count)] for label, count in labels} | {"no label": [int(counts[NO_LABEL])]}
    images = {config.images / pair.image: (pair.height, pair.width) for pair in pairs}
    return Split(name, str(config.labels), findings, names, images, pixels, "pixels")
