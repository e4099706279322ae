"""Checksums, by which a damaged file is found before anything in it is used.

A JSON document of ours holds its own SHA-256 under the key `checksum`, and a weight file holds its own in the metadata
of its header. While it is computed, the 64 digits of the checksum itself are zeros. meta.json of a checkpoint also
lists the SHA-256 of every file beside it. Older files and those of others have no checksum, and are read without a
check. A file is checked once per process.
"""

from __future__ import annotations

import json
import time
from collections.abc import Collection, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from hashlib import sha256
from pathlib import Path
from typing import Any

from piip.errors import CheckpointError
from piip.files import to_json, write_file

KEY = "checksum"
BLANK = "0" * 64
_BLOCK = 1 << 20
# The longest header that safetensors reads.
_MAX_HEADER = 100_000_000
# A file that was changed less long ago could change once more without a trace in its times, which are coarse.
_SETTLED_SECONDS = 1.0

# Device, inode, size and time of change of what has been checked.
_checked: set[tuple[int, int, int, int]] = set()


def write_document(path: Path, document: Mapping[str, Any]) -> None:
    """Writes a JSON document with its checksum. Raises OSError."""
    text = to_json({KEY: BLANK, **document}, indent=1)
    write_file(path, text.replace(BLANK, sha256(text.encode()).hexdigest(), 1))


def read_document(path: Path) -> dict[str, Any]:
    """A JSON document without its checksum. Raises OSError, and ValueError when it is not what was written."""
    if path.exists() and not path.is_file():
        raise ValueError("it is not a regular file")
    data = path.read_bytes()
    try:
        document = json.loads(data)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None
    if not isinstance(document, dict):
        raise ValueError("it is no JSON object")
    given = document.pop(KEY, None)
    if given is not None and sha256(_blanked(data, str(given))).hexdigest() != given:
        raise ValueError("its checksum is wrong")
    return document


def describe_files(folder: Path) -> dict[str, dict[str, Any]]:
    """Name -> size in bytes and SHA-256 of every file in a folder."""
    files = sorted(folder.iterdir())
    with ThreadPoolExecutor() as pool:
        digests = pool.map(_digest, files)
        return {file.name: {"bytes": file.stat().st_size, "sha256": digest} for file, digest in zip(files, digests)}


def read_meta(path: Path, only: Collection[str] | None = None) -> dict[str, Any]:
    """meta.json of a checkpoint, after its files (or `only` those) have been held against their sizes and checksums.

    Raises CheckpointError when the checkpoint is missing or damaged.
    """
    meta, files = _read_listed(path)
    named = [name for name in files if only is None or name in only]
    for name in named:
        size, file = files[name][0], path / name
        found = file.stat().st_size if file.is_file() else 0
        if found != size:
            raise CheckpointError(f"checkpoint {path} is damaged: {name} has {found} of {size} bytes")
    # In threads, since hashing takes most of the time and is done outside Python's lock.
    with _reading(path), ThreadPoolExecutor() as pool:
        right = list(pool.map(lambda name: _has_digest(path / name, files[name][1]), named))
    wrong = [name for name, ok in zip(named, right) if not ok]
    if wrong:
        raise CheckpointError(f"checkpoint {path} is damaged: the checksum of {wrong[0]} is wrong")
    return meta


def check_weight_file(file: Path) -> None:
    """Raises CheckpointError when a .safetensors file is not what was written, as far as there are checksums.

    One that meta.json beside it lists is held against that, any other against the checksum in its header.
    """
    try:
        listed = _read_listed(file.parent)[1].get(file.name)
    except CheckpointError:
        # No checkpoint of ours, or a damaged meta.json: the file speaks for itself.
        listed = None
    with _reading(file):
        whole = _has_digest(file, listed[1]) if listed else _is_sealed(file)
    if not whole:
        raise CheckpointError(f"{file} is damaged: its checksum is wrong; take another copy or an earlier checkpoint")


def _read_listed(path: Path) -> tuple[dict[str, Any], dict[str, tuple[int, str]]]:
    """meta.json of a checkpoint, and the size and checksum of every file that it lists."""
    try:
        meta = read_document(path / "meta.json")
        files = {str(name): (int(entry["bytes"]), str(entry["sha256"])) for name, entry in meta["files"].items()}
        known = {key: meta[key] for key in ("step", "class_names", "config")}
    except FileNotFoundError:
        raise CheckpointError(f"{path} is not a whole checkpoint: it has no meta.json") from None
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(f"checkpoint {path} is damaged: meta.json is not readable ({error})") from None
    if [type(value) for value in known.values()] != [int, list, dict]:
        raise CheckpointError(f"checkpoint {path} is damaged: meta.json does not say its step, classes and config")
    return meta, files


@contextmanager
def _reading(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise CheckpointError(f"cannot read {error.filename or path}: {error.strerror}") from None


def _is_sealed(file: Path) -> bool:
    """Whether a weight file has the checksum that its header holds; true where it holds none."""
    if (signature := _signature(file)) in _checked:
        return True
    with file.open("rb") as stream:
        length = stream.read(8)
        header = stream.read(min(int.from_bytes(length, "little"), _MAX_HEADER))
        try:
            given = json.loads(header)["__metadata__"][KEY]
        except (ValueError, KeyError, TypeError, RecursionError):
            return True  # of others, or not even a safetensors file, which its reader will say
        digest = sha256(length + _blanked(header, str(given)))
        _update(digest, stream)
    if digest.hexdigest() != given:
        return False
    _remember(signature)
    return True


def _has_digest(file: Path, expected: str) -> bool:
    if (signature := _signature(file)) in _checked:
        return True
    if _digest(file) != expected:
        return False
    _remember(signature)
    return True


def _digest(file: Path) -> str:
    digest = sha256()
    with file.open("rb") as stream:
        _update(digest, stream)
    return digest.hexdigest()


def _update(digest: Any, stream: Any) -> None:
    buffer = memoryview(bytearray(_BLOCK))
    while count := stream.readinto(buffer):
        digest.update(buffer[:count])


def _blanked(data: bytes, given: str) -> bytes:
    return data.replace(given.encode("utf-8", "surrogatepass"), BLANK.encode(), 1)


def _signature(file: Path) -> tuple[int, int, int, int]:
    status = file.stat()
    return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns


def _remember(signature: tuple[int, int, int, int]) -> None:
    if time.time() - signature[3] / 1e9 > _SETTLED_SECONDS:
        _checked.add(signature)
