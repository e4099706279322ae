"""What a folder of data holds: which format, which images are for training and which for evaluation, which classes.

This module does not need torch.
"""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Literal

import numpy as np

from piip.conventions import NO_LABEL
from piip.data.folders import ending_of, list_folder
from piip.data.images import IMAGE_SUFFIXES, read_index_header, read_indices
from piip.data.sets.coco.config import CocoData
from piip.data.sets.config import DatasetConfig
from piip.data.sets.image_folder.config import ImageFolderData
from piip.data.sets.instances.config import InstanceData
from piip.data.sets.label_maps.config import LabelMapData
from piip.data.sets.labelme.config import LabelmeData
from piip.data.sets.voc.config import VocData
from piip.data.sets.yolo.config import YoloData
from piip.data.sets.yolo.reader import find_description, read_splits
from piip.errors import DataError, first_few

# By the split that they are for: what folders and files are called.
_SPLITS = {"train": ("train", "training"), "val": ("val", "valid", "validation", "dev"), "test": ("test", "testing")}
_WORDS = re.compile(r"[a-z]+")
# Names of folders of label maps, and of the images beside them.
_LABELS = (
    "labels",
    "label",
    "masks",
    "mask",
    "annotations",
    "annotation",
    "gt",
    "gtfine",
    "segmentationclass",
    "targets",
)
_IMAGES = ("images", "image", "imgs", "img", "jpegimages", "leftimg8bit", "photos", "inputs", "input")
_NAMES = ("classes.txt", "class_names.txt", "names.txt", "labels.txt")
# Folders within folders that are looked at; bytes at both ends of a JSON file; label maps.
_DEEPEST, _SNIFFED, _LOOKED_AT = 4, 65_536, 50


@dataclass(frozen=True)
class FoundData:
    """format: in words. train, val: where the images are. class_names: one per label. masks: None but for instances."""

    folder: Path
    format: str
    task: Literal["detection", "segmentation", "classification"]
    train: DatasetConfig
    val: DatasetConfig
    class_names: list[str]
    masks: bool | None = None

    def __str__(self) -> str:
        parted = getattr(self.val, "part", "all") != "all"
        split = "a fifth of the images, by the hashes of their names, for evaluation" if parted else "with a split"
        masks = {None: "", True: ", masks", False: ", boxes without masks"}[self.masks]
        names = f"{len(self.class_names)} classes ({first_few(self.class_names)})"
        return f"{self.folder}: {self.format}, {split}; {names}{masks}"


def find_data(folder: Path) -> FoundData:
    """Looks at what a folder holds. Raises DataError that says what was looked for where nothing is found."""
    if not folder.is_dir():
        raise DataError(f"there is no folder {folder}")
    tree = {os.path.relpath(path, folder): names for path, names in _walk(folder)}
    for find in (_find_coco, _find_yolo, _find_voc, _find_labelme, _find_label_maps, _find_image_folders):
        found = find(folder, tree)
        if found is not None:
            return found
    images = sum(ending_of(name) in IMAGE_SUFFIXES for names in tree.values() for name in names)
    raise DataError(
        f"{folder} has {images} images, but nothing says what is on them: neither a COCO *.json, a YOLO data.yaml "
        "or classes.txt, Pascal VOC *.xml, labelme *.json, folders images and labels with PNGs, nor a folder per class"
    )


def _walk(folder: Path, depth: int = 0) -> Iterator[tuple[str, list[str]]]:
    """The folders and their files, without those that begin with a dot."""
    try:
        with os.scandir(folder) as entries:
            found = sorted((e.name, e.is_dir(follow_symlinks=False) or os.path.isdir(e.path)) for e in entries)
    except OSError as error:
        raise DataError(f"cannot read the folder {folder}: {error.strerror}") from None
    found = [(name, is_folder) for name, is_folder in found if not name.startswith(".")]
    yield str(folder), [name for name, is_folder in found if not is_folder]
    for name, is_folder in found:
        if is_folder and depth < _DEEPEST:
            yield from _walk(folder / name, depth + 1)


def split_of(path: str) -> str | None:
    """train, val or test, where the last word of a path that is one of these says so."""
    for word in reversed(_WORDS.findall(path.lower())):
        for split, words in _SPLITS.items():
            if word in words:
                return split
    return None


