"""The names of the classes of label maps: from the config, from a text file, or those of ADE20K."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from piip.data.class_names import read_lines
from piip.data.sets.label_maps.ade20k import ADE20K_CLASSES
from piip.errors import DataError


def read_class_names(given: Sequence[str] | Path | Literal["ade20k"]) -> list[str]:
    """The names themselves, those of a text file with one per line, or those of ADE20K.

    Raises DataError for empty lines and for names that occur twice.
    """
    if given == "ade20k":
        return list(ADE20K_CLASSES)
    if not isinstance(given, (str, Path)):
        return list(given)
    names: dict[str, None] = {}
    for number, line in enumerate(read_lines(Path(given)), start=1):
        name = line.strip()
        if not name or name in names:
            raise DataError(f"{given}, line {number}: {f'{name!r} stands there twice' if name else 'no name'}")
        names[name] = None
    return list(names)
