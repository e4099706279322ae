"""What the settings of every set of images with boxes, and perhaps masks, are."""

from __future__ import annotations

from abc import abstractmethod
from typing import TYPE_CHECKING

from pydantic import Field

from piip.data.sets.config import DatasetConfig
from piip.data.split import PART, Part, names_in_part
from piip.metrics.config import CocoMetricConfig, MetricConfig

if TYPE_CHECKING:
    from piip.data.check import Split
    from piip.data.sets.instances.dataset import InstanceDataset
    from piip.data.sets.instances.records import Instances


class InstanceData(DatasetConfig):
    """Images with boxes and perhaps masks, in one format or another: a member says with `read` what its files hold."""

    keep_empty: bool = Field(
        False, description="train on images without annotations too, as the released recipe does not"
    )
    min_side: int = Field(32, gt=0, description="training leaves out images with a side shorter than this, in pixels")
    masks: bool = Field(True, description="false reads boxes only, which is all that DINO learns")

    class_names: tuple[str, ...] | None = Field(
        None,
        description="in label order, where the files have other classes too, or in another order; null: those of the "
        "files, numbered as there, else sorted",
    )
    part: Part = Field("all", description=PART)

    @abstractmethod
    def read(self) -> Instances:
        """What the files hold, without torch. Raises DataError where they are not of this format at all."""

    def load(self) -> Instances:
        """What `read` returns, with the classes of `class_names` and the images of the `part` only."""
        found = self.read()
        if self.class_names is not None:
            found.rename(self.class_names)
        if self.part != "all":
            names = names_in_part((image.file_name for image in found.images), self.part)
            found.images = [image for image in found.images if image.file_name in names]
        return found

    def inspect(self, name: str) -> Split:
        from piip.data.sets.instances.inspect import inspect_instances

        return inspect_instances(self, name)

    def default_metrics(self) -> tuple[MetricConfig, ...]:
        return (CocoMetricConfig(),)

    def build(self, *, training: bool) -> InstanceDataset:
        from piip.data.sets.instances.dataset import InstanceDataset

        return InstanceDataset(self, training=training)
