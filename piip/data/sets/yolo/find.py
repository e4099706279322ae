"""A data.yaml, or a file of classes beside images and text files, in a folder or in one of those in it."""

from __future__ import annotations

import os
from pathlib import Path

from piip.data.find import FoundData, Tree
from piip.data.folders import ending_of
from piip.data.images import IMAGE_SUFFIXES
from piip.data.sets.instances.config import InstanceData
from piip.data.sets.instances.find import found_instances
from piip.data.sets.yolo.config import YoloData
from piip.data.sets.yolo.reader import find_description, read_splits


def find_yolo(tree: Tree) -> FoundData | None:
    """The splits that a data.yaml names, or the images of which text files have the names."""
    for place in (tree.folder, *(tree.folder / top for top in tree.tops)):
        file = find_description(place)
        if file is None:
            continue
        described = file.suffix in (".yaml", ".yml")
        if described or _has_labels(tree, file):
            root = file if described else place
            options: dict[str | None, InstanceData] = {s: YoloData(root=root, split=s) for s in read_splits(file)}
            return found_instances(tree, f"YOLO labels ({file.name})", options, look_at_both=True)
    return None


def _has_labels(tree: Tree, file: Path) -> bool:
    """Whether a text file other than this one has the stem of an image."""
    names = [name for files in tree.files.values() for name in files]
    images = {os.path.splitext(name)[0] for name in names if ending_of(name) in IMAGE_SUFFIXES}
    return any(ending_of(n) == ".txt" and n != file.name and os.path.splitext(n)[0] in images for n in names)
