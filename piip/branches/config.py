"""The settings that every branch has."""

from __future__ import annotations

from abc import abstractmethod
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal

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
