"""Which files lie in a folder, or are named by an annotation file and are there."""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path, PurePosixPath

from piip.errors import DataError, first_few


def list_folder(folder: Path, suffixes: Collection[str]) -> tuple[list[str], list[str]]:
    """The names of the folders in a folder, and of its files with one of these endings (in lower case), each sorted.

    A link is what it leads to. Names that begin with a dot are passed over. Raises DataError for what cannot be read.
    """
    folders, files = [], []
    try:
        with os.scandir(folder) as entries:
            for entry in entries:
                if entry.name.startswith("."):
                    continue
                if entry.is_dir():
                    folders.append(entry.name)
                elif os.path.splitext(entry.name)[1].lower() in suffixes:
                    files.append(entry.name)
    except OSError as error:
        raise DataError(f"cannot read the folder {error.filename or folder}: {error.strerror}") from None
    return sorted(folders), sorted(files)


def list_files(root: Path, suffixes: Collection[str], folder: str = "") -> Iterator[str]:
    """The files with one of these endings below `root`, or only those below a folder in it, relative to `root`.

    The files of a folder come before those of the folders in it, each sorted by name. Names that begin with a dot are
    passed over. Links are followed wherever they lead, for large sets are often linked together.
    Raises DataError for folders that cannot be read and for links to a folder that they lie in.
    """
    above = (os.path.realpath(root),) if folder else ()
    return _below(root, folder, suffixes, above)


def _below(root: Path, folder: str, suffixes: Collection[str], above: tuple[str, ...]) -> Iterator[str]:
    """above: the real folders that this one lies in."""
    real = os.path.realpath(root / folder)
    if real in above:
        raise DataError(f"{root / folder} is a link to a folder that it lies in; remove it")
    folders, files = list_folder(root / folder, suffixes)
    prefix = f"{folder}/" if folder else ""
    for name in files:
        yield prefix + name
    for name in folders:
        yield from _below(root, prefix + name, suffixes, (*above, real))


def check_image_files(folder: Path, names: Sequence[str], source: Path) -> None:
    """Checks that every name is a file inside `folder`, with one directory listing per (sub)folder.

    source: the annotation file, for messages.
    Raises DataError for a missing folder, for names that are absolute, hold '..' or follow links out of the folder, and
    for missing files (how many, and the first ones).
    """
    try:
        root = Path(os.path.realpath(folder, strict=True))
    except OSError:
        raise DataError(f"image folder not found: {folder} (images of {source})") from None
    by_parent: dict[PurePosixPath, list[str]] = defaultdict(list)
    for name in names:
        path = PurePosixPath(name)
        if path.is_absolute() or ".." in path.parts or "\0" in name or not path.name:
            raise DataError(f"{source}: file name {name!r} is refused; names must lie inside the image folder {folder}")
        by_parent[path.parent].append(name)

    missing: set[str] = set()
    for parent, children in by_parent.items():
        try:
            directory = Path(os.path.realpath(root / parent, strict=True))
            _check_inside(directory, root, children[0], source)
            entries = {entry.name: entry for entry in os.scandir(directory)}
        except OSError:
            missing.update(children)
            continue
        for name in children:
            entry = entries.get(PurePosixPath(name).name)
            if entry is not None and entry.is_symlink():
                target = Path(os.path.realpath(entry.path))
                _check_inside(target, root, name, source)
                found = target.is_file()
            else:
                found = entry is not None and entry.is_file()
            if not found:
                missing.add(name)
    if missing:
        ordered = [name for name in names if name in missing]
        raise DataError(
            f"{len(missing)} of {len(names)} images of {source} are missing from {folder}: {first_few(ordered)}; "
            "add them or correct the 'images' folder of the data config"
        )


def _check_inside(path: Path, root: Path, name: str, source: Path) -> None:
    if not path.is_relative_to(root):
        raise DataError(f"{source}: file name {name!r} is refused; it is or follows a link out of the image folder")
