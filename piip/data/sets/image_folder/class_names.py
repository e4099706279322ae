"""The names of class folders: from a text file that comes with the data, or those of ImageNet-1k."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Literal

from timm.data.imagenet_info import ImageNetInfo

from piip.data.class_names import check_text, read_lines
from piip.errors import DataError


def read_folder_names(given: Path | Literal["imagenet"]) -> dict[str, str]:
    """Name by folder, in label order, from a text file with one 'folder name' per line, or of ImageNet-1k.

    Of ImageNet's synonyms the first is taken; a line of one word is folder and name in one.
    Raises DataError for folders that occur twice, for what is no folder's name, and for a file without lines.
    """
    if given == "imagenet":
        info = ImageNetInfo("imagenet-1k")
        return {synset: info.label_name_to_description(synset).split(",")[0] for synset in info.label_names()}
    names: dict[str, str] = {}
    for number, line in enumerate(read_lines(Path(given)), start=1):
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
    """Names by folder -> names in label order; those that two classes share (ImageNet has two cranes) get the folder.

    Raises DataError for a name that is no text, as of a folder from a file system without UTF-8.
    """
    for name in names.values():
        check_text(name, "class folder")
    counts = Counter(names.values())
    return [name if counts[name] == 1 else f"{name} ({folder})" for folder, name in names.items()]
