"""Files that are either whole or not there.

A file is written under a temporary name in its own directory, flushed to the disk and renamed. A kill or a full disk
leaves the previous file untouched.
"""

from __future__ import annotations

import json
import math
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

_UNSEEN = re.compile("[\x7f-\x9f\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yields a temporary path beside `path` to write to; it takes the place of `path` if the block ends well.

    The temporary file is removed if it does not. Raises OSError when the disk is full or not writable.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        yield temporary
        sync(temporary)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
    sync(path.parent)


def write_file(path: Path, data: bytes | str) -> None:
    """Replaces `path` by `data` (text as UTF-8) in one step. Raises OSError and leaves no temporary file behind."""
    with replacing(path) as temporary:
        temporary.write_bytes(data.encode() if isinstance(data, str) else data)


def to_json(value: Any, *, indent: int | None = None) -> str:
    """Strict JSON: NaN and infinities, which it cannot hold, become null.

    Characters that command a terminal, turn the writing direction or are no text at all are escaped.
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


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
