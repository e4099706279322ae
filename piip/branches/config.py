"""The settings that every branch has."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

from pydantic import Field

from piip.branches.timm_names import check_name
from piip.config.strict import Component
from piip.errors import ConfigError

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
        return next((kind for kind in first if known[kind].objection(name) is None), cls.default_type)

    @classmethod
    def objection(cls, name: str) -> str | None:
        """Why timm's model of this name can be no such branch, as a sentence without its subject; None where it can."""
        return "is no branch of this type"

    @classmethod
    def check_model(cls, name: str) -> None:
        """Raises ConfigError where timm's model of a name can be no such branch, with the type that takes it."""
        check_name(name)
        if (objection := cls.objection(name)) is None:
            return
        found = {kind: member.objection(name) for kind, member in sorted(BranchConfig.known().items())}
        if fitting := [kind for kind, why in found.items() if why is None]:
            own = cls.model_fields["type"].default
            raise ConfigError(
                f"'{name}' cannot be of type {own}: it {objection}; leave out the type, or set it to {fitting[0]}"
            )
        reasons = "".join(f"\n  {kind}: it {why}" for kind, why in found.items())
        raise ConfigError(f"'{name}' can be a branch of no type; 'piip models --backbones' lists what can:{reasons}")

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
