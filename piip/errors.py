"""Errors that a user can cause. The command line prints their text and exits with `exit_code`, without a traceback.

Helpers keep lists and causes in messages short, and make names from files harmless on a terminal.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence


class PiipError(Exception):
    """Something failed at run time; the message names the thing and the remedy."""

    exit_code = 1


class ConfigError(PiipError):
    """A config file, key, value or override is wrong."""

    exit_code = 2


class DataError(PiipError):
    """A data set, annotation file or image is not what its format says."""

    exit_code = 2


class CheckpointError(PiipError):
    """A checkpoint is missing, damaged, or belongs to another network."""


class MissingFile(CheckpointError):
    """Weights, a checkpoint or a run that the user named do not exist."""

    exit_code = 2


class CheckError(PiipError):
    """A check ran and found problems."""

    exit_code = 3


class Stopped(PiipError):
    """SIGTERM stopped training, which has saved a checkpoint if it had taken a step, or other long work."""

    exit_code = 75


class NonFiniteLoss(PiipError):
    """The loss is NaN or infinite; no parameter was changed by the step."""


def first_few(names: Sequence[str], most: int = 5) -> str:
    """The first names of a list for a message, and dots where there are more."""
    return ", ".join([*map(visible, names[:most]), *(["..."] if len(names) > most else [])])


def first_line(error: BaseException) -> str:
    """The first line of an error's message, or its type where it has none."""
    return next(iter(str(error).splitlines()), type(error).__name__)


def visible(text: str, *, keep: str = "") -> str:
    """The text for a terminal or a log, with invisible characters escaped as in a Python string.

    These are control characters, line breaks, marks that change the writing direction, and bytes that are no text.
    keep: characters that are not escaped.
    """
    if text.isprintable():
        return text
    return "".join(char if _shows(char) or char in keep else ascii(char)[1:-1] for char in text)


def _shows(char: str) -> bool:
    return char.isprintable() or unicodedata.category(char) == "Zs"
