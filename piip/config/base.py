"""The base of every config model, what tells the members of unions apart, and what the models say of a place."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, ClassVar, TypeVar, get_args

from pydantic import BaseModel, ConfigDict, Discriminator, model_validator
from pydantic.fields import FieldInfo
from pydantic_core import PydanticCustomError

from piip.errors import first_few


def nearest(given: str, known: Iterable[str], cutoff: float = 0.5) -> str | None:
    """'did you mean ...?' with the known names that begin like the given one, or else the nearest; None without one."""
    known = list(known)
    beginning = [name for name in known if len(given) > 2 and name.startswith(given)]
    near = beginning or difflib.get_close_matches(given, known, n=1, cutoff=cutoff)
    if len(near) == 1:
        return f"did you mean '{near[0]}'?"
    return f"did you mean one of {first_few(near, 3)}?" if near else None


def type_or(default: str) -> Discriminator:
    """Tells the members of a union apart by their `type`, which may be left out for the default one."""
    return Discriminator(
        lambda part: str(part.get("type", default) if isinstance(part, dict) else getattr(part, "type", default))
    )


class Strict(BaseModel):
    """Base of every config model: immutable, with finite numbers, and an unknown key is an error.

    in_pixels: the settings that are sizes in pixels of what the network sees, which the setting `scale` multiplies.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)
    in_pixels: ClassVar[tuple[str, ...]] = ()

    @model_validator(mode="before")
    @classmethod
    def _reject_unknown_keys(cls, data: Any) -> Any:
        if isinstance(data, dict):
            for key in data:
                if key not in cls.model_fields:
                    raise PydanticCustomError("unknown_key", "unknown key '{key}'", {"key": str(key)})
        return data


Part = TypeVar("Part", bound=Strict)


def scaled(part: Part, factor: float) -> Part:
    """A copy with every size in pixels, here and in the parts below, multiplied and rounded, to at least 1."""
    changes: dict[str, Any] = {}
    for name in type(part).model_fields:
        value = getattr(part, name)
        if name in part.in_pixels:
            changes[name] = _times(value, factor)
        elif isinstance(value, Strict):
            changes[name] = scaled(value, factor)
    return part.model_copy(update=changes)


def _times(value: Any, factor: float) -> Any:
    if isinstance(value, tuple):
        return tuple(_times(item, factor) for item in value)
    return None if value is None else max(1, round(value * factor))


def models_in(annotation: Any) -> list[type[Strict]]:
    """The models in a type such as `tuple[A | B, ...]`: what may stand at a key of this type, or in its list."""
    if isinstance(annotation, type) and issubclass(annotation, Strict):
        return [annotation]
    return [model for inner in get_args(annotation) for model in models_in(inner)]


def types_of(models: Sequence[type[Strict]]) -> list[str]:
    """The values of `type` that these models answer to."""
    return [name for model in models for name in get_args(model.model_fields["type"].annotation)]


def of_type(models: Sequence[type[Strict]], name: Any) -> list[type[Strict]]:
    """Those of several models that answer to a type; all of them if none does."""
    return [model for model in models if len(models) > 1 and name in types_of([model])] or list(models)


def default_type(field: FieldInfo) -> str | None:
    """The type that the models at a key have where none is given; None where one has to be."""
    for mark in (field.discriminator, *field.metadata, *_marks(field.annotation)):
        if isinstance(mark, Discriminator) and callable(mark.discriminator):
            return str(mark.discriminator({}))
    return None


def _marks(annotation: Any) -> Iterator[Any]:
    for inner in get_args(annotation):
        yield inner
        yield from _marks(inner)
