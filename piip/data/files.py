"""Which files lie in a folder, or may be named by an annotation file and are there."""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path, PurePosixPath

from piip.errors import DataError

_NAMED = 5


def list_files(root: Path, suffixes: Collection[str]) -> list[str]:
    """The files below `root` with one of these endings (in lower case), relative to it, sorted.

    Names that begin with a dot are passed over. Raises DataError for folders that cannot be read, and for links that
    lead out of `root` or in a circle.
    """
    return sorted(_below(root, "", suffixes, (root.resolve(),)))


def _below(root: Path, folder: str, suffixes: Collection[str], above: tuple[Path, ...]) -> Iterator[str]:
    """above: the real folders from the root to this one."""
    try:
        with os.scandir(root / folder) as found:
            entries = [entry for entry in found if not entry.name.startswith(".")]
    except OSError as error:
        raise DataError(f"cannot read the folder {root / folder}: {error.strerror}") from None
    for entry in entries:
        name = f"{folder}{entry.name}"
        inner = entry.is_dir()
        if not inner and os.path.splitext(entry.name)[1].lower() not in suffixes:
            continue
        real = Path(entry.path).resolve() if entry.is_symlink() else above[-1] / entry.name
        if not real.is_relative_to(above[0]) or (inner and real in above):
            raise DataError(f"{root / name} is refused; it is a link out of {root}, or to a folder that it lies in")
        if inner:
            yield from _below(root, f"{name}/", suffixes, (*above, real))
        else:
            yield name


def check_image_files(folder: Path, names: Sequence[str], source: Path) -> None:
    """Checks that every name is a file inside `folder`, with one directory listing per (sub)folder.

    source: the annotation file, for messages.
    Raises DataError for a missing folder, for names that are absolute, hold '..' or follow links out of the folder, and
    for missing files (how many, and the first ones).
    """
    try:
        root = folder.resolve(strict=True)
    except OSError:
        raise DataError(f"image folder not found: {folder} (images of {source})") from None
    by_parent: dict[PurePosixPath, list[str]] = defaultdict(list)
    for name in names:
        path = PurePosixPath(name)
        if path.is_absolute() or ".." in path.parts or "\0" in name or not path.name:
            raise DataError(f"{source}: file name '{name}' is refused; names must lie inside the image folder {folder}")
        by_parent[path.parent].append(name)

    missing: set[str] = set()
    for parent, children in by_parent.items():
        try:
            directory = (root / parent).resolve(strict=True)
            _check_inside(directory, root, children[0], source)
            entries = {entry.name: entry for entry in os.scandir(directory)}
        except OSError:
            missing.update(children)
            continue
        for name in children:
            entry = entries.get(PurePosixPath(name).name)
            if entry is None or not entry.is_file():
                missing.add(name)
            elif entry.is_symlink():
                _check_inside(Path(entry.path).resolve(), root, name, source)
    if missing:
        first = [name for name in names if name in missing][:_NAMED]
        more = ", ..." if len(missing) > len(first) else ""
        raise DataError(
            f"{len(missing)} of {len(names)} images of {source} are missing from {folder}: {', '.join(first)}{more}; "
            "add them or correct the 'images' folder of the data config"
        )


def _check_inside(path: Path, root: Path, name: str, source: Path) -> None:
    if not path.is_relative_to(root):
        raise DataError(f"{source}: file name '{name}' is refused; it is or follows a link out of the image folder")
