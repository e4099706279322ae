"""Batches on the device of the network, copied while it works on those before them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import torch

from piip.data.batch import Batch


def on_device(batches: Iterable[Batch], device: torch.device) -> Iterator[Batch]:
    """The batches on a device.

    A GPU gets the next batch, which should be in page-locked memory, by a stream of its own while it works on this one;
    so one batch more than has been yielded has been taken from `batches`, also when an error comes out of them.
    """
    if device.type != "cuda":
        for batch in batches:
            yield batch.to(device)
        return
    copies, source = torch.cuda.Stream(device), iter(batches)

    def begin_to_copy() -> Batch | None:
        batch = next(source, None)
        with torch.cuda.stream(copies):
            return None if batch is None else batch.to(device, non_blocking=True)

    coming = begin_to_copy()
    while coming is not None:
        batch, current = coming, torch.cuda.current_stream(device)
        current.wait_stream(copies)
        # Its memory belongs to the stream of the copies, which would reuse it as soon as Python lets go of it.
        batch.record_stream(current)
        coming = begin_to_copy()
        yield batch
