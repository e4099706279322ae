"""Loader processes: their death is explained, and signals are left to the parent."""

from __future__ import annotations

import multiprocessing
import os
import re
import signal
import textwrap
import threading
import time
from collections.abc import Iterator
from multiprocessing.process import BaseProcess
from pathlib import Path

import pytest
import torch

from piip.data import build
from piip.data.batch import Batch
from piip.data.build import build_loader
from piip.data.loader import Loader
from piip.data.sampler import EvalSampler, TrainSampler
from piip.data.samples import Samples
from piip.data.workers import explain_worker_death, leave_signals_to_parent
from piip.errors import PiipError
from tests.data.loader_cases import epoch, make_config
from tests.engine.tiny import run_python


def children() -> list[BaseProcess]:
    """The loader processes, as there are no others."""
    return multiprocessing.active_children()


def begin(root: Path, workers: int) -> tuple[Loader, Iterator[Batch]]:
    """A loader whose workers have all started: one batch of each has been taken."""
    config = make_config(root, workers=workers, batch_size=1)
    loader = build_loader(config, config.data.train.build(training=True), training=True)
    loader.set_epoch(0)
    batches = iter(loader)
    for _ in range(workers):
        next(batches)
    return loader, batches


def test_a_dead_worker_is_a_clear_error(root: Path) -> None:
    loader, batches = begin(root, workers=1)

    def load_the_rest() -> None:
        os.kill(children()[0].pid, signal.SIGKILL)
        list(batches)

    with pytest.raises((PiipError, RuntimeError)) as caught:
        load_the_rest()
    # torch may be the first to tell, in the middle of any statement of the main thread.
    error = caught.value if isinstance(caught.value, PiipError) else explain_worker_death(caught.value)
    loader.close()
    assert re.search(r"a data loader process died \(.*\); .*lower data\.workers", str(error))


def test_only_worker_deaths_are_explained() -> None:
    killed = RuntimeError("DataLoader worker (pid 7) is killed by signal: Killed. \nmore")
    assert "died (DataLoader worker (pid 7) is killed by signal: Killed.);" in str(explain_worker_death(killed))
    assert explain_worker_death(RuntimeError("CUDA error")) is None


def test_workers_leave_signals_to_the_parent(root: Path) -> None:
    loader, batches = begin(root, workers=2)
    workers = children()
    assert len(workers) == 2
    for worker in workers:
        os.kill(worker.pid, signal.SIGTERM)
        os.kill(worker.pid, signal.SIGINT)
    assert len(list(batches)) == 10
    assert all(worker.is_alive() for worker in workers)
    loader.close()


def signal_early(worker: int) -> None:
    """What a signal to the process group does that arrives before a loader process has begun to ignore it."""
    os.kill(os.getpid(), signal.SIGTERM)
    os.kill(os.getpid(), signal.SIGINT)
    leave_signals_to_parent(worker)


def test_workers_leave_signals_to_the_parent_from_their_start(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = make_config(root, workers=1)
    monkeypatch.setattr(build, "leave_signals_to_parent", signal_early)
    loader = build.build_loader(config, config.data.train.build(training=True), training=True)
    assert len(epoch(loader, 0)) == 3
    loader.close()


@pytest.mark.slow
def test_spawned_workers_leave_signals_to_the_parent_from_their_start(root: Path) -> None:
    script = f"""
        import multiprocessing, signal
        from piip.data import build
        from tests.data.loader_cases import epoch, make_config
        from tests.data.test_loader_workers import signal_early
        multiprocessing.set_start_method("spawn")
        build.leave_signals_to_parent = signal_early
        config = make_config({str(root)!r}, workers=1)
        loader = build.build_loader(config, config.data.train.build(training=True), training=True)
        print(len(epoch(loader, 0)), signal.pthread_sigmask(signal.SIG_BLOCK, []))
        loader.close()
    """
    assert run_python(["-c", textwrap.dedent(script)]) == "3 set()\n"


def test_a_signal_that_arrives_while_workers_start_reaches_the_parent_afterwards(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = make_config(root, workers=1)
    loader = build_loader(config, config.data.train.build(training=True), training=True)
    seen: list[object] = []
    keys_of_batches = TrainSampler.__iter__

    def signalled(sampler: TrainSampler) -> Iterator[list[tuple[int, int]]]:
        signal.raise_signal(signal.SIGTERM)  # to this thread: others may have it unblocked
        seen.append("loader asks for batches while it starts")
        return keys_of_batches(sampler)

    monkeypatch.setattr(TrainSampler, "__iter__", signalled)
    before = signal.signal(signal.SIGTERM, lambda number, _: seen.append(number))
    try:
        assert len(epoch(loader, 0)) == 3
    finally:
        signal.signal(signal.SIGTERM, before)
        loader.close()
    assert seen[-1] == signal.SIGTERM
    assert signal.SIGTERM not in seen[:-1]
    assert seen[:-1]


def test_an_epoch_begins_although_processes_are_stuck_in_the_one_before(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = make_config(root)
    expected = epoch(build_loader(config, config.data.train.build(training=True), training=True), 1)
    original = Samples.__getitem__

    def get(samples: Samples, key: tuple[int, int]) -> object:
        if key[0] == 0 and get.taken == 4:
            time.sleep(1e6)
        get.taken += 1
        return original(samples, key)

    get.taken = 0
    monkeypatch.setattr(Samples, "__getitem__", get)
    config = make_config(root, workers=1)
    loader = build_loader(config, config.data.train.build(training=True), training=True)
    loader.set_epoch(0)
    next(iter(loader))
    (stuck,) = children()
    found = epoch(loader, 1)
    assert [batch.image_ids for batch in found] == [batch.image_ids for batch in expected]
    assert all(torch.equal(a.images, b.images) for a, b in zip(found, expected, strict=True))
    assert not stuck.is_alive()
    assert len(children()) == 1
    loader.close()


def test_a_wait_asks_whether_to_go_on_and_notices_that_nobody_takes_batches(root: Path) -> None:
    """A stand-in for torch's loader, for page-locked memory needs a GPU: it waits once, then for ever."""

    class Waiting:
        calls = 0
        _pin_memory_thread: threading.Thread | None = None

        def __iter__(self) -> Iterator[Batch]:
            return self

        def __next__(self) -> Batch:
            self.calls += 1
            if self.calls == 2:
                return batch
            raise RuntimeError("DataLoader timed out after 1 seconds")

    config = make_config(root)
    dataset = config.data.train.build(training=True)
    batch = epoch(build_loader(config, dataset, training=True), 0)[0]
    asked: list[int] = []
    waiting = Waiting()
    batches = iter(Loader(dataset, waiting, EvalSampler(images=1, batch_size=1), check=lambda: asked.append(1)))
    assert next(batches) is batch
    assert asked == [1]
    waiting._pin_memory_thread = threading.Thread()
    with pytest.raises(PiipError, match="the thread that takes its batches ended"):
        next(batches)


@pytest.mark.parametrize("training", [True, False])
def test_python_exits_although_workers_ignore_sigterm(root: Path, training: bool) -> None:
    """multiprocessing ends its children with SIGTERM at exit and waits for them: without Loader's care, for ever."""
    script = f"""
        from piip.data.build import build_loader
        from tests.data.loader_cases import make_config
        config = make_config({str(root)!r}, workers=1, batch_size=1, eval_batch_size=1)
        dataset = config.data.train.build(training={training})
        batches = iter(build_loader(config, dataset, training={training}))
        next(batches)
    """
    run_python(["-c", textwrap.dedent(script)], timeout=60)
