"""The records of a run: log lines, a progress bar on terminals, metrics.jsonl, TensorBoard events and curves.png."""

from __future__ import annotations

import json
import logging
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.highlighter import NullHighlighter
from rich.logging import RichHandler
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from piip.engine import distributed
from piip.errors import PiipError, visible
from piip.files import free_space, sync, to_json, write_file

_log = logging.getLogger(__name__)

_SECONDS_BETWEEN_LINES = 30


@contextmanager
def logging_to(file: Path | None = None) -> Iterator[Console]:
    """Shows the log messages of `piip` on stderr while the block runs, and appends them to `file` if there is one.

    The main process writes all messages, the others show warnings only. Yields the console, which a progress bar has to
    share.
    """
    console = Console(stderr=True, highlight=False)
    root = logging.getLogger("piip")
    level, propagates = root.level, root.propagate
    handlers: list[logging.Handler] = []
    if console.is_terminal:
        # Rich's own highlighter would colour the numbers in the names of files.
        plain = NullHighlighter()
        handlers.append(RichHandler(console=console, show_path=False, log_time_format="%H:%M:%S", highlighter=plain))
        handlers[0].setFormatter(_OneLine("%(message)s"))
    else:
        handlers.append(logging.StreamHandler(sys.stderr))
        handlers[0].setFormatter(_OneLine("%(asctime)s %(levelname).1s %(message)s", "%H:%M:%S"))
    # The progress bar shows "on_bar" messages, and the command line shows "at_end" ones; only the file needs them.
    hidden = ("on_bar", "at_end") if console.is_terminal else ("at_end",)
    handlers[0].addFilter(lambda record: not any(hasattr(record, name) for name in hidden))
    if distributed.is_main() and file is not None:
        handlers.append(_LogFile(file))
        handlers[1].setFormatter(_OneLine("%(asctime)s %(levelname)s %(message)s"))
    for handler in handlers:
        root.addHandler(handler)
    root.setLevel(logging.INFO if distributed.is_main() else logging.WARNING)
    root.propagate = False
    try:
        yield console
    finally:
        for handler in handlers:
            root.removeHandler(handler)
            handler.close()
        root.setLevel(level)
        root.propagate = propagates


class _OneLine(logging.Formatter):
    """Keeps every record on one line: names of classes and files may hold line breaks and control characters."""

    def formatMessage(self, record: logging.LogRecord) -> str:
        record.message = visible(record.message)
        return super().formatMessage(record)


class _LogFile(logging.StreamHandler):
    """Appends to a file, but not through a link, which may lead anywhere.

    On a full disk, lines are lost without an error: the next checkpoint, which cannot be saved, will raise it.
    """

    def __init__(self, file: Path) -> None:
        def opener(path: str, flags: int) -> int:
            return os.open(path, flags | os.O_NOFOLLOW, 0o666)

        super().__init__(open(file, "a", encoding="utf-8", opener=opener))  # noqa: SIM115 - closed below

    def handleError(self, record: logging.LogRecord) -> None:
        """Ignores the error, for which the method of `logging` would print a traceback."""

    def close(self) -> None:
        with suppress(OSError):
            self.stream.close()
        super().close()


