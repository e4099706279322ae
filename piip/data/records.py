"""A long read-only list that loader processes share."""

from __future__ import annotations

import pickle
from collections.abc import Iterable
from typing import Generic, TypeVar

import numpy as np

T = TypeVar("T")


class Records(Generic[T]):
    """A read-only sequence of records, pickled into one buffer.

    Loader processes share the buffer with their parent. A list of Python objects they would copy page by page, because
    reading an object writes its reference count.
    """

    def __init__(self, records: Iterable[T]) -> None:
        pieces = [pickle.dumps(record, protocol=pickle.HIGHEST_PROTOCOL) for record in records]
        self._ends = np.cumsum([0] + [len(piece) for piece in pieces], dtype=np.int64)
        self._buffer = np.frombuffer(b"".join(pieces), dtype=np.uint8)

    def __len__(self) -> int:
        return len(self._ends) - 1

    def __getitem__(self, index: int) -> T:
        if not 0 <= index < len(self):
            raise IndexError(index)
        record: T = pickle.loads(self._buffer[self._ends[index] : self._ends[index + 1]].data)
        return record
