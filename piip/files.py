"""Files that are either whole or not there.

A file is written under a temporary name in its own directory, flushed to the disk and renamed. A kill or a full disk
leaves the previous file untouched. The temporary file has a new, unpredictable name and is locked by its writer. If its
lock is free, a killed process left it behind, and the next process that writes into the directory removes it.
"""

from __future__ import annotations

import fcntl
import json
import math
import os
import re
import secrets
import shutil
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

from piip.errors import DataError, PiipError

_SUFFIX = ".piip-tmp"
# Characters of a file's name that the temporary name repeats, so that it does not become too long.
_KEPT = 40

_swept: set[Path] = set()

_UNSEEN = re.compile("[\x7f-\x9f\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")


@contextmanager
def replacing(path: Path) -> Iterator[BinaryIO]:
    """Yields a new file, open for writing; it takes the place of `path` if the block ends well.

    It is removed if the block does not. Raises OSError when the disk is full or not writable.
    """
    file, temporary = _create(path)
    try:
        with file:
            yield file
            file.flush()
            os.fsync(file.fileno())
            temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
    sync(path.parent)


@contextmanager
def making(folder: Path) -> Iterator[Path]:
    """Yields a new folder to fill; it becomes `folder` if the block ends well, and is removed if not.

    If another process has made `folder` meanwhile, that one stays. Raises OSError.
    """
    with _new_folder(folder) as temporary:
        yield temporary
        try:
            temporary.rename(folder)
        except OSError:
            if not folder.is_dir():
                raise
    sync(folder.parent)


@contextmanager
def replacing_files(folder: Path) -> Iterator[Path]:
    """Yields a new folder to fill; its files take the places of those in `folder` if the block ends well.

    They are removed if it does not. Raises OSError.
    """
    with _new_folder(folder / "files") as temporary:
        yield temporary
        for path in sorted(temporary.iterdir(), reverse=True):
            sync(path)
            path.replace(folder / path.name)
    sync(folder)


def write_file(path: Path, data: bytes | str) -> None:
    """Replaces `path` by `data` (text as UTF-8) in one step. Raises OSError and leaves no temporary file behind."""
    with replacing(path) as file:
        file.write(data.encode() if isinstance(data, str) else data)


@contextmanager
def writing(what: Path | str) -> Iterator[None]:
    """Makes an OSError of the block a PiipError that begins with 'cannot write' and names what could not be written."""
    try:
        yield
    except OSError as error:
        raise PiipError(f"cannot write {what}: {error.strerror or error}") from None


def check_outputs(outputs: Iterable[Path], inputs: Iterable[Path]) -> None:
    """Raises DataError if a file to be written is one of the files that are read, under whatever name or link."""
    read = {_identity(path): path for path in inputs if path.exists()}
    for path in outputs:
        if path.exists() and (given := read.get(_identity(path))) is not None:
            raise DataError(f"{path} would be overwritten, but {given} is read; choose another output")


def lock(descriptor: int) -> bool | None:
    """Takes the lock of an open file without waiting; it is free again when the file is closed or the process ends.

    Returns False if another process holds it, and None on file systems without such locks.
    """
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:
        return None
    return True


def free_space(path: Path) -> str:
    """' (N MiB free)' for messages: the space on the disk of a path, or of its nearest folder that exists."""
    while not path.exists():
        path = path.parent
    return f" ({shutil.disk_usage(path).free / 2**20:.0f} MiB free)"


def to_json(value: Any, *, indent: int | None = None) -> str:
    """Strict JSON: NaN and infinities, which JSON cannot hold, become null.

    Characters that control a terminal, change the writing direction or are no text at all are escaped.
    """
    text = json.dumps(_finite(value), indent=indent, allow_nan=False, ensure_ascii=False)
    return _UNSEEN.sub(lambda found: f"\\u{ord(found[0]):04x}", text)


def sync(path: Path) -> None:
    """Waits until a file's content, or a directory's list of names, is on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _create(path: Path) -> tuple[BinaryIO, Path]:
    """A new file beside `path`, locked for as long as it is open; its mode follows the umask."""
    _remove_leftovers(path.parent.resolve())
    while True:
        temporary = path.with_name(f".{path.name[:_KEPT]}.{secrets.token_hex(8)}{_SUFFIX}")
        # The mode "x" refuses a file or a link that exists.
        file = temporary.open("xb")
        # Before the file was locked, another process may have removed it as a leftover: then try again.
        if lock(file.fileno()) is not False and os.fstat(file.fileno()).st_nlink:
            return file, temporary
        file.close()


@contextmanager
def _new_folder(beside: Path) -> Iterator[Path]:
    """A new folder beside a path, for the time of the block."""
    file, reserved = _create(beside)
    temporary = _folder_of(reserved)
    try:
        with file:
            temporary.mkdir()
            yield temporary
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
        reserved.unlink(missing_ok=True)


def _remove_leftovers(folder: Path) -> None:
    """Removes what killed writers left in a folder. This is done once per process: a folder may hold many files."""
    if folder in _swept:
        return
    _swept.add(folder)
    for path in folder.glob(f".*{_SUFFIX}"):
        try:
            descriptor = os.open(path, os.O_RDWR | os.O_NOFOLLOW | os.O_NONBLOCK)
        except OSError:
            continue
        try:
            if lock(descriptor):
                shutil.rmtree(_folder_of(path), ignore_errors=True)
                path.unlink(missing_ok=True)
        finally:
            os.close(descriptor)


def _folder_of(reserved: Path) -> Path:
    """The temporary folder that belongs to a temporary file and its lock."""
    return reserved.with_name(f"{reserved.name}.d")


def _identity(path: Path) -> tuple[int, int]:
    status = path.stat()
    return status.st_dev, status.st_ino


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
