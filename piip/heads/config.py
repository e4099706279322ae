"""The bases of the settings of heads: of all, of detectors, and of dense heads."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, ClassVar

from pydantic import Field, model_validator

from piip.config.strict import Component
from piip.features import FeatureSpec

if TYPE_CHECKING:
    from piip.backbone.config import BackboneConfig
    from piip.heads.base import Head
    from piip.necks.config import NeckConfig
    from piip.results.base import ResultWriter
    from piip.results.detections import DetectionWriter
    from piip.results.label_maps import LabelMapWriter


class HeadConfig(Component):
    """The head of a task, which turns the maps into losses and results.

    task: the name of the task, such as detection, which the transforms have too.
    """

    default_type: ClassVar = "mask_rcnn"
    task: ClassVar[str]
    num_classes: int = Field(gt=0)

    @abstractmethod
    def build(self, specs: Sequence[FeatureSpec]) -> Head:
        """The head on maps of these specs, finest first. Raises ConfigError where they do not fit."""

    @abstractmethod
    def build_writer(self, class_names: Sequence[str], *, score_threshold: float) -> ResultWriter:
        """The writer of results as pictures and JSON. score_threshold: detections with a lower score are left out."""

    @property
    def needs(self) -> frozenset[str]:
        """The entries of a target that the loss learns from."""
        return frozenset()

    @property
    def reads_last_interaction(self) -> bool:
        """False where nothing of the last interaction reaches the head, whose parameters would get no gradient."""
        return True

    @property
    def reads_levels(self) -> bool:
        """Whether the head reads a feature pyramid; else it gets one merged map where the branches are merged."""
        return True

    @property
    def counted_at(self) -> str | None:
        """The limits that a count of FLOPs takes work at that depends on what is found; None where there is none."""
        return None

    def check_network(self, backbone: BackboneConfig, neck: NeckConfig) -> None:
        """Raises ValueError with the remedy where the head cannot work on this backbone and neck."""
        if not backbone.merge:
            raise ValueError(
                f"backbone.merge: false is for head: {{type: classifier}}; {self.type} needs the merged maps"
            )


class DetectionHeadConfig(HeadConfig):
    """A head that finds objects: their boxes and classes, perhaps their masks."""

    task: ClassVar = "detection"

    @property
    def needs(self) -> frozenset[str]:
        return frozenset({"boxes", "labels"})

    def build_writer(self, class_names: Sequence[str], *, score_threshold: float) -> DetectionWriter:
        from piip.results.detections import DetectionWriter

        return DetectionWriter(class_names, score_threshold=score_threshold)


class SegmentationHeadConfig(HeadConfig):
    """A head that classifies every pixel, of whole images or of windows in them, in one view or several."""

    in_pixels: ClassVar = ("window", "stride")
    task: ClassVar = "segmentation"
    window: int | None = Field(
        512, gt=0, description="evaluation slides a window of this side in pixels over the image; null: the whole image"
    )
    stride: int = Field(341, gt=0, description="step between windows in pixels")
    test_scales: tuple[Annotated[float, Field(gt=0)], ...] = Field(
        (1.0,), min_length=1, description="evaluation averages over the image at these scales"
    )
    test_flip: bool = Field(False, description="evaluation averages over the image and its mirror image")

    @model_validator(mode="after")
    def _no_gaps(self) -> SegmentationHeadConfig:
        if self.window is not None and self.stride > self.window:
            raise ValueError(f"stride {self.stride} leaves gaps between windows of {self.window} pixels")
        return self

    @property
    def needs(self) -> frozenset[str]:
        return frozenset({"label_map"})

    def build_writer(self, class_names: Sequence[str], *, score_threshold: float) -> LabelMapWriter:
        from piip.results.label_maps import LabelMapWriter

        return LabelMapWriter(class_names, score_threshold=score_threshold)
