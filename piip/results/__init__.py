"""Results of each task on their way to a person: pictures to look at, and one JSON document for scripts."""

from __future__ import annotations

from collections.abc import Sequence

from piip.results.base import ResultWriter
from piip.results.detections import DetectionWriter

__all__ = ["ResultWriter", "build_writer"]

_WRITERS: dict[str, type[ResultWriter]] = {"detection": DetectionWriter}


def build_writer(task: str, class_names: Sequence[str], *, score_threshold: float) -> ResultWriter:
    """The writer of a task's results. score_threshold: results with a lower score are left out, where they have one."""
    return _WRITERS[task](class_names, score_threshold=score_threshold)
