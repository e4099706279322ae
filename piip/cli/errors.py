"""Shows failures to the user: a few lines on stderr and an exit code, or the traceback with --debug."""

from __future__ import annotations

import inspect
import traceback
from collections.abc import Callable
from functools import wraps
from typing import Annotated, Any

import typer

from piip.errors import PiipError, visible
from piip.signals import INTERRUPTED, begin

Debug = Annotated[bool, typer.Option("--debug", help="Show the whole traceback of an error.")]


def command(function: Callable[..., None]) -> Callable[..., None]:
    """Wraps a command: adds `--debug`, and turns what the command raises into a message and an exit code.

    Usage errors (typer.BadParameter) and a closed pipe are left to Typer.
    """
    parameters = inspect.signature(function, eval_str=True).parameters
    context = inspect.Parameter("context", inspect.Parameter.POSITIONAL_OR_KEYWORD, annotation=typer.Context)
    debugging = inspect.Parameter("debug", inspect.Parameter.KEYWORD_ONLY, default=False, annotation=Debug)

    @wraps(function)
    def run(context: typer.Context, *, debug: bool, **arguments: Any) -> None:
        begin()
        try:
            function(**arguments)
        except (typer.Exit, typer.Abort, typer.BadParameter, BrokenPipeError):
            raise
        except KeyboardInterrupt as interrupt:
            _say(f"interrupted: {interrupt}" if str(interrupt) else "interrupted")
            raise typer.Exit(INTERRUPTED) from None
        except Exception as error:
            if debug or context.obj:
                traceback.print_exc()
            else:
                _say(f"error: {describe(error)}")
            raise typer.Exit(getattr(error, "exit_code", 1)) from None

    signature = inspect.Signature([context, *parameters.values(), debugging])
    run.__signature__ = signature  # type: ignore[attr-defined]
    run.__annotations__ = {name: parameter.annotation for name, parameter in signature.parameters.items()}
    return run


def describe(error: Exception) -> str:
    """The error in words that help: its own message if a user can cause it, else its type and how to see more."""
    if isinstance(error, PiipError):
        return str(error)
    # It is recognised by its name, so that a command without torch does not import torch for it.
    if type(error).__name__ == "OutOfMemoryError":
        return "the GPU is out of memory; lower data.batch_size or the resolutions, or raise optim.accumulate"
    if isinstance(error, OSError) and error.strerror:
        return f"{error.strerror}: {error.filename}" if error.filename else error.strerror
    first_line = next(iter(str(error).splitlines()), "")
    return f"unexpected error ({type(error).__name__}: {first_line}); run with --debug for the traceback"


def _say(message: str) -> None:
    typer.echo(visible(message, keep="\n"), err=True)
