"""Arguments and options that several commands share, so that they look and read alike."""

from __future__ import annotations

from json import dumps
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperCommand

from piip.errors import ConfigError, MissingFile
from piip.weights.find import PACKED
from piip.weights.hub import is_on_hub


class OverridesCommand(TyperCommand):
    """A command that takes KEY=VALUE, and says so where settings are given as options."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Refuses unknown options."""
        known = {name for option in self.get_params(ctx) for name in option.opts}
        for word in args:
            if word == "--":  # only arguments follow
                break
            name = word.partition("=")[0]
            if name.startswith("--") and name not in known:
                raise typer.BadParameter(
                    f"no option {name}; settings are given without dashes, as in optim.lr=0.1", ctx
                )
        return super().parse_args(ctx, args)


ConfigName = Annotated[
    str,
    typer.Argument(
        metavar="CONFIG",
        help="A YAML file, a run directory, a shipped name (see `piip models`), or an official file stem.",
    ),
]
Overrides = Annotated[
    list[str] | None, typer.Argument(metavar="KEY=VALUE", help="Config values to replace, as in optim.lr=2e-4.")
]
Weights = Annotated[
    Path | None,
    typer.Option(
        metavar="FILE",
        help="A run (DIR, or NAME for runs/NAME), one of its checkpoints, a weight file, or a shipped name that has "
        "weights; by default those of CONFIG, if that is a run or has some.",
    ),
]
Data = Annotated[
    Path | None,
    typer.Option(metavar="FOLDER", help="Take the data that this folder holds, in whatever format it is."),
]
Device = Annotated[
    str | None,
    typer.Option(metavar="DEVICE", help="cpu, cuda or cuda:N; by default a GPU where there is one."),
]
Compile = Annotated[
    bool,
    typer.Option("--compile", help="Compile blocks and interactions first, a minute that pays for many images."),
]
Tile = Annotated[
    int | None,
    typer.Option(min=1, metavar="PIXELS", help="Cut larger images into tiles of this side, each seen as an image."),
]
Overlap = Annotated[
    float, typer.Option(min=0.0, max=0.9, metavar="SHARE", help="Share of a tile that the next one sees too.")
]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON document instead of tables.")]


def with_data(overrides: list[str] | None, data: Path | None) -> list[str]:
    """The overrides, and the one that a folder of data stands for."""
    return [*(overrides or ()), *([] if data is None else [f"data.folder={dumps(str(data))}"])]


def require(weights: Path) -> Path:
    """The weights behind a path, behind the name of a run below runs/, or of a shipped config that has weights.

    Raises MissingFile, before anything slow is imported, if they are not there.
    """
    if is_on_hub(weights):
        return weights
    for path in (weights, Path("runs") / weights):
        if path.exists() or path.is_symlink():
            return path
    if (shipped := _shipped(str(weights))) is not None:
        return shipped
    raise MissingFile(f"weights not found: {weights}")


def weights_or_own(weights: Path | None, config: str) -> Path:
    """The weights that were named, those of the run that was given as the config, or those that come with the config.

    A run is given by its directory or its config.yaml.
    """
    from piip.config.load import find_config

    if weights is not None:
        return require(weights)
    source = find_config(config)
    if source.name == "config.yaml" and any((source.parent / name).exists() for name in ("checkpoints", PACKED)):
        return source.parent
    if (shipped := _shipped(config)) is not None:
        return shipped
    raise typer.BadParameter(f"--weights is needed: {config} is no run, which would have its own")


def _shipped(config: str) -> Path | None:
    """The weights that come with the package for this config; None if there are none, or no such config."""
    from piip.config.load import load_config, shipped_weights

    try:
        return shipped_weights(load_config(config))
    except ConfigError:
        return None
