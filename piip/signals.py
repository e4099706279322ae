"""SIGTERM and Ctrl-C end the program with a line and an exit code at any time, and training between two steps.

This module imports nothing that is slow, because the command line sets these handlers before it imports anything else.
"""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

from piip.errors import Stopped

INTERRUPTED = 130

_begun = False
_current: StopSignals | None = None


def handle_signals() -> None:
    """Makes SIGTERM and Ctrl-C end the process with a line, and with exit code 75 or 130.

    Signals that are ignored, as may be the case for a job in the background, stay ignored.
    """
    for number in (signal.SIGTERM, signal.SIGINT):
        if signal.getsignal(number) != signal.SIG_IGN:
            signal.signal(number, _end)


def begin() -> None:
    """Makes signals unwind the stack from now on, because there are things to tidy up."""
    global _begun
    _begun = True


@contextmanager
def default_signals() -> Iterator[None]:
    """Lets SIGTERM and Ctrl-C end the process as they do by default while the block runs."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    previous = {number: signal.signal(number, signal.SIG_DFL) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


def check_stop() -> None:
    """Ends a run that has received a signal; called during long work before the first step."""
    if _current is not None and _current.requested is not None:
        raise _current.error(_current.requested, "stopped before the first step; nothing was saved")


class StopSignals:
    """In its block, SIGTERM and the first Ctrl-C only set `requested`; a second Ctrl-C interrupts at once.

    Outside the main thread, where Python handles no signals, the block changes nothing.
    """

    def __init__(self) -> None:
        self.requested: signal.Signals | None = None
        self._previous: dict[signal.Signals, Any] = {}
        self._outer: StopSignals | None = None

    def __enter__(self) -> StopSignals:
        global _current
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGTERM, signal.SIGINT):
                self._previous[number] = signal.signal(number, self._request)
        self._outer, _current = _current, self
        return self

    def __exit__(self, *_: object) -> None:
        global _current
        _current = self._outer
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def _request(self, number: int, frame: FrameType | None) -> None:
        # SIGTERM decides the exit code even after a Ctrl-C, because its sender waits for that code.
        self.requested = signal.SIGTERM if self.requested == signal.SIGTERM else signal.Signals(number)
        if number == signal.SIGINT:
            signal.signal(signal.SIGINT, signal.default_int_handler)

    @staticmethod
    def error(number: int, message: str) -> BaseException:
        """The exception that ends a run: KeyboardInterrupt for Ctrl-C, else Stopped."""
        return KeyboardInterrupt(message) if number == signal.SIGINT else Stopped(message)


def _end(number: int, frame: FrameType | None) -> None:
    code, line = (INTERRUPTED, "interrupted") if number == signal.SIGINT else (Stopped.exit_code, "stopped by SIGTERM")
    if not _begun or _importing(frame):
        # Nothing important is half done yet, and a module that is being imported may swallow an exception.
        os.write(2, f"{line}\n".encode())
        os._exit(code)
    if number == signal.SIGINT:
        raise KeyboardInterrupt
    os.write(2, f"{line}\n".encode())
    raise SystemExit(code)


def _importing(frame: FrameType | None) -> bool:
    while frame is not None:
        if frame.f_code.co_filename == "<frozen importlib._bootstrap>":
            return True
        frame = frame.f_back
    return False
