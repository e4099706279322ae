"""Training, evaluating and predicting through the command line on a few generated images, in seconds."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import typer
from typer.testing import CliRunner, Result

from piip.cli.main import app


def run(*arguments: object) -> Result:
    """Runs `piip` with these words in this process, to whatever end."""
    return CliRunner().invoke(app, list(map(str, arguments)), prog_name="piip")


def parse(command: str, words: Sequence[str]) -> dict[str, Any]:
    """What the real command line makes of these words, without running the command. Raises click's UsageError."""
    return all_commands()[command].make_context(command, list(words)).params


def all_commands() -> dict[str, Any]:
    """The commands of `piip` by name, those of a group with its name before theirs, as in 'data check'."""
    found: dict[str, Any] = {}
    for name, command in typer.main.get_command(app).commands.items():
        below = getattr(command, "commands", None)
        found |= {name: command} if below is None else {f"{name} {part}": inner for part, inner in below.items()}
    return found


def succeed(*arguments: object) -> Result:
    """Runs `piip` to its end, which must be a good one."""
    done = run(*arguments)
    assert done.exit_code == 0, done.stderr
    return done


def small(root: Path, form: str, *, train: int = 4, val: int = 3) -> list[str]:
    """Overrides that make a demo's config a matter of seconds: so many generated images of `form` below `root`."""
    shapes = f"type: shapes, form: {form}, root: {root}/shapes, size: 64"
    return [
        f"data.train={{{shapes}, split: train, images: {train}}}",
        f"data.val={{{shapes}, split: val, images: {val}}}",
        "data.workers=0",
        "data.batch_size=2",
        "schedule={iterations: 2, warmup_iterations: 1}",
        "train.eval_every=2",
        "train.checkpoint_every=1",
        "train.log_every=1",
    ]


def figures(table: str) -> dict[str, list[str]]:
    """The rows of a printed table by their first word."""
    return {words[0]: words[1:] for line in table.splitlines() if (words := line.split())}
