"""The bases of every config: `Strict` models, and families of components that are told apart by their `type`."""

from __future__ import annotations

import difflib
import importlib
import importlib.metadata
import importlib.util
import inspect
import pkgutil
from collections.abc import Iterable, Mapping, Sequence
from functools import cache
from typing import Any, ClassVar, TypeVar, get_args

from pydantic import BaseModel, ConfigDict, GetCoreSchemaHandler, model_validator
from pydantic.fields import FieldInfo
from pydantic_core import CoreSchema, PydanticCustomError, core_schema

from piip.errors import ConfigError, first_few


def nearest(given: str, known: Iterable[str], cutoff: float = 0.5) -> str | None:
    """'did you mean ...?' with the known names that begin like the given one, or else the nearest; None without one."""
    known = list(known)
    beginning = [name for name in known if len(given) > 2 and name.startswith(given)]
    near = beginning or difflib.get_close_matches(given, known, n=1, cutoff=cutoff)
    if len(near) == 1:
        return f"did you mean '{near[0]}'?"
    return f"did you mean one of {first_few(near, 3)}?" if near else None


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


Member = TypeVar("Member", bound="Component")
# A class of components, and the members of a family by their types; in the class below `type` is a field.
Class = type[Member]
Members = dict[str, Class[Member]]


class Component(Strict):
    """Base of the families of components: branches, necks, heads, data sets, transforms and metrics.

    A family is a direct subclass, in the module `config` of a package. Its members are the subclasses of that, each
    with a `type: Literal["name"] = "name"` of its own, and a field annotated with the family takes any of them: those
    in the module `config` of a folder of the package, those that installed packages name in an entry point group called
    like the package, and those that have been defined by anybody else. Abstract subclasses are what members share.

    default_type: the type that is meant where none is given; None where one has to be. members: of the family, by type.
    """

    default_type: ClassVar[str | None] = None
    members: ClassVar[Members[Any]]
    type: str

    def given(self) -> dict[str, Any]:
        """What a file has to say to get this component: its type and the settings that are not at their defaults."""
        return {"type": self.type} | self.model_dump(mode="json", exclude_defaults=True)

    @classmethod
    def is_family(cls) -> bool:
        """Whether this is a family, and not one of its members."""
        return cls.__mro__[2] is Strict  # pydantic asks this of Component too, before that name is bound

    @classmethod
    def meant_type(cls, data: Mapping[str, Any]) -> str | None:
        """The type of the member that a mapping describes."""
        return data.get("type", cls.default_type)

    @classmethod
    def known(cls: Class[Member]) -> Members[Member]:
        """The members of a family by their types. Raises ConfigError when an installed package's cannot be imported."""
        _import_members(cls.__module__.rpartition(".")[0])
        return cls.members

    @classmethod
    def __pydantic_init_subclass__(cls, **_: Any) -> None:
        if cls.is_family():
            cls.members = {}
            return
        names = get_args(cls.model_fields["type"].annotation)
        if not names and not inspect.isabstract(cls):
            raise TypeError(f'{cls.__qualname__} needs a type that configs name it by: type: Literal["name"] = "name"')
        for name in names:
            other = cls.members.get(name, cls)
            if (other.__module__, other.__qualname__) != (cls.__module__, cls.__qualname__):
                both = " and ".join(f"{model.__module__}.{model.__qualname__}" for model in (other, cls))
                raise TypeError(f"{both} both have the type '{name}'; each needs one of its own")
            cls.members[name] = cls

    @classmethod
    def __get_pydantic_core_schema__(cls, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        schema = handler(source)
        return core_schema.no_info_plain_validator_function(cls._choose) if cls.is_family() else schema

    @classmethod
    def _choose(cls, data: Any) -> Any:
        """The member that a mapping describes."""
        if isinstance(data, cls):
            return data
        if not isinstance(data, dict):
            raise PydanticCustomError("model_type", "a mapping is needed")
        member = cls.known().get(str(cls.meant_type(data)))
        if member is None:
            raise PydanticCustomError("unknown_type", "unknown type")
        return member.model_validate(data)


@cache
def _import_members(package: str) -> None:
    """Imports what defines members of the family of a package: its own rooms, and what is installed beside it."""
    if not package:  # a family of a script
        return
    for room in pkgutil.iter_modules(importlib.import_module(package).__path__):
        if room.ispkg and importlib.util.find_spec(f"{package}.{room.name}.config"):
            importlib.import_module(f"{package}.{room.name}.config")
    for entry in _entry_points().select(group=package):
        _import_installed(entry)


def _import_installed(entry: importlib.metadata.EntryPoint) -> None:
    try:
        entry.load()
    except Exception as error:
        raise ConfigError(
            f"the installed package '{entry.dist.name if entry.dist else entry.name}' offers {entry.value} to "
            f"{entry.group}, but that fails to import ({type(error).__name__}: {error}); repair or uninstall it"
        ) from error


_entry_points = cache(importlib.metadata.entry_points)


def models_in(annotation: Any) -> list[type[Strict]]:
    """The models in a type such as `tuple[A, ...]`: what may stand at a key of this type, or in its list."""
    if families := _families(annotation):
        return [member for family in families for member in family.known().values()]
    if isinstance(annotation, type) and issubclass(annotation, Strict):
        return [annotation]
    return [model for inner in get_args(annotation) for model in models_in(inner)]


def types_of(models: Sequence[type[Strict]]) -> list[str]:
    """The values of `type` that these models answer to, sorted."""
    return sorted(name for model in models for name in get_args(model.model_fields["type"].annotation))


def of_type(models: Sequence[type[Strict]], name: Any) -> list[type[Strict]]:
    """Those of several models that answer to a type; all of them if none does."""
    return [model for model in models if len(models) > 1 and name in types_of([model])] or list(models)


def meant_type(field: FieldInfo, data: Mapping[str, Any]) -> str | None:
    """The type of what a mapping at a key describes; None where one has to be given and is not."""
    return next((family.meant_type(data) for family in _families(field.annotation)), data.get("type"))


def _families(annotation: Any) -> list[type[Component]]:
    if isinstance(annotation, type):
        return [annotation] if issubclass(annotation, Component) and annotation.is_family() else []
    return [family for inner in get_args(annotation) for family in _families(inner)]