def _pair(options: dict[str | None, InstanceData]) -> tuple[InstanceData, InstanceData] | None:
    """Training and validation data from what there is by split; one set alone is divided."""
    train = options.get("train", options.get(None))
    val = options.get("val", options.get("test"))
    only = train or val
    if only is None:
        return None
    if train is not None and val is not None:
        return train, val
    return only.model_copy(update={"part": "train"}), only.model_copy(update={"part": "val"})


def _instances(
    folder: Path, words: str, options: dict[str | None, InstanceData], *, look_at_both: bool
) -> FoundData | None:
    """Data whose classes and masks are read from the files, those of evaluation, which are fewer, or of both."""
    pair = _pair(options)
    if pair is None:
        return None
    train, val = pair
    reads = [val.read()]
    if look_at_both and train.model_copy(update={"part": val.part}) != val:
        reads.append(train.read())
    names = list(dict.fromkeys(name for read in reads for name in read.class_names))
    if "class_names" in type(train).model_fields:
        names.sort()
        train, val = (data.model_copy(update={"class_names": tuple(names)}) for data in (train, val))
    return FoundData(folder, words, "detection", train, val, names, any(read.has_masks for read in reads))


def _find_coco(folder: Path, tree: dict[str, list[str]]) -> FoundData | None:
    files: dict[str | None, list[str]] = {}
    for parent, names in tree.items():
        for name in names:
            path = name if parent == "." else f"{parent}/{name}"
            if ending_of(name) == ".json" and _holds_coco(folder / path):
                files.setdefault(split_of(path), []).append(path)
    options: dict[str | None, InstanceData] = {}
    for split, paths in files.items():
        # Beside 'instances_train2017.json' COCO has files of captions and keypoints.
        chosen = [path for path in paths if "instances" in Path(path).name] if len(paths) > 1 else paths
        if len(chosen) != 1:
            raise DataError(
                f"{folder} holds several COCO files for {split or 'training'}: {first_few(paths)}; name one in "
                "data.train.annotations and data.val.annotations"
            )
        file = folder / chosen[0]
        options[split] = CocoData(images=_images_of(folder, chosen[0], tree) or file.parent, annotations=file)
    return _instances(folder, "COCO annotations", options, look_at_both=False)


def coco_file(file: Path) -> CocoData:
    """The data of one COCO file, whose images are looked for beside it and in the folder above."""
    for folder in (file.parent, file.parent.parent):
        tree = {os.path.relpath(path, folder): names for path, names in _walk(folder, _DEEPEST - 2)}
        images = _images_of(folder, os.path.relpath(file, folder), tree)
        if images is not None:
            return CocoData(images=images, annotations=file)
    return CocoData(images=file.parent, annotations=file)


def _ends_of(path: Path) -> bytes:
    """The first and last bytes of a file."""
    try:
        with path.open("rb") as file:
            start = file.read(_SNIFFED)
            file.seek(max(len(start), path.stat().st_size - _SNIFFED))
            return start + file.read()
    except OSError as error:
        raise DataError(f"cannot read {path}: {error.strerror}") from None


def _holds_coco(path: Path) -> bool:
    ends = _ends_of(path)
    return b'"images"' in ends and (b'"categories"' in ends or b'"annotations"' in ends) and b'"caption"' not in ends


def _images_of(folder: Path, path: str, tree: dict[str, list[str]]) -> Path | None:
    """The folder of the images that a COCO file names: one that holds the first of them, the nearest to the file."""
    names = re.findall(rb'"(?:file_name|coco_url)"\s*:\s*"((?:[^"\\]|\\.)+)"', _ends_of(folder / path))
    parents = sorted(tree, key=lambda parent: _closeness(parent, path), reverse=True)
    for raw in names[:20]:
        name = raw.decode("utf-8", "replace").replace("\\\\", "/").replace("\\/", "/")
        if os.path.isabs(name) and os.path.isfile(name) and Path(name).is_relative_to(folder.absolute()):
            return Path(name).parent
        for parent in parents:
            if (folder / parent / name).is_file() and ".." not in name:
                return folder / parent
        for parent in parents:
            if Path(name).name in tree[parent]:
                return folder / parent
    return None


def _closeness(parent: str, path: str) -> tuple[bool, int]:
    """How much a folder's path has in common with a file's, first in what split they are for."""
    words = {*_WORDS.findall(parent.lower())} & {*_WORDS.findall(path.lower())}
    return split_of(parent) == split_of(path), len(words)


