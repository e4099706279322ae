"""Which files lie in a folder."""

from __future__ import annotations

import os
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import NamedTuple

from piip.data.findings import Findings
from piip.data.images import IMAGE_SUFFIXES, UNREAD_SUFFIXES
from piip.errors import DataError

# Kinds of entries in the report of a data set.
IRREGULAR = "no regular file, or link to nothing, passed over"
UNREAD = "image of a format that is not read, passed over"


class Listing(NamedTuple):
    """Sorted names of the folders in a folder, of its files with an ending, and of what has the ending but is no file.

    The last are FIFOs, sockets, devices, and links that lead nowhere or to each other.
    """

    folders: list[str]
    files: list[str]
    irregular: list[str]


def list_folder(folder: Path, suffixes: Collection[str]) -> Listing:
    """The contents of a folder: all folders, and the files with one of these endings (in lower case).

    A link counts as what it leads to. Names that begin with a dot are passed over. Raises DataError for a folder that
    cannot be read.
    """
    found = Listing([], [], [])
    # Only links are looked up, by os.path: the entry of a link that cannot be followed would raise.
    try:
        with os.scandir(folder) as entries:
            for entry in entries:
                if entry.name.startswith("."):
                    continue
                link = entry.is_symlink()
                if os.path.isdir(entry.path) if link else entry.is_dir():
                    found.folders.append(entry.name)
                elif ending_of(entry.name) in suffixes:
                    regular = os.path.isfile(entry.path) if link else entry.is_file()
                    (found.files if regular else found.irregular).append(entry.name)
    except OSError as error:
        raise DataError(f"cannot read the folder {error.filename or folder}: {error.strerror}") from None
    return Listing(*map(sorted, found))


def ending_of(name: str) -> str:
    """The ending of a file's name in lower case, with its dot."""
    return os.path.splitext(name)[1].lower()


def list_files(
    root: Path, suffixes: Collection[str], report: Findings, folder: str = "", *, above: tuple[str, ...] = ()
) -> Iterator[str]:
    """The files with one of these endings below `root`, or only those below a folder in it, relative to `root`.

    The files of a folder come before those of the folders in it, each sorted by name. Names that begin with a dot are
    passed over, and what is no regular file, which is counted in the report. Links are followed wherever they lead, for
    large sets are often linked together. above: the real folders that this one lies in, known to the calls for those.
    Raises DataError for folders that cannot be read and for links to a folder that they lie in.
    """
    real = os.path.realpath(root / folder)
    if folder and not above:
        above = (os.path.realpath(root),)
    if real in above:
        raise DataError(f"{root / folder} is a link to a folder that it lies in; remove it")
    found = list_folder(root / folder, suffixes)
    prefix = f"{folder}/" if folder else ""
    for name in found.irregular:
        report.add(IRREGULAR, prefix + name)
    yield from (prefix + name for name in found.files)
    for name in found.folders:
        yield from list_files(root, suffixes, report, prefix + name, above=(*above, real))


def list_images(root: Path, report: Findings, folder: str = "") -> Iterator[str]:
    """The files of `list_files` that `read_image` reads; images in other formats are counted in the report."""
    for name in list_files(root, IMAGE_SUFFIXES | UNREAD_SUFFIXES, report, folder):
        if ending_of(name) in IMAGE_SUFFIXES:
            yield name
        else:
            report.add(UNREAD, name)
