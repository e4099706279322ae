"""The base of every config model, what tells the members of unions apart, and the remedy for a misspelt name."""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from typing import Any

from pydantic import BaseModel, ConfigDict, Discriminator, model_validator
from pydantic_core import PydanticCustomError


def nearest(given: str, known: Iterable[str], otherwise: str, cutoff: float = 0.5) -> str:
    """The remedy for a name that is not among the known ones: the nearest of them, or else the text given."""
    near = difflib.get_close_matches(given, known, n=1, cutoff=cutoff)
    return f"did you mean '{near[0]}'?" if near else otherwise


def type_or(default: str) -> Discriminator:
    """Tells the members of a union apart by their `type`, which may be left out for the default one."""
    return Discriminator(
        lambda part: str(part.get("type", default) if isinstance(part, dict) else getattr(part, "type", default))
    )


class Strict(BaseModel):
    """Base of every config model: immutable, and an unknown key is an error with a suggestion."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    @model_validator(mode="before")
    @classmethod
    def _reject_unknown_keys(cls, data: Any) -> Any:
        if isinstance(data, dict):
            for key in data:
                if key not in cls.model_fields:
                    hint = nearest(str(key), cls.model_fields, f"valid keys: {', '.join(cls.model_fields)}")
                    raise PydanticCustomError(
                        "unknown_key", "unknown key '{key}'; {hint}", {"key": str(key), "hint": hint}
                    )
        return data
