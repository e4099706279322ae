"""Folders of images and of label maps that lie beside one another."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Collection, Iterator, Sequence
from itertools import islice
from pathlib import Path

import numpy as np

from piip.conventions import NO_LABEL
from piip.data.find import FoundData, Tree, pair_up, split_of
from piip.data.findings import Findings
from piip.data.folders import ending_of, list_files
from piip.data.images import IMAGE_SUFFIXES, read_index_header, read_indices
from piip.data.sets.label_maps.class_names import read_class_names
from piip.data.sets.label_maps.config import LabelMapData
from piip.data.sets.label_maps.pairs import only_no_label_fault
from piip.errors import DataError

# Names of folders of label maps, and of the images beside them; files of class names, one per line.
_LABELS = (
    "labels", "label", "masks", "mask", "annotations", "annotation", "gt", "gtfine", "segmentationclass", "targets",
)  # fmt: skip
_IMAGES = ("images", "image", "imgs", "img", "jpegimages", "leftimg8bit", "photos", "inputs", "input")
_NAMES = ("classes.txt", "class_names.txt", "names.txt", "labels.txt")
_LOOKED_AT = 50


def find_label_maps(tree: Tree) -> FoundData | None:
    """Pairs of folders, or pairs of folders of a split in these. Raises DataError for maps that cannot be used."""
    options: dict[str | None, LabelMapData] = {}
    for images, labels in _folders(tree):
        below = [parent[len(labels) + 1 :] for parent in tree.files if parent.startswith(f"{labels}/")]
        parts = [(f"{images}/{sub}", f"{labels}/{sub}", split_of(sub)) for sub in below if "/" not in sub]
        whole = (images, labels, split_of(labels))
        for image_folder, label_folder, split in [part for part in parts if part[2]] or [whole]:
            data = _read_pair(tree, image_folder, label_folder)
            if data is not None:
                options[split] = data
    pair = pair_up(options)
    if pair is None:
        return None
    names = _read_names(tree, pair)
    train, val = (data.model_copy(update={"class_names": tuple(names)}) for data in pair)
    return FoundData(tree.folder, "images and label maps", "segmentation", train, val, names)


def _folders(tree: Tree) -> Iterator[tuple[str, str]]:
    """Folders of images and of labels that lie beside one another and are called so."""
    for labels in tree.files:
        parent, name = os.path.split(labels)
        if name.lower() in _LABELS:
            beside = [other for other in tree.files if os.path.split(other)[0] == parent and other != labels]
            named = [other for word in _IMAGES for other in beside if os.path.basename(other).lower() == word]
            if named:
                yield named[0], labels


def _read_pair(tree: Tree, images: str, labels: str) -> LabelMapData | None:
    """A pair of folders, with what names have behind a common stem, if the labels are PNGs of numbers."""
    maps, photos = _stems(tree, labels, {".png"}), _stems(tree, images, IMAGE_SUFFIXES)
    if not maps or not photos:
        return None
    ends = Counter(_suffixes(photo, maps) for photo in photos[:_LOOKED_AT])
    (image_suffix, label_suffix), count = ends.most_common(1)[0]
    if count < 0.5 * min(len(photos), _LOOKED_AT):
        return None
    folder = tree.folder / labels
    try:
        for name in islice(_maps(folder, label_suffix), 3):
            read_index_header(folder / name)
    except DataError as error:
        raise DataError(f"{folder} looks like label maps, but {error}") from None
    return LabelMapData(
        images=tree.folder / images,
        labels=folder,
        class_names=("unknown",),
        image_suffix=image_suffix,
        label_suffix=label_suffix,
    )


def _maps(folder: Path, suffix: str) -> Iterator[str]:
    """The label maps in a folder, relative to it."""
    return (name for name in list_files(folder, {".png"}, Findings("")) if os.path.splitext(name)[0].endswith(suffix))


def _stems(tree: Tree, root: str, endings: Collection[str]) -> list[str]:
    parents = [parent for parent in tree.files if parent == root or parent.startswith(f"{root}/")]
    return [os.path.splitext(n)[0] for parent in parents for n in tree.files[parent] if ending_of(n) in endings]


def _suffixes(photo: str, maps: list[str]) -> tuple[str, str]:
    """What a photo's stem and that of its map have behind what they share: the map that shares most is its own."""
    if photo in maps:
        return "", ""
    shared, best = max((_count_shared(photo, name), name) for name in maps)
    return photo[shared:], best[shared:]


def _count_shared(a: str, b: str) -> int:
    """How many characters two names begin with alike."""
    return next((place for place, (x, y) in enumerate(zip(a, b)) if x != y), min(len(a), len(b)))


def _read_names(tree: Tree, sets: Sequence[LabelMapData]) -> list[str]:
    """The names in a text file, or one for each number in the maps."""
    file = next((name for name in _NAMES if name in tree.files["."]), None)
    if file is not None:
        return read_class_names(tree.folder / file)
    values: set[int] = set()
    for data in sets:
        for name in islice(_maps(data.labels, data.label_suffix), _LOOKED_AT):
            values |= {*np.unique(read_indices(data.labels / name)).tolist()}
    labels = values - {NO_LABEL}
    if labels <= {0} and NO_LABEL in values:
        raise DataError(only_no_label_fault(tree.folder))
    return [f"label {label}" for label in range(max(labels) + 1)]
