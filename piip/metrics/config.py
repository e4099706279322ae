"""The settings of metrics: which figures an evaluation computes."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from typing import TYPE_CHECKING, ClassVar, Literal

from pydantic import Field

from piip.config.strict import Component

if TYPE_CHECKING:
    from piip.metrics.base import Metric


class MetricConfig(Component):
    """A measure of results against the truth. task: of the heads whose results it takes; None for any."""

    task: ClassVar[str | None] = None

    @abstractmethod
    def build(self, class_names: Sequence[str]) -> Metric:
        """The metric, before any result. class_names: one per class, in label order."""


class CocoMetricConfig(MetricConfig):
    """COCO average precision of boxes and, where data and results have them, masks."""

    task: ClassVar = "detection"
    type: Literal["coco"] = "coco"
    backend: Literal["faster", "pycocotools"] = Field(
        "faster", description="the library that computes it, faster-coco-eval or pycocotools; the figures are the same"
    )

    def build(self, class_names: Sequence[str]) -> Metric:
        from piip.metrics.average_precision import CocoMetric

        return CocoMetric(self, class_names)


class MIoUConfig(MetricConfig):
    """Mean intersection over union and pixel accuracy of label maps."""

    task: ClassVar = "segmentation"
    type: Literal["miou"] = "miou"

    def build(self, class_names: Sequence[str]) -> Metric:
        from piip.metrics.miou import MIoUMetric

        return MIoUMetric(class_names)


class AccuracyConfig(MetricConfig):
    """Top-1 and top-5 accuracy of classification."""

    task: ClassVar = "classification"
    type: Literal["accuracy"] = "accuracy"

    def build(self, class_names: Sequence[str]) -> Metric:
        from piip.metrics.accuracy import AccuracyMetric

        return AccuracyMetric(class_names)
