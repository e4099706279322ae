"""Results of each task on their way to a person: pictures to look at, and one JSON document for scripts."""

from __future__ import annotations

from collections.abc import Sequence

from piip.results.base import ResultWriter
from piip.results.classes import ClassificationWriter
from piip.results.detections import DetectionWriter
from piip.results.label_maps import LabelMapWriter

__all__ = ["ResultWriter", "build_writer"]

_WRITERS: dict[str, type[ResultWriter]] = {
    "classification": ClassificationWriter,
    "detection": DetectionWriter,
    "segmentation": LabelMapWriter,
}


def build_writer(task: str, class_names: Sequence[str], *, score_threshold: float) -> ResultWriter:
    """The writer of a task's results. score_threshold: detections with a lower score are left out."""
    return _WRITERS[task](class_names, score_threshold=score_threshold)
