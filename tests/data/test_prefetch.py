"""Batches on the device: in order, copied ahead on a stream of their own, and not reused too early."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import torch

from piip.data.batch import Batch, Unread, collate
from piip.data.prefetch import on_device

Events = list[tuple[str, object]]


def make(number: int) -> Batch:
    bits = torch.full((1, 4, 1), 0xF0, dtype=torch.uint8)
    images = torch.full((1, 3, 4, 4), number, dtype=torch.uint8)
    return Batch(images, [(4, 4)], [(4, 4)], [number], [{"mask_bits": bits}])


class FakeBatch(Batch):
    """Says what is done with it."""

    def __init__(self, number: int, events: Events) -> None:
        self.number, self.events = number, events

    def to(self, device: torch.device | str, non_blocking: bool = False) -> Batch:
        assert torch.device(device).type == "cuda"
        assert non_blocking
        self.events.append(("copy", (self.number, torch.cuda.current_stream(device))))
        return self

    def record_stream(self, stream: torch.cuda.Stream) -> None:
        self.events.append(("keep", (self.number, stream)))


@pytest.fixture
def events(monkeypatch: pytest.MonkeyPatch) -> Events:
    """What happens on the stand-ins for CUDA's streams, called "compute" and "side"."""
    found: Events = []
    streams = []

    class Stream:
        def __init__(self, device: object = None, *, name: str = "side") -> None:
            self.name = name

        def wait_stream(self, other: Stream) -> None:
            found.append(("wait", (self, other)))

        def __eq__(self, other: object) -> bool:
            return self.name == getattr(other, "name", other)

        __hash__ = object.__hash__

    @contextmanager
    def on(stream: Stream) -> Iterator[None]:
        streams.append(stream)
        yield
        streams.pop()

    streams.append(Stream(name="compute"))
    monkeypatch.setattr(torch.cuda, "Stream", Stream)
    monkeypatch.setattr(torch.cuda, "stream", on)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device=None: streams[-1])
    return found


def test_a_gpu_gets_the_next_batch_on_a_side_stream_before_this_one_is_worked_on(events: Events) -> None:
    for batch in on_device([FakeBatch(number, events) for number in range(3)], torch.device("cuda")):
        events.append(("work", batch.number))
    wait = ("wait", ("compute", "side"))
    # A copy is waited for before the next one is begun: waiting for a stream is waiting for all that is on it.
    assert events == [
        ("copy", (0, "side")),
        wait, ("keep", (0, "compute")), ("copy", (1, "side")), ("work", 0),
        wait, ("keep", (1, "compute")), ("copy", (2, "side")), ("work", 1),
        wait, ("keep", (2, "compute")), ("work", 2),
    ]  # fmt: skip


def test_an_error_of_the_loader_comes_out_as_it_is(events: Events) -> None:
    def broken() -> Iterator[Batch]:
        yield FakeBatch(0, events)
        raise ValueError("lost")

    with pytest.raises(ValueError, match="lost"):
        list(on_device(broken(), torch.device("cuda")))
    assert list(on_device([], torch.device("cuda"))) == []


def test_a_cpu_takes_no_batch_before_it_is_asked_for_and_unpacks_its_masks() -> None:
    taken = []

    def source() -> Iterator[Batch]:
        for number in range(3):
            taken.append(number)
            yield make(number)

    for number, batch in enumerate(on_device(source(), torch.device("cpu"))):
        assert taken == list(range(number + 1))
        assert batch.image_ids == [number]
        assert batch.targets[0]["masks"].tolist() == [[[1] * 4] * 4]


@pytest.mark.cuda
def test_a_gpu_works_on_whole_batches() -> None:
    """Long work on every batch, and memory that is soon reused: a copy that came too late or too early would show."""
    device, sums = torch.device("cuda"), []
    for batch in on_device((make(number).pin_memory() for number in range(50)), device):
        torch.cuda._sleep(2_000_000)
        sums.append(batch.images.sum() + batch.targets[0]["masks"].sum())
        del batch
    assert torch.stack(sums).tolist() == [48 * number + 16 for number in range(50)]


@pytest.mark.cuda
def test_a_batch_without_any_readable_image_passes_a_gpu_by() -> None:
    unread = [Unread(3, {"label": 0}, "damaged")]
    batch = collate(unread, mean=(0, 0, 0), std=(1, 1, 1), divisor=32, mixing=None)
    (moved,) = on_device([batch.share_memory().pin_memory()], torch.device("cuda"))
    assert (moved.images.shape, moved.image_ids, moved.unread) == ((0, 3, 0, 0), [], unread)
