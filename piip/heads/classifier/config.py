"""The settings of the classifier."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, ClassVar, Literal

from pydantic import Field

from piip.features import FeatureSpec
from piip.heads.config import HeadConfig

if TYPE_CHECKING:
    from piip.backbone.config import BackboneConfig
    from piip.heads.classifier.head import Classifier
    from piip.necks.config import NeckConfig
    from piip.results.classes import ClassificationWriter


class ClassifierConfig(HeadConfig):
    """A norm and a linear classifier per branch, whose logits are averaged, or on the merged map of all branches."""

    task: ClassVar = "classification"
    type: Literal["classifier"] = "classifier"
    num_classes: int = Field(1000, gt=0)
    token: Literal["first_patch", "class", "mean"] = Field(
        "first_patch",
        description="the token that is classified: the top-left patch (as the released checkpoints do), the class "
        "token, or the mean over the patches",
    )
    norm_eps: float = Field(1e-6, gt=0)

    def build(self, specs: Sequence[FeatureSpec]) -> Classifier:
        from piip.heads.classifier.head import Classifier

        return Classifier(self, specs)

    def build_writer(self, class_names: Sequence[str], *, score_threshold: float) -> ClassificationWriter:
        from piip.results.classes import ClassificationWriter

        return ClassificationWriter(class_names, score_threshold=score_threshold)

    @property
    def reads_last_interaction(self) -> bool:
        # Class tokens take no part in interactions: nothing of the last one reaches a head that reads class tokens
        # alone, its parameters would get no gradient, and DistributedDataParallel would refuse the step.
        return self.token != "class"

    @property
    def reads_levels(self) -> bool:
        return False

    @property
    def needs(self) -> frozenset[str]:
        return frozenset({"label"})

    def check_network(self, backbone: BackboneConfig, neck: NeckConfig) -> None:
        if not neck.passes_maps or (backbone.merge and (self.token != "mean" or backbone.outputs)):
            raise ValueError(
                "a classifier reads the maps of the branches: set backbone.merge: false and neck: {type: none}; or one "
                "merged map, without backbone.outputs: set head.token: mean"
            )
        without = [index for index, branch in enumerate(backbone.branches) if not branch.has_class_token]
        if self.token == "class" and without:
            raise ValueError(
                f"head.token: class needs a class token in every branch: set class_token: true in branch "
                f"{without[0]}, or take head.token: mean"
            )