class Bar:
    """A progress bar on the terminal of the main process.

    Where stderr is no terminal, it logs a line every half minute if there is a `unit`, the name of what is counted.
    """

    def __init__(
        self, console: Console | None, description: str, total: int, done: int = 0, unit: str | None = None
    ) -> None:
        console = console or Console(stderr=True)
        self._description, self._unit = description, unit
        self._total, self._done, self._begun = total, done, done
        self._start = self._said = time.monotonic()
        self._progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            TextColumn("{task.fields[note]}", style="dim"),
            console=console,
            transient=True,
            disable=not (console.is_terminal and distributed.is_main()),
        )
        self._task = self._progress.add_task(description, total=total, completed=done, note="")

    def __enter__(self) -> Bar:
        self._progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        if not self._progress.disable:  # older versions of rich would print an empty line
            self._progress.stop()

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Removes the bar from the terminal during the block, in which another bar may be shown."""
        self.__exit__()
        try:
            yield
        finally:
            self.__enter__()

    def advance(self, note: str = "") -> None:
        """Advances by one; `note` is shown behind the bar."""
        self._progress.update(self._task, advance=1, note=note)
        self._done += 1
        if self._progress.disable and self._unit is not None:
            self._say_progress(self._unit)

    def _say_progress(self, unit: str) -> None:
        if time.monotonic() - self._said >= _SECONDS_BETWEEN_LINES:
            self._said = time.monotonic()
            _log.info("%s: %d of %d %s, %s left", self._description, self._done, self._total, unit, self.left())

    def left(self) -> str:
        """In words the time that the rest takes at the mean speed so far."""
        seconds = (time.monotonic() - self._start) / max(self._done - self._begun, 1) * (self._total - self._done)
        hours, minutes = divmod(round(seconds / 60), 60)
        if seconds < 99:
            return f"{seconds:.0f} s"
        return f"{hours} h {minutes} min" if hours else f"{minutes} min"


class JsonLines:
    """A file with one JSON document per line. Each line is written at once, so that a kill leaves whole lines."""

    def __init__(self, path: Path, keep: Callable[[dict[str, Any]], bool]) -> None:
        """keep: which records of an existing file stay; an incomplete last line never does. Raises OSError."""
        self.records = [record for record in _read_lines(path) if keep(record)] if path.exists() else []
        write_file(path, "".join(to_json(record) + "\n" for record in self.records))
        self._descriptor = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_NOFOLLOW)

    def write(self, record: dict[str, Any]) -> None:
        """Appends one record; NaN and infinities are written as null."""
        self.records.append(record)
        os.write(self._descriptor, f"{to_json(record)}\n".encode())

    def close(self) -> None:
        os.fsync(self._descriptor)
        os.close(self._descriptor)


class RunLog:
    """The records of one training run, written by the main process; in other processes the methods do nothing.

    output: the run directory. resumed_step: the step from which a resumed run goes on; later records are dropped.
    evaluated: whether that step has been evaluated, so that the record of its evaluation stays.
    """

    def __init__(self, output: Path, *, resumed_step: int | None = None, evaluated: bool = False) -> None:
        self._output = output
        self._stack = ExitStack()
        self._lines: JsonLines | None = None
        if not distributed.is_main():
            return
        # This import is slow, and the other ranks do not need it.
        from torch.utils.tensorboard import SummaryWriter

        def keep(record: dict[str, Any]) -> bool:
            if resumed_step is None:
                return False
            last = resumed_step if evaluated or record["event"] == "train" else resumed_step - 1
            return bool(record["step"] <= last)

        with self._writing(), ExitStack() as stack:
            stack.enter_context(_quiet_threads())
            self._lines = JsonLines(output / "metrics.jsonl", keep)
            stack.callback(self._lines.close)
            # TensorBoard hides what an earlier attempt wrote for the steps from here on.
            purge = 0 if resumed_step is None else resumed_step + 1
            self._board = SummaryWriter(str(output / "tensorboard"), purge_step=purge)
            stack.callback(self._board.close)
            self._stack = stack.pop_all()

    def train(self, record: dict[str, Any], left: str | None = None) -> None:
        """Writes a record: step, epoch, lr, loss, losses by name, grad_norm, memory_mib, time and data_time in s.

        left: the time that is left, in words, for the log line.
        """
        self._write({"event": "train"} | record)
        parts = " ".join(f"{name} {value:.4f}" for name, value in record["losses"].items())
        _log.info(
            "step %d epoch %.2f lr %.3g loss %.4f (%s) grad %.3g, %.3f s/step (%.3f s data) %d MiB%s",
            *(record[key] for key in ("step", "epoch", "lr", "loss")),
            parts,
            *(record[key] for key in ("grad_norm", "time", "data_time", "memory_mib")),
            f", {left} left" if left else "",
            extra={"on_bar": True},
        )

    def evaluation(self, record: dict[str, Any]) -> None:
        """Writes a record: step, epoch, metrics by name, and seconds."""
        self._write({"event": "eval"} | record)
        measured = {name: value for name, value in record["metrics"].items() if value is not None}
        metrics = ", ".join(f"{name} {value:.4f}" for name, value in measured.items())
        _log.info("step %d evaluation in %.1f s: %s", record["step"], record["seconds"], metrics)

    def draw(self) -> None:
        """Redraws curves.png."""
        if self._lines is not None:
            from piip.engine.curves import draw_curves  # matplotlib takes a second, which predictions need not wait

            with self._writing():
                draw_curves(self._lines.records, self._output / "curves.png")

    def flush(self) -> None:
        """Writes the records so far to the disk, so that every checkpoint on the disk has its records there too."""
        if self._lines is not None:
            with self._writing():
                sync(self._output / "metrics.jsonl")
                self._board.flush()

    def close(self) -> None:
        """Closes the files. A full disk is only warned of: what belongs to a checkpoint has been flushed with it."""
        try:
            self._stack.close()
        except OSError as error:
            _log.warning("the last records could not be written: %s", error.strerror)

    @contextmanager
    def _writing(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise PiipError(
                f"cannot write to the run directory {self._output}: {error.strerror}{free_space(self._output)}; free "
                "some space and continue with --resume"
            ) from error

    def _write(self, record: dict[str, Any]) -> None:
        if self._lines is None:
            return
        with self._writing():
            self._lines.write(record)
        scalars = {key: value for key, value in record.items() if isinstance(value, (int, float)) and key != "step"}
        for group in ("losses", "metrics"):
            scalars |= {f"{group}/{name}": value for name, value in record.get(group, {}).items() if value is not None}
        with self._writing():
            for name, value in scalars.items():
                self._board.add_scalar(name if "/" in name else f"{record['event']}/{name}", value, record["step"])


@contextmanager
def _quiet_threads() -> Iterator[None]:
    """Hides the traceback of TensorBoard's writer thread, whose error is raised by the next call anyway."""
    shown = threading.excepthook

    def show(args: threading.ExceptHookArgs) -> None:
        if not (isinstance(args.exc_value, OSError) and type(args.thread).__module__.startswith("tensorboard.")):
            shown(args)

    threading.excepthook = show
    try:
        yield
    finally:
        threading.excepthook = shown


def _read_lines(path: Path) -> Iterator[dict[str, Any]]:
    """The records of complete lines; damaged lines are passed over."""
    for line in path.read_bytes().split(b"\n")[:-1]:
        try:
            record = json.loads(line)
        except ValueError:
            continue
        if isinstance(record, dict) and record.keys() >= {"event", "step"}:
            yield record
