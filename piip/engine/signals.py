"""Turning SIGTERM and Ctrl-C into a request that the training loop grants between two steps."""

from __future__ import annotations

import signal
import threading
from types import FrameType, TracebackType
from typing import Any

from piip.errors import Stopped


class StopSignals:
    """While entered, SIGTERM and the first Ctrl-C only set `requested`; a second Ctrl-C interrupts at once.

    Outside the main thread, where Python handles no signals, it does nothing.
    """

    def __init__(self) -> None:
        self.requested: signal.Signals | None = None
        self._previous: dict[signal.Signals, Any] = {}

    def __enter__(self) -> StopSignals:
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGTERM, signal.SIGINT):
                self._previous[number] = signal.signal(number, self._request)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def _request(self, number: int, frame: FrameType | None) -> None:
        # SIGTERM decides the exit code also when Ctrl-C came first: whoever sent it waits for that code.
        self.requested = signal.SIGTERM if self.requested == signal.SIGTERM else signal.Signals(number)
        if number == signal.SIGINT:
            signal.signal(signal.SIGINT, signal.default_int_handler)

    @staticmethod
    def error(number: int, message: str) -> BaseException:
        """The exception that ends a run: KeyboardInterrupt for Ctrl-C, else Stopped."""
        return KeyboardInterrupt(message) if number == signal.SIGINT else Stopped(message)
