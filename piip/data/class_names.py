"""The names of classes: from a text file that comes with the data, or those of a public data set."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Literal

from timm.data.imagenet_info import ImageNetInfo

from piip.data.sets.label_maps.ade20k import ADE20K_CLASSES
from piip.errors import DataError, visible

_MOST_BYTES = 20_000_000


def read_class_names(given: Path | Literal["ade20k"]) -> list[str]:
    """The names of a text file, one a line, or those of ADE20K. Raises DataError for empty lines and doublets."""
    if given == "ade20k":
        return list(ADE20K_CLASSES)
    names: dict[str, None] = {}
    for number, line in enumerate(_read_lines(Path(given)), start=1):
        name = line.strip()
        if not name or name in names:
            raise DataError(f"{given}, line {number}: {f'{name!r} stands there twice' if name else 'no name'}")
        names[name] = None
    return list(names)


def read_folder_names(given: Path | Literal["imagenet"]) -> dict[str, str]:
    """Name by folder, in label order, of a text file with 'folder name' a line, or of ImageNet-1k.

    Of ImageNet's synonyms the first is taken; a line of one word is folder and name in one.
    Raises DataError for doublets, for what is no folder's name, and for a file without lines.
    """
    if given == "imagenet":
        info = ImageNetInfo("imagenet-1k")
        return {synset: info.label_name_to_description(synset).split(",")[0] for synset in info.label_names()}
    names: dict[str, str] = {}
    for number, line in enumerate(_read_lines(Path(given)), start=1):
        if not line.strip():
            continue
        folder, *name = line.split(maxsplit=1)
        if folder in names or "/" in folder:
            fault = "occurs twice" if folder in names else "must be the name of a folder in the root"
            raise DataError(f"{given}, line {number}: '{folder}' {fault}")
        names[folder] = name[0].strip() if name else folder
    if not names:
        raise DataError(f"the class-name file {given} is empty; it needs a line 'folder name' per class")
    return names


def distinct_names(names: dict[str, str]) -> list[str]:
    """Names by folder in label order; those that two classes share (ImageNet has two cranes) get the folder beside.

    Raises DataError for a name that is no text, as of a folder from a file system without UTF-8.
    """
    for name in names.values():
        check_text(name, "class folder")
    counts = Counter(names.values())
    return [name if counts[name] == 1 else f"{name} ({folder})" for folder, name in names.items()]


def imagenet_classes() -> list[str]:
    """The names of ImageNet-1k in label order, as a data set with class_names 'imagenet' has them."""
    return distinct_names(read_folder_names("imagenet"))


def check_text(name: str, where: str) -> None:
    """Raises DataError for a name with bytes or halves of characters, which no checkpoint could hold."""
    try:
        name.encode()
    except UnicodeEncodeError:
        raise DataError(f"{where}: the name '{visible(name)}' is no UTF-8 text; change it") from None


def _read_lines(path: Path) -> list[str]:
    """The lines of a UTF-8 text file, with a byte-order mark or without, up to the last one that is not empty."""
    try:
        if path.exists() and not path.is_file():
            raise DataError(f"cannot read the class-name file {path}: it is a folder, a pipe or a device")
        if path.stat().st_size > _MOST_BYTES:
            raise DataError(f"the class-name file {path} has more than {_MOST_BYTES // 10**6} MB")
        return path.read_text(encoding="utf-8-sig").rstrip().splitlines()
    except OSError as error:
        raise DataError(f"cannot read the class-name file {path}: {error.strerror}") from None
    except UnicodeDecodeError:
        raise DataError(f"the class-name file {path} is not UTF-8 text") from None
