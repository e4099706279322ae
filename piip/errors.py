"""Errors a user can cause. The command line prints their text and exits with `exit_code`, without a traceback.

Beside them, what keeps the lists in their messages short.
"""

from __future__ import annotations

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
    """Weights, a checkpoint or a run that the user named are not there."""

    exit_code = 2


class CheckError(PiipError):
    """A check ran and found problems."""

    exit_code = 3


class Stopped(PiipError):
    """SIGTERM stopped training, after saving a checkpoint if a step had been taken, or other long work."""

    exit_code = 75


class NonFiniteLoss(PiipError):
    """The loss is NaN or infinite; no parameter was changed by the step."""


def first_few(names: Sequence[str], most: int = 5) -> str:
    """The first names of a list for a message, and dots where there are more."""
    return ", ".join([*names[:most], *(["..."] if len(names) > most else [])])
