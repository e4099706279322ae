"""COCO files in a folder, and the images that they name."""

from __future__ import annotations

import os
import re
from pathlib import Path

from piip.data.find import FoundData, Tree, split_of, words_of
from piip.data.sets.coco.config import CocoData
from piip.data.sets.instances.find import found_instances
from piip.errors import DataError, first_few

# Bytes of files that are read in a second; of larger ones only that of evaluation is looked into.
_LARGE = 20_000_000

_NAMES = re.compile(rb'"(?:file_name|coco_url)"\s*:\s*"((?:[^"\\]|\\.)+)"')


def find_coco(tree: Tree) -> FoundData | None:
    """COCO files, one per split. Raises DataError where several may be meant."""
    files: dict[str | None, list[str]] = {}
    for path in tree.with_ending(".json"):
        if _is_coco(tree.ends(path)):
            files.setdefault(split_of(path), []).append(path)
    options = {}
    for split, paths in files.items():
        # Beside 'instances_train2017.json' COCO has files of captions and keypoints.
        chosen = [path for path in paths if "instances" in Path(path).name] if len(paths) > 1 else paths
        if len(chosen) != 1:
            raise DataError(
                f"{tree.folder} holds several COCO files for {split or 'training'}: {first_few(paths)}; name one in "
                "data.train.annotations and data.val.annotations"
            )
        file = tree.folder / chosen[0]
        options[split] = CocoData(images=_images_of(tree, chosen[0]) or file.parent, annotations=file)
    size = sum(data.annotations.stat().st_size for data in options.values())
    return found_instances(tree, "COCO annotations", options, look_at_both=size < _LARGE)


def coco_of_file(file: Path) -> CocoData:
    """The data of one file, whose images are looked for beside it, below it and in the folder above."""
    for folder in (file.parent, file.parent.parent):
        images = _images_of(Tree(folder, deepest=2), os.path.relpath(file, folder))
        if images is not None:
            return CocoData(images=images, annotations=file)
    return CocoData(images=file.parent, annotations=file)


def _is_coco(ends: bytes) -> bool:
    return b'"images"' in ends and (b'"categories"' in ends or b'"annotations"' in ends) and b'"caption"' not in ends


def _images_of(tree: Tree, path: str) -> Path | None:
    """The folder of the images that a file names: one that holds one of the first of them, the nearest to the file."""
    parents = sorted(tree.files, key=lambda parent: _closeness(parent, path), reverse=True)
    for raw in _NAMES.findall(tree.ends(path))[:20]:
        name = raw.decode("utf-8", "replace").replace("\\\\", "/").replace("\\/", "/")
        if os.path.isabs(name) and os.path.isfile(name) and Path(name).is_relative_to(tree.folder.absolute()):
            return Path(name).parent
        for parent in parents:
            if os.path.isfile(tree.folder / parent / name) and ".." not in name:
                return tree.folder / parent
        for parent in parents:
            if Path(name).name in tree.files[parent]:
                return tree.folder / parent
    return None


def _closeness(parent: str, path: str) -> tuple[bool, int]:
    """How much a folder's path has in common with a file's, first in what split they are for."""
    return split_of(parent) == split_of(path), len({*words_of(parent)} & {*words_of(path)})
