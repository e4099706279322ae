"""The settings of the necks."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from typing import TYPE_CHECKING, ClassVar, Literal

from pydantic import Field

from piip.config.strict import Component
from piip.features import FeatureSpec

if TYPE_CHECKING:
    from piip.necks.base import Neck


class NeckConfig(Component):
    """What makes the maps that a head works on from those of the backbone.

    passes_maps: whether the head gets the maps of the backbone as they are.
    """

    default_type: ClassVar = "fpn"
    passes_maps: ClassVar[bool] = False

    @abstractmethod
    def build(self, specs: Sequence[FeatureSpec]) -> Neck:
        """The neck on maps of these specs, finest first. Raises ConfigError where they do not fit."""


class FPNConfig(NeckConfig):
    """Feature pyramid network (Lin et al., 2017); extra levels are max-pooled from the last."""

    type: Literal["fpn"] = "fpn"
    out_channels: int = Field(256, gt=0)
    levels: int = Field(5, gt=0)

    def build(self, specs: Sequence[FeatureSpec]) -> Neck:
        from piip.necks.fpn import FPN

        return FPN(self, specs)


class ChannelMapperConfig(NeckConfig):
    """A convolution and group norm per map, to one width; extra levels halve the resolution of the one before."""

    type: Literal["channel_mapper"] = "channel_mapper"
    out_channels: int = Field(256, gt=0, multiple_of=32)
    levels: int = Field(4, gt=0)

    def build(self, specs: Sequence[FeatureSpec]) -> Neck:
        from piip.necks.channel_mapper import ChannelMapper

        return ChannelMapper(self, specs)


class NoNeckConfig(NeckConfig):
    """The maps of the backbone go to the head as they are."""

    type: Literal["none"] = "none"
    passes_maps: ClassVar = True

    def build(self, specs: Sequence[FeatureSpec]) -> Neck:
        from piip.necks.none import NoNeck

        return NoNeck(specs)
