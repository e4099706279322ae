"""Text files that name classes, and what a name must be."""

from __future__ import annotations

from pathlib import Path

from piip.errors import DataError, visible

_MOST_BYTES = 20_000_000


def read_lines(path: Path) -> list[str]:
    """The lines of a UTF-8 text file, with a byte-order mark or without, up to the last one that is not empty.

    Raises DataError for a file that cannot be read, is no text or is too large.
    """
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


def check_text(name: str, where: str) -> None:
    """Raises DataError for a name with bytes or halves of characters, which no checkpoint could hold."""
    try:
        name.encode()
    except UnicodeEncodeError:
        raise DataError(f"{where}: the name '{visible(name)}' is no UTF-8 text; change it") from None
