"""What a model's answers are measured by."""

from __future__ import annotations

from piip.metrics.accuracy import AccuracyMetric
from piip.metrics.base import ImageId, Metric
from piip.metrics.coco import CocoMetric
from piip.metrics.miou import MIoUMetric

__all__ = ["AccuracyMetric", "CocoMetric", "ImageId", "MIoUMetric", "Metric"]
