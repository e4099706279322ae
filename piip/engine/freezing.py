"""Parts of a model that do not train."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from fnmatch import fnmatchcase

from torch import nn

from piip.config.strict import nearest
from piip.errors import ConfigError


def freeze(model: nn.Module, names: Sequence[str]) -> None:
    """Takes parts of a model out of training.

    names: of parameters or of modules, whose parameters are then all meant, with the wildcards *, ? and [] where there
    are any. Raises ConfigError for a name that fits no parameter, and if nothing is left to train.
    """
    parameters = dict(model.named_parameters())
    for given in names:
        frozen = [name for name in parameters if _covers(given, name)]
        if not frozen:
            parts = [*(name for name, _ in model.named_modules() if name), *parameters]
            hint = nearest(given, parts) or f"its parts are {', '.join(name for name, _ in model.named_children())}"
            raise ConfigError(f"train.freeze: '{given}' names no part of the model that has parameters; {hint}")
        for name in frozen:
            parameters[name].requires_grad_(False)
    if not any(parameter.requires_grad for parameter in parameters.values()):
        raise ConfigError("train.freeze leaves no parameter to train; name fewer parts")


def frozen_parts(model: nn.Module) -> Iterator[nn.Module]:
    """The outermost modules of which every parameter is frozen."""
    for module in model.children():
        parameters = list(module.parameters())
        if parameters and not any(parameter.requires_grad for parameter in parameters):
            yield module
        else:
            yield from frozen_parts(module)


def _covers(given: str, name: str) -> bool:
    return any(fnmatchcase(name, pattern) for pattern in (given, f"{given}.*"))
