"""Loader processes: how they start, hand over batches, die and are ended.

They leave SIGTERM and Ctrl-C to the process that started them, which decides when they end. So that none survives it,
those that do not end when they are told to are killed: they only read.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import multiprocessing.connection
import multiprocessing.resource_tracker
import signal
import sys
import threading
import traceback
from collections.abc import Callable, Iterator, Sequence
from multiprocessing.process import BaseProcess
from typing import Any

from piip.data.batch import Batch
from piip.errors import PiipError

# Seconds between two checks whether the wait for a batch should go on.
SLICE = 1
# Seconds in which loader processes have to end by themselves.
_GRACE = 1
_SIGNALS = (signal.SIGINT, signal.SIGTERM)


def hand_over(collate: Callable[[Sequence[Any]], Batch | PiipError], samples: Sequence[Any]) -> Batch | PiipError:
    """Collates in a loader process, into shared memory.

    Moved there only while it is sent, a batch that does not fit would be lost without the main process learning of it.
    """
    batch = collate(samples)
    if isinstance(batch, PiipError):
        return batch
    try:
        return batch.share_memory()
    except (RuntimeError, OSError):
        return death(f"a batch of {batch.nbytes / 2**20:.3g} MiB does not fit into the shared memory, /dev/shm")


@contextlib.contextmanager
def signals_held() -> Iterator[None]:
    """Processes started in here are not reached by a signal to the whole group before they have begun to ignore it.

    They inherit that the signals are blocked; this process gets its own at the end.
    """
    if multiprocessing.get_start_method() != "fork":
        # Queues for spawned processes start it, and its start unblocks the signals.
        multiprocessing.resource_tracker.ensure_running()
    before = signal.pthread_sigmask(signal.SIG_BLOCK, _SIGNALS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def leave_signals_to_parent(_: int) -> None:
    """Lets a loader process ignore SIGTERM and Ctrl-C; called in it before anything else."""
    for number in _SIGNALS:
        signal.signal(number, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, _SIGNALS)


def end(processes: Sequence[BaseProcess], shut_down: Callable[[], None] | None = None) -> None:
    """Ends loader processes: by `shut_down`, torch's way, and by SIGKILL after some time or where there is none."""
    in_main = threading.current_thread() is threading.main_thread()
    # torch's handler would raise in the main thread, now or later, for every process that ends by a signal.
    before = signal.signal(signal.SIGCHLD, signal.SIG_DFL) if in_main else None
    timer = threading.Timer(_GRACE, _kill, [processes])
    timer.daemon = True
    try:
        if shut_down is not None:
            timer.start()
            shut_down()
    finally:
        timer.cancel()
        _kill(processes)
        for process in processes:
            process.join()
        if before is not None:
            signal.signal(signal.SIGCHLD, before)


def _kill(processes: Sequence[BaseProcess]) -> None:
    for process in processes:
        process.kill()


def take_down(error: BaseException) -> None:
    """Frees the half-built iterator of a start that failed; torch's destructor would complain of missing attributes."""
    hook, sys.unraisablehook = sys.unraisablehook, lambda _: None
    try:
        traceback.clear_frames(error.__traceback__)
    finally:
        sys.unraisablehook = hook


def find_death(processes: Sequence[BaseProcess]) -> PiipError | None:
    """The error for a process that has died, if one has.

    One that dies while it hands over a batch shows as a broken connection, perhaps before it has ended.
    """
    ends = {process.sentinel: process for process in processes}
    for sentinel in multiprocessing.connection.wait(ends, timeout=1):
        process = ends[sentinel]  # type: ignore[index]
        process.join(timeout=1)
        return death(f"process {process.pid} ended with code {process.exitcode}")
    return None


def explain_worker_death(error: BaseException) -> PiipError | None:
    """The error to show when torch reports, anywhere in the main process, that a loader process died; else None."""
    text = str(error)
    if "DataLoader worker" not in text or not ("killed by signal" in text or "exited unexpectedly" in text):
        return None
    return death(text.splitlines()[0].strip())


def timed_out(error: RuntimeError) -> bool:
    """Whether torch's error only says that no batch has come for a while."""
    return str(error).startswith("DataLoader timed out")


def death(what: str) -> PiipError:
    """The error for a loader process that cannot go on."""
    return PiipError(
        f"a data loader process died ({what}); most often memory or shared memory ran out: lower data.workers or "
        "data.batch_size, or set data.workers=0 to load in the main process"
    )