def _find_yolo(folder: Path, tree: dict[str, list[str]]) -> FoundData | None:
    places = [folder, *(folder / parent for parent in tree if parent != "." and "/" not in parent)]
    for place in places:
        file = find_description(place)
        if file is None:
            continue
        labels = any(ending_of(name) == ".txt" and name != file.name for names in tree.values() for name in names)
        if file.suffix not in (".yaml", ".yml") and not (labels and _holds_yolo(place, tree)):
            continue
        splits = read_splits(file)
        root = file if file.suffix in (".yaml", ".yml") else place
        options: dict[str | None, InstanceData] = {split: YoloData(root=root, split=split) for split in splits}
        return _instances(folder, f"YOLO labels ({file.name})", options, look_at_both=True)
    return None


def _holds_yolo(place: Path, tree: dict[str, list[str]]) -> bool:
    """Whether text files have the stems of images."""
    names = [name for files in tree.values() for name in files]
    images = {os.path.splitext(name)[0] for name in names if ending_of(name) in IMAGE_SUFFIXES}
    return any(ending_of(name) == ".txt" and os.path.splitext(name)[0] in images for name in names)


def _first(folder: Path, tree: dict[str, list[str]], ending: str) -> Path | None:
    found = (folder / parent / name for parent, names in tree.items() for name in names if ending_of(name) == ending)
    return next(found, None)


def _by_folder(
    folder: Path, tree: dict[str, list[str]], ending: str, build: type[VocData] | type[LabelmeData]
) -> dict[str | None, InstanceData]:
    """Data by split where every file with an ending lies in a folder of a split, else one set of all."""
    tops = {parent.split("/")[0] for parent, names in tree.items() if any(ending_of(name) == ending for name in names)}
    splits = {top: split_of(top) for top in tops}
    if None in splits.values() or len({*splits.values()}) < len(splits):
        return {None: build(root=folder)}
    return {split: build(root=folder / top) for top, split in splits.items()}


def _find_voc(folder: Path, tree: dict[str, list[str]]) -> FoundData | None:
    first = _first(folder, tree, ".xml")
    if first is None or b"<annotation" not in _ends_of(first):
        return None
    for parent, names in tree.items():
        if parent.endswith("ImageSets/Main") and {"train.txt", "val.txt"} <= {*names}:
            root = (folder / parent).parents[1]
            options: dict[str | None, InstanceData] = {s: VocData(root=root, split=s) for s in ("train", "val")}
            return _instances(folder, "Pascal VOC annotations", options, look_at_both=True)
    return _instances(folder, "Pascal VOC annotations", _by_folder(folder, tree, ".xml", VocData), look_at_both=True)


def _find_labelme(folder: Path, tree: dict[str, list[str]]) -> FoundData | None:
    first = _first(folder, tree, ".json")
    if first is None or b'"shapes"' not in _ends_of(first):
        return None
    return _instances(folder, "labelme annotations", _by_folder(folder, tree, ".json", LabelmeData), look_at_both=True)


def _find_label_maps(folder: Path, tree: dict[str, list[str]]) -> FoundData | None:
    options: dict[str | None, LabelMapData] = {}
    for images, labels in _map_folders(tree):
        below = [sub for parent in tree if (sub := os.path.relpath(parent, labels)) and not sub.startswith("..")]
        splits = {sub: split_of(sub) for sub in below if sub != "." and "/" not in sub}
        whole = (images, labels, split_of(labels))
        parts = [(f"{images}/{sub}", f"{labels}/{sub}", split or None) for sub, split in splits.items() if split]
        for image_folder, label_folder, split in parts or [whole]:
            data = _read_maps(folder, image_folder, label_folder, tree)
            if data is not None:
                options[split] = data
    train = options.get("train", options.get(None))
    val = options.get("val", options.get("test"))
    only = train or val
    if only is None:
        return None
    names = _map_names(folder, [data for data in (train, val) if data is not None])
    only = only.model_copy(update={"class_names": tuple(names)})
    if train is None or val is None:
        train, val = only.model_copy(update={"part": "train"}), only.model_copy(update={"part": "val"})
    else:
        train, val = (data.model_copy(update={"class_names": tuple(names)}) for data in (train, val))
    return FoundData(folder, "images and label maps", "segmentation", train, val, names)


