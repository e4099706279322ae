"""`piip train`."""

from __future__ import annotations

from itertools import zip_longest
from pathlib import Path
from typing import Annotated, Any

import typer

from piip.cli.options import ConfigName, Data, Device, Overrides, OverridesCommand, require, with_data


class TrainCommand(OverridesCommand):
    """Takes a bare `--resume` for `--resume auto`, also before another argument."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Inserts the value that a bare --resume leaves out."""
        complete = []
        for word, following in zip_longest(args, args[1:]):
            complete.append(word)
            if word == "--resume" and not _names_a_checkpoint(following):
                complete.append("auto")
        return super().parse_args(ctx, complete)


def _names_a_checkpoint(word: str | None) -> bool:
    """Whether the word after --resume is its value, and not another option, an override, or the config."""
    from piip.config.load import find_config
    from piip.errors import ConfigError

    if word is None or word.startswith("-") or word.endswith((".yaml", ".yml")):
        return False
    if "=" in word or Path(word).is_dir():  # a run directory is a config too, but here it is what to resume
        return Path(word).exists()
    try:
        find_config(word)
    except ConfigError:
        return True
    return False


def train(
    config: ConfigName,
    overrides: Overrides = None,
    data: Data = None,
    output: Annotated[
        Path | None, typer.Option(metavar="DIR", file_okay=False, help="Run directory; runs/NAME by default.")
    ] = None,
    resume: Annotated[
        str | None, typer.Option(metavar="[auto|PATH]", help="Continue from the last checkpoint, or from that of PATH.")
    ] = None,
    weights: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="Start from a run (DIR, or NAME for runs/NAME), one of its checkpoints, or a weight file. Classes "
            "keep their weights by name; a run that is resumed has its own.",
        ),
    ] = None,
    partial: Annotated[
        bool, typer.Option("--weights-partial", help="Take of --weights what fits, and start the rest anew.")
    ] = False,
    device: Device = None,
) -> None:
    """Train a model; print its metrics and where everything lies."""
    if partial and weights is None:
        raise typer.BadParameter("--weights-partial goes with --weights")
    from piip.config.load import load_config

    settings = load_config(config, with_data(overrides, data))
    output = output or Path("runs") / settings.name
    _keep_source(config, output / "config.yaml")
    # These checks come before torch is imported, which takes seconds.
    weights = None if weights is None else require(weights)
    settings.data.train.check_files("data.train")
    settings.data.val.check_files("data.val")
    from piip.engine.train import train as run_training

    metrics = run_training(settings, output=output, device=device, resume=resume, weights=weights, partial=partial)

    from piip.cli.console import facts, is_main_process, out
    from piip.cli.tables import metric_table

    if is_main_process():
        best = output / "checkpoints" / "best"
        places = [("run", output), ("best", f"{best} (step {best.resolve().name})"), ("curves", output / "curves.png")]
        console = out()
        console.print(metric_table(metrics))
        console.print(facts(places))


def _keep_source(config: str, written: Path) -> None:
    """Raises DataError if the resolved config would overwrite the file, written by hand, from which it comes."""
    from piip.config.load import dump_config, find_config, load_config
    from piip.files import check_outputs

    source = find_config(config)
    # Beside checkpoints lies the config that a run has written, perhaps a run of an older version.
    if not written.exists() or (written.parent / "checkpoints").is_dir():
        return
    if source.read_text(encoding="utf-8") != dump_config(load_config(source)):
        check_outputs([written], [source])
