"""What the CUDA kernels ask of memory, counted by the emulation: bank conflicts, sectors, reductions."""

from __future__ import annotations

import math
from dataclasses import dataclass

import pytest
import torch

from piip.ops import deform_attn, pyramid_resize
from tests.ops import emulated
from tests.ops.cases import Case, make_case
from tests.ops.emulated import Count, Emulated, Site

SHARED = ("read_shared", "write_shared")
HEADS = 16
# Head width and levels of the shapes of benchmarks/ops.py.
PROBLEMS = [(6, 1), (12, 1), (24, 1), (32, 1), (40, 1), (100, 1), (32, 4)]


def sectors_of_rows(size: int) -> float:
    """Sectors of 32 bytes that a row of so many bytes touches, averaged over rows that follow each other."""
    starts = [n * size % 32 for n in range(32)]
    return sum(math.ceil((start + size) / 32) for start in starts) / 32


@dataclass
class Counted:
    """A forward and a backward by site."""

    width: int
    dtype: torch.dtype
    deterministic: bool
    forward: dict[Site, Count]
    backward: dict[Site, Count]
    samples: int
    races: set[tuple[str, int, int]]


def inside(width: int, levels: int, dtype: torch.dtype) -> Case:
    """A problem whose samples have all four corners on the map."""
    heads = HEADS if levels == 1 else 8
    case = make_case(shapes=[(24, 24)] * levels, batch=1, queries=40, heads=heads, width=width, points=4, dtype=dtype)
    generator = torch.Generator().manual_seed(3)
    case.reference[...] = 0.3 + 0.4 * torch.rand(case.reference.shape, generator=generator)
    case.offsets[...] = 6 * torch.rand(case.offsets.shape, generator=generator) - 3
    return case


@pytest.fixture(scope="module", params=emulated.ARCHITECTURES, ids=lambda arch: f"emulated-{arch}")
def emulation(request, emulations) -> Emulated:
    return emulations[request.param]


@pytest.fixture(
    scope="module",
    params=[(torch.bfloat16, False), (torch.bfloat16, True), (torch.float32, False)],
    ids=["bfloat16", "bfloat16-deterministic", "float32"],
)
def mode(request) -> tuple[torch.dtype, bool]:
    return request.param


@pytest.fixture(scope="module", params=PROBLEMS, ids=lambda problem: f"D{problem[0]}-{problem[1]} levels")
def counted(request, emulation, mode) -> Counted:
    width, levels = request.param
    dtype, deterministic = mode
    case = inside(width, levels, dtype).leaves()
    torch.use_deterministic_algorithms(deterministic)
    try:
        with emulated.installed(emulation):
            emulation.reset_counts()
            out = case.run(deform_attn)
            forward, races = emulation.counts(), emulation.races()
            emulation.reset_counts()
            out.backward(torch.ones_like(out))
            backward, races = emulation.counts(), races | emulation.races()
    finally:
        torch.use_deterministic_algorithms(False)
    forward, backward = (
        {s: c for sites in counts.values() for s, c in sites.items()} for counts in (forward, backward)
    )
    return Counted(width, dtype, deterministic, forward, backward, case.logits.numel(), races)


def test_threads_meet_before_they_share(counted):
    assert not counted.races


def test_no_access_to_shared_memory_meets_more_than_a_twofold_bank_conflict(counted):
    for sites in (counted.forward, counted.backward):
        worst = {site: count.worst for site, count in sites.items() if site.kind in SHARED and count.worst > 2}
        assert not worst


def test_a_corner_takes_hardly_more_reductions_than_it_has_sectors(counted):
    found = sum(c.sectors for s, c in counted.backward.items() if s.kind == "add_global") / counted.samples / 4
    assert found > 0
    assert found <= 1.2 * sectors_of_rows((8 if counted.deterministic else 4) * counted.width)


def test_a_gather_reads_the_sectors_of_its_rows_once(counted):
    width, size = counted.width, counted.dtype.itemsize
    vector = max(v for v in (1, 2, 4, 8) if width % v == 0 and v * size <= 16) * size
    reads = [c.sectors for s, c in counted.forward.items() if s.kind == "read_global" and s.bytes == vector]
    # Points or weights may be read in vectors of this size, less than one sector per sample.
    assert sum(reads) / counted.samples <= 1.1 * 4 * sectors_of_rows(width * size) + 1


@pytest.fixture(scope="module")
def copied_and_resampled(emulation) -> tuple[dict[Site, Count], set[tuple[str, int, int]]]:
    """A level of the image's own size and two that take more than two taps an axis."""
    images = torch.randint(0, 256, (1, 96, 128, 3), dtype=torch.uint8)
    with emulated.installed(emulation):
        emulation.reset_counts()
        pyramid_resize(images, scale_factors=[1.0, 0.7, 0.31], mode="bicubic", antialias=True)
        counts, races = emulation.counts(), emulation.races()
    return {site: count for sites in counts.values() for site, count in sites.items()}, races


def test_resampling_shares_rows_without_races_or_bank_conflicts(copied_and_resampled):
    counts, races = copied_and_resampled
    assert not races
    assert {count.worst for site, count in counts.items() if site.kind in SHARED} == {1}


def test_a_level_of_the_images_own_size_is_copied_in_vectors(copied_and_resampled):
    counts, _ = copied_and_resampled
    pixels = 3 * 96 * 128
    for kind, size in (("read_global", 4), ("write_global", 16)):  # of bytes and of floats
        (found,) = [c for s, c in counts.items() if (s.kind, s.bytes) == (kind, size) and 4 * c.lanes == pixels]
        assert found.sectors == found.ideal_sectors if kind == "write_global" else found.instructions == pixels / 128
