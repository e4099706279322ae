"""The settings that every branch has."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

from pydantic import Field

from piip.config.strict import Component

if TYPE_CHECKING:
    from piip.branches.base import Branch


class BranchConfig(Component):
    """A backbone that sees the image at one resolution, and where its pretrained weights come from."""

    default_type: ClassVar = "vit"
    init: str | None = Field(None, description="file or timm name of pretrained weights")
    freeze: bool | Literal["embed"] | Annotated[int, Field(ge=1)] = Field(
        False,
        description="what does not train, and runs as in evaluation: true for the branch, embed for what is before its "
        "blocks, a number for that and so many blocks",
    )

    @classmethod
    def meant_type(cls, data: Mapping[str, Any]) -> str | None:
        """Without a type, that of the first kind of branch that takes the timm model; without a model, `vit`."""
        name = data.get("model")
        if "type" in data or not isinstance(name, str):
            return super().meant_type(data)
        known = cls.known()
        first = sorted(known, key=lambda kind: (kind != cls.default_type, kind))
        return next((kind for kind in first if known[kind].takes(name)), cls.default_type)

    @classmethod
    def takes(cls, name: str) -> bool:
        """Whether timm's model of this name can be such a branch."""
        return False

    @abstractmethod
    def build(self) -> Branch:
        """The branch, freshly initialised."""

    @property
    def label(self) -> str:
        """What tables call a branch of these settings, such as T or convnext_tiny."""
        return self.type

    @property
    def has_class_token(self) -> bool:
        """Whether the branch carries a class token beside its map."""
        return False
