"""Image files that annotations name, as they lie in a folder: names come from other machines, programs and servers."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from urllib.parse import SplitResult, unquote, urlsplit

from piip.data.findings import Findings
from piip.errors import DataError, first_few

_ELSEWHERE = "file name of another machine or server matched with the file that it means"
# What Label Studio puts before the name of an uploaded file.
_PREFIX = re.compile(r"^[0-9a-f]{8}-(?=.)")


def find_image_files(folder: Path, names: Sequence[str], source: Path, findings: Findings) -> list[str | None]:
    """Per name of an annotation file its file, relative to the folder, or None where it is missing, which is an error.

    A name may be a path of another machine, absolute, with back-slashes or folders that there are not here, or an
    address: the longest end of it that is a file in the folder is taken, or else the only file of that name below it.
    Raises DataError for a missing folder.
    """
    try:
        root = Path(os.path.realpath(folder, strict=True))
    except OSError:
        raise DataError(f"image folder not found: {folder} (images of {source})") from None
    listings = _Listings(root)
    found = [name if _is_plain(name) and listings.has(name) else None for name in names]
    missing: list[str] = []
    others = {name for name in found if name is not None}
    for index, name in enumerate(names):
        if found[index] is not None:
            continue
        end = next((end for end in _ends(name, folder, root) if listings.has(end)), None) or listings.only(name)
        if name in listings.outside:
            why = "it is or follows a link out of the image folder"
        elif end is not None and end not in others:
            others.add(end)
            found[index] = end
            findings.add(_ELSEWHERE, f"{name} is {end}", "repaired")
            continue
        elif _is_plain(name) or "\\" in name or _split(name).netloc:
            missing.append(name)
            continue
        else:
            why = f"names must lie inside the image folder {folder}"
        findings.add("file name that is refused", f"{source}: file name {name!r} is refused; {why}", "error")
    if missing:
        findings.add(
            "image file that is missing",
            f"{len(missing)} of {len(names)} images of {source} are missing from {folder}: {first_few(missing)}; add "
            "them or correct the 'images' folder of the data config",
            "error",
            count=len(missing),
        )
    return found


def _is_plain(name: str) -> bool:
    """Whether a name is a path that leads nowhere but down."""
    last = name.rpartition("/")[2]
    return last not in ("", ".") and name[0] != "/" and "\0" not in name and ".." not in name.split("/")


def _ends(name: str, folder: Path, root: Path) -> Iterator[str]:
    """What a file may be called in the folder, longest first."""
    path = name.replace("\\", "/")
    for base in (folder, Path(os.path.abspath(folder)), root):
        if path.startswith(f"{base}/"):
            yield path[len(str(base)) + 1 :]
    address = _split(path)
    # An address may give the file behind its path, as in ?d=folder/file.
    wholes = [path, unquote(address.path), unquote(address.query.rpartition("=")[2])]
    for whole in dict.fromkeys(wholes):
        parts = [part for part in whole.split("/") if part not in ("", "..")]
        for start in range(len(parts)):
            yield "/".join(parts[start:])
        if parts:
            yield _PREFIX.sub("", parts[-1])


def _split(name: str) -> SplitResult:
    """The parts of an address; of what looks like one and is none, a path alone."""
    try:
        return urlsplit(name)
    except ValueError:
        return SplitResult("", "", name, "", "")


class _Listings:
    """The files in a folder and those below it, each looked at once. outside: names that links lead out of it."""

    def __init__(self, root: Path) -> None:
        self._root, self._files, self.outside = root, dict[str, set[str]](), set[str]()
        self._by_name: dict[str, list[str]] | None = None

    def has(self, name: str) -> bool:
        """Whether a relative name is a file that lies in the folder."""
        if not _is_plain(name):
            return False
        parent, _, last = name.rpartition("/")
        if parent not in self._files:
            self._files[parent] = self._list(parent)
        return last in self._files[parent]

    def _list(self, parent: str) -> set[str]:
        files = set()
        try:
            directory = os.path.realpath(self._root / parent, strict=True)
            inside = Path(directory).is_relative_to(self._root)
            with os.scandir(directory) as entries:
                for entry in entries:
                    if not (os.path.isfile(entry.path) if entry.is_symlink() else entry.is_file()):
                        continue
                    if inside and (not entry.is_symlink() or self._holds(entry.path)):
                        files.add(entry.name)
                    else:
                        self.outside.add(f"{parent}/{entry.name}" if parent else entry.name)
        except (OSError, UnicodeEncodeError):
            return set()
        return files

    def _holds(self, path: str) -> bool:
        return Path(os.path.realpath(path)).is_relative_to(self._root)

    def only(self, name: str) -> str | None:
        """The file below the folder that has the last part of a name, in whatever case, if there is only one."""
        if self._by_name is None:
            self._by_name = {}
            for folder, _, files in os.walk(self._root):
                prefix = os.path.relpath(folder, self._root)
                for file in files:
                    self._by_name.setdefault(file.lower(), []).append(file if prefix == "." else f"{prefix}/{file}")
        files = self._by_name.get(name.replace("\\", "/").rpartition("/")[2].lower(), [])
        return files[0] if len(files) == 1 and self.has(files[0]) else None
