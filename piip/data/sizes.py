"""Whether image files have the sizes that annotations say, as far as their headers tell, before anything is trained."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from piip.data.findings import Findings
from piip.data.images import read_size, size_fault
from piip.errors import DataError

# Headers that are read before training; of larger sets every so many images. A minute on a slow disk.
_MOST = 10_000


def check_sizes(
    images: Sequence[tuple[Path, tuple[int, int], Path]], kind: str, findings: Findings, max_pixels: int
) -> None:
    """Adds images whose size is not the (h, w) that a file says to the findings, as errors. images: path, size, file.

    Images that cannot be read are told when it is their turn: training takes others, evaluation counts them as missed.
    """
    for path, wanted, source in images[:: -(-len(images) // _MOST) or 1]:
        with suppress(DataError):
            size = read_size(path, max_pixels)
            if size != wanted:
                findings.add(kind, size_fault(path, size, wanted, source), "error")