def _map_folders(tree: dict[str, list[str]]) -> Iterator[tuple[str, str]]:
    """Folders of images and of labels that lie beside one another and are called so."""
    for labels in tree:
        parent, name = os.path.split(labels)
        if name.lower() in _LABELS:
            beside = [other for other in tree if os.path.split(other)[0] == parent and other != labels]
            named = [other for word in _IMAGES for other in beside if os.path.basename(other).lower() == word]
            if named:
                yield named[0], labels


def _read_maps(folder: Path, images: str, labels: str, tree: dict[str, list[str]]) -> LabelMapData | None:
    """A pair of folders, with what names have behind a common stem, if the labels are PNGs of numbers."""

    def stems(root: str, endings: Iterable[str]) -> list[str]:
        parents = [parent for parent in tree if parent == root or parent.startswith(f"{root}/")]
        return [os.path.splitext(name)[0] for parent in parents for name in tree[parent] if ending_of(name) in endings]

    maps, photos = stems(labels, {".png"}), stems(images, IMAGE_SUFFIXES)
    if not maps or not photos:
        return None
    ends = Counter(_suffixes(photo, maps) for photo in photos[:_LOOKED_AT])
    (image_suffix, label_suffix), count = ends.most_common(1)[0]
    if count < 0.5 * min(len(photos), _LOOKED_AT):
        return None
    data = LabelMapData(
        images=folder / images,
        labels=folder / labels,
        class_names=("unknown",),
        image_suffix=image_suffix,
        label_suffix=label_suffix,
    )
    try:
        for path in islice((folder / labels).rglob(f"*{label_suffix}.png"), 3):
            read_index_header(path)
    except DataError as error:
        raise DataError(f"{folder / labels} looks like label maps, but {error}") from None
    return data


def _suffixes(photo: str, maps: list[str]) -> tuple[str, str]:
    """What a photo's stem and that of its map have behind what they share: the map that shares most is its own."""
    if photo in maps:
        return "", ""
    shared, best = max((_shared(photo, name), name) for name in maps)
    return photo[shared:], best[shared:]


def _shared(a: str, b: str) -> int:
    """How many characters two names begin with alike."""
    return next((place for place, pair in enumerate(zip(a, b)) if pair[0] != pair[1]), min(len(a), len(b)))


def _map_names(folder: Path, sets: list[LabelMapData]) -> list[str]:
    for name in _NAMES:
        if (folder / name).is_file():
            return [
                line.strip() for line in (folder / name).read_text(encoding="utf-8-sig").splitlines() if line.strip()
            ]
    values: set[int] = set()
    for data in sets:
        for path in islice(sorted(data.labels.rglob(f"*{data.label_suffix}.png")), _LOOKED_AT):
            values |= {*np.unique(read_indices(path)).tolist()}
    labels = values - {NO_LABEL}
    if labels <= {0} and NO_LABEL in values:
        raise DataError(
            f"the label maps of {folder} hold only 0 and {NO_LABEL}, which is never a label; save what is to be "
            "found as 1"
        )
    return [f"label {label}" for label in range(max(labels) + 1)]


def _find_image_folders(folder: Path, tree: dict[str, list[str]]) -> FoundData | None:
    tops = {split_of(parent): parent for parent in tree if parent != "." and "/" not in parent}
    val_top = tops.get("val") or tops.get("test")
    train_root = folder / tops["train"] if "train" in tops else folder
    if "train" in tops and val_top:
        train, val = ImageFolderData(root=train_root), ImageFolderData(root=folder / val_top)
    else:
        train, val = (
            ImageFolderData(root=train_root, part="train"),
            ImageFolderData(root=train_root, part="val"),
        )
    names = list_folder(train_root, ()).folders
    filled = {Path(os.path.relpath(folder / parent, train_root)).parts[0] for parent in _with_images(tree)} - {
        ".",
        "..",
    }
    if len(filled) < 2:
        return None
    return FoundData(folder, "a folder of images per class", "classification", train, val, names)


def _with_images(tree: dict[str, list[str]]) -> Iterator[str]:
    yield from (
        parent for parent, names in tree.items() if parent != "." and any(ending_of(n) in IMAGE_SUFFIXES for n in names)
    )
