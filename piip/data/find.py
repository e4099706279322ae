"""What a folder of data holds: which format, which images are for training and which for evaluation, which classes.

Every data set's config is asked whether the folder is one of its own (`DatasetConfig.find`), also those that packages
bring. This module does not need torch.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Literal, TypeVar

from piip.data.folders import ending_of
from piip.data.images import IMAGE_SUFFIXES
from piip.data.sets.config import DatasetConfig
from piip.errors import DataError, first_few

# By the split that they are for: what folders and files are called.
_SPLITS = {"train": ("train", "training"), "val": ("val", "valid", "validation", "dev"), "test": ("test", "testing")}
_WORDS = re.compile(r"[a-z]+")
# Folders within folders that are looked at; bytes at both ends of a file.
_DEEPEST, _SNIFFED = 4, 65_536

Data = TypeVar("Data", bound=DatasetConfig)


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


@dataclass(frozen=True)
class Tree:
    """A folder and what lies in it, to some depth, without what begins with a dot.

    files: names by the folder that they lie in, which is relative to `folder`: "." itself, "a", "a/b".
    """

    folder: Path
    deepest: int = _DEEPEST

    @cached_property
    def files(self) -> dict[str, list[str]]:
        return dict(self._list(".", 0))

    def _list(self, parent: str, depth: int) -> Iterator[tuple[str, list[str]]]:
        try:
            with os.scandir(self.folder / parent) as entries:
                found = sorted((e.name, e.is_dir(follow_symlinks=False) or os.path.isdir(e.path)) for e in entries)
        except OSError as error:
            raise DataError(f"cannot read the folder {self.folder / parent}: {error.strerror}") from None
        found = [(name, is_folder) for name, is_folder in found if not name.startswith(".")]
        yield parent, [name for name, is_folder in found if not is_folder]
        for name, is_folder in found:
            if is_folder and depth < self.deepest:
                yield from self._list(name if parent == "." else f"{parent}/{name}", depth + 1)

    def with_ending(self, ending: str) -> Iterator[str]:
        """The files with an ending, relative to the folder."""
        for parent, names in self.files.items():
            yield from (name if parent == "." else f"{parent}/{name}" for name in names if ending_of(name) == ending)

    @property
    def tops(self) -> list[str]:
        """The folders that lie directly in the folder."""
        return [parent for parent in self.files if parent != "." and "/" not in parent]

    @property
    def image_folders(self) -> list[str]:
        """The folders that hold images."""
        return [p for p, names in self.files.items() if any(ending_of(name) in IMAGE_SUFFIXES for name in names)]

    def ends(self, path: str) -> bytes:
        """The first and last bytes of a file."""
        try:
            with (self.folder / path).open("rb") as file:
                start = file.read(_SNIFFED)
                file.seek(max(len(start), os.fstat(file.fileno()).st_size - _SNIFFED))
                return start + file.read()
        except OSError as error:
            raise DataError(f"cannot read {self.folder / path}: {error.strerror}") from None


def find_data(folder: Path) -> FoundData:
    """Looks at what a folder holds. Raises DataError that says what was looked for where nothing is found."""
    if not folder.is_dir():
        raise DataError(f"there is no folder {folder}")
    tree = Tree(folder)
    for member in _members():
        found = member.find(tree)
        if found is not None:
            return found
    images = sum(ending_of(name) in IMAGE_SUFFIXES for names in tree.files.values() for name in names)
    raise DataError(
        f"{folder} has {images} images, but nothing says what is on them: neither a COCO *.json, a YOLO data.yaml "
        "or classes.txt, Pascal VOC *.xml, labelme *.json, folders images and labels with PNGs, nor a folder per class"
    )


def data_of_file(file: Path, images: Path | None = None) -> DatasetConfig:
    """The data that one file describes. images: their folder, if it is known. Raises DataError where it is none."""
    if not file.is_file():
        raise DataError(f"annotation file not found: {file}")
    for member in _members():
        found = member.of_file(file, images)
        if found is not None:
            return found
    raise DataError(f"{file} is no annotation file of a known format; give a *.json in COCO format, or a folder")


def _members() -> list[type[DatasetConfig]]:
    return sorted(DatasetConfig.known().values(), key=lambda member: member.find_rank)


def words_of(path: str) -> list[str]:
    """The words in a path, in lower case."""
    return _WORDS.findall(path.lower())


def split_of(path: str) -> str | None:
    """train, val or test, where the last word of a path that is one of these says so."""
    for word in reversed(words_of(path)):
        for split, words in _SPLITS.items():
            if word in words:
                return split
    return None


def pair_up(options: Mapping[str | None, Data]) -> tuple[Data, Data] | None:
    """Training and validation data from what there is by split, None for none; one set alone is divided by `part`."""
    train, val = options.get("train", options.get(None)), options.get("val", options.get("test"))
    only = train or val
    if only is None:
        return None
    if train is not None and val is not None:
        return train, val
    return only.model_copy(update={"part": "train"}), only.model_copy(update={"part": "val"})
