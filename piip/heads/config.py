"""What the settings of every head are."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from typing import TYPE_CHECKING, ClassVar

from pydantic import Field

from piip.config.strict import Component
from piip.features import FeatureSpec

if TYPE_CHECKING:
    from piip.backbone.config import BackboneConfig
    from piip.heads.base import Head
    from piip.necks.config import NeckConfig
    from piip.results.base import ResultWriter


class HeadConfig(Component):
    """What is made of the maps: the head of a task.

    task: what the transforms, and tables of models, know the head by, such as detection.
    """

    default_type: ClassVar = "mask_rcnn"
    task: ClassVar[str]
    num_classes: int = Field(gt=0)

    @abstractmethod
    def build(self, specs: Sequence[FeatureSpec]) -> Head:
        """The head on maps of these specs, finest first. Raises ConfigError where they do not fit."""

    @abstractmethod
    def build_writer(self, class_names: Sequence[str], *, score_threshold: float) -> ResultWriter:
        """What writes results as pictures and JSON. score_threshold: detections with a lower score are left out."""

    @property
    def reads_last_interaction(self) -> bool:
        """False where nothing of the last interaction reaches the head, whose parameters would get no gradient."""
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
