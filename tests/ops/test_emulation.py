"""The emulation itself: what warps exchange, how blocks are counted, what it refuses, and its counts of accesses."""

from __future__ import annotations

import ctypes
import struct

import pytest
import torch

from tests.ops import emulated
from tests.ops.emulated import KINDS, Count, Emulated


@pytest.fixture(params=emulated.ARCHITECTURES, ids=lambda architecture: f"emulated-{architecture}")
def emulation(request, emulations) -> Emulated:
    return emulations[request.param]


def call(emulation: Emulated, name: str, *arguments) -> str:
    """What went wrong."""
    probe = getattr(emulation.library, f"emulated_{name}")
    probe.restype = ctypes.c_char_p
    return probe(*(ctypes.c_void_p(a.data_ptr()) if isinstance(a, torch.Tensor) else a for a in arguments)).decode()


def touch(emulation: Emulated, kind: str, type: str, offsets: list[int]) -> Count:
    """What is counted where a warp's lanes access these offsets, in bytes from a multiple of 128."""
    memory, offsets = torch.zeros(1 << 16, dtype=torch.uint8), [*offsets, *[-1] * (32 - len(offsets))]
    start = -memory.data_ptr() % 128
    emulation.reset_counts()
    failure = call(emulation, "touch", memory[start:], torch.tensor(offsets, dtype=torch.int32), KINDS.index(kind),
                   type.encode())  # fmt: skip
    assert not failure
    ((site, count),) = [item for sites in emulation.counts().values() for item in sites.items()]
    assert site.kind == kind
    return count


@pytest.mark.parametrize("width", [2, 8, 32])
def test_warps_exchange_as_cuda_defines_it(emulation, width):
    out = torch.zeros(7, 32, dtype=torch.int32)
    assert not call(emulation, "call_warp", out, width)
    lanes = range(32)
    part = [lane // width * width for lane in lanes]
    assert out[0].tolist() == [100 + part[i] + 3 % width for i in lanes]
    assert out[1].tolist() == [100 + (i ^ width // 2) for i in lanes]
    assert out[2].tolist() == [100 + (i + 2 if i + 2 < part[i] + width else i) for i in lanes]
    assert out[3].tolist() == [100 + (i - 1 if i > part[i] else i) for i in lanes]
    votes = sum(1 << i for i in lanes if i % 3 == 0)
    assert [vote % (1 << 32) for vote in out[4].tolist()] == [votes] * 32
    assert out[5].tolist() == [1] * 32
    assert out[6].tolist() == [sum(range(100, 116))] * 16 + [116] * 16


def test_blocks_and_threads_have_three_dimensions_and_both_kinds_of_shared_memory(emulation):
    grid, block = torch.tensor([3, 2, 2], dtype=torch.int32), torch.tensor([8, 4, 2], dtype=torch.int32)
    out = torch.zeros(12 * 64, dtype=torch.int32)
    assert not call(emulation, "number_threads", out, grid, block, 64 * 4, False)
    assert out.tolist() == list(range(12 * 64))


def test_more_than_48_kib_of_shared_memory_must_be_asked_for_and_end_somewhere(emulation):
    sizes = torch.ones(3, dtype=torch.int32)
    out = torch.zeros(1, dtype=torch.int32)
    most = {800: 99, 900: 227}[emulation.architecture] * 1024
    assert call(emulation, "number_threads", out, sizes, sizes, 49 * 1024, False) == "invalid argument"
    assert call(emulation, "number_threads", out, sizes, sizes, most + 16, True) == "invalid argument"
    assert not call(emulation, "number_threads", out, sizes, sizes, most, True)


@pytest.mark.parametrize(
    ("how", "message"),
    [
        (0, "some lanes of a warp meet and others do not"),
        (1, "lanes of a warp meet in different calls"),
        (2, "a shuffle reads a lane that takes no part in it"),
        (3, "a lane calls with a mask that it is not in"),
        (4, "a block wrote behind its shared memory"),
        (5, "a reduction at an address it cannot have"),
    ],
)
def test_what_a_gpu_would_not_survive_is_an_error(emulation, how, message):
    assert call(emulation, "go_wrong", how) == f"emulated CUDA: {message}"
    assert not call(emulation, "call_warp", torch.zeros(7, 32, dtype=torch.int32), 4)  # and the next launch runs


def test_emulated_vector_reductions_exist_from_architecture_900_on_only(emulations):
    offsets = [16 * lane for lane in range(32)]
    assert touch(emulations[900], "add_global", "float4", offsets).sectors == 16
    emulations[800].reset_counts()
    memory, lanes = torch.zeros(1024, dtype=torch.uint8), torch.tensor(offsets, dtype=torch.int32)
    assert not call(emulations[800], "touch", memory, lanes, KINDS.index("add_global"), b"float4")
    assert emulations[800].counts() == {}  # the probe compiles to nothing there


@pytest.mark.parametrize(
    ("type", "stride", "wavefronts", "worst"),
    [
        ("int", 4, 1, 1),  # neighbours
        ("int", 0, 1, 1),  # one word for all
        ("int", 8, 2, 2),
        ("int", 20, 1, 1),  # an odd number of words
        ("int", 128, 32, 32),  # one bank
        ("ushort", 2, 1, 1),  # halves of a word are one word
        ("float2", 8, 2, 1),  # in halves of the warp
        ("float2", 16, 4, 2),
        ("float4", 16, 4, 1),  # in quarters
        ("float4", 32, 8, 2),
        ("float4", 48, 4, 1),
        ("float4", 128, 32, 8),
        ("float4", 0, 4, 1),
        ("32 bytes", 32, 16, 2),  # two instructions, each with a stride of 32
    ],
)
@pytest.mark.parametrize("kind", ["read_shared", "write_shared"])
def test_bank_conflicts_are_counted_by_the_rule_of_32_banks(emulation, kind, type, stride, wavefronts, worst):
    count = touch(emulation, kind, type, [stride * lane for lane in range(32)])
    assert (count.wavefronts, count.worst) == (wavefronts, worst)
    parts = {"ushort": 1, "int": 1, "float2": 2, "float4": 4, "32 bytes": 8}[type]
    assert count.ideal_wavefronts == parts
    assert (count.instructions, count.lanes) == ((2, 64) if type == "32 bytes" else (1, 32))


@pytest.mark.parametrize(
    ("type", "offsets", "sectors", "ideal"),
    [
        ("float", [4 * i for i in range(32)], 4, 4),
        ("float", [4 + 4 * i for i in range(32)], 5, 4),  # not from a sector's start
        ("float", [0] * 32, 1, 1),
        ("float", [64 * i for i in range(32)], 32, 4),
        ("float4", [16 * i for i in range(32)], 16, 16),
        ("float4", [16 * i for i in range(6)], 3, 3),  # a row of 24 channels; the other lanes are idle
        ("ushort", [2 * i for i in range(32)], 2, 2),
        ("32 bytes", [32 * i for i in range(4)], 8, 4),  # each instruction takes half of a sector
    ],
)
@pytest.mark.parametrize("kind", ["read_global", "write_global"])
def test_sectors_of_global_memory_are_counted(emulation, kind, type, offsets, sectors, ideal):
    count = touch(emulation, kind, type, offsets)
    assert (count.sectors, count.ideal_sectors) == (sectors, ideal)


def test_reductions_in_global_memory_take_an_operation_a_sector_and_more_on_one_word(emulation):
    def sectors(type, offsets):
        count = touch(emulation, "add_global", type, offsets)
        return count.sectors, count.ideal_sectors

    assert sectors("float", [4 * i for i in range(24)]) == (3, 3)
    assert sectors("float", [16 * i for i in range(6)]) == (3, 1)
    assert sectors("float", [0] * 32) == (32, 4)
    assert sectors("float", [4 * (i % 8) for i in range(16)]) == (2, 2)
    assert sectors("ulonglong", [8 * i for i in range(8)]) == (2, 2)
    if emulation.architecture >= 900:
        assert sectors("float4", [16 * i for i in range(6)]) == (3, 3)


def test_counts_know_kernels_by_their_names(emulation):
    touch(emulation, "read_shared", "int", [0])
    emulation.reset_counts()
    out = torch.zeros(64, dtype=torch.int32)
    sizes = torch.tensor([1, 1, 1, 64, 1, 1], dtype=torch.int32)
    assert not call(emulation, "number_threads", out, sizes, sizes[3:], 64 * 4, False)
    counts = emulation.counts()
    assert list(counts) == ["number_threads"]
    assert {site.kind: count.instructions for site, count in counts["number_threads"].items()} == {
        "write_shared": 2,
        "read_shared": 2,
    }


def test_sums_depend_on_the_order_of_blocks_where_a_kernel_lets_them(emulation):
    out = torch.zeros(1)
    sums = []
    for reversed in (False, True):
        emulation.reverse(reversed)
        assert not call(emulation, "sum_blocks", out.zero_())
        sums.append(out.item())
    emulation.reverse(False)
    assert sums == [0.0, 1.0]  # 1 + 1e8 - 1e8, from either end


@pytest.mark.parametrize(
    ("distance", "how", "races"), [(1, 0, 1), (1, 1, 0), (1, 2, 0), (32, 0, 1), (32, 1, 1), (32, 2, 0), (0, 0, 0)]
)
def test_threads_that_share_memory_without_having_met_race(emulation, distance, how, races):
    emulation.reset_counts()
    assert not call(emulation, "pass_on", torch.zeros(64, dtype=torch.int32), distance, how)
    emulation.counts()
    assert len({(min(a, b), max(a, b)) for _, a, b in emulation.races()}) == races


def test_launches_are_written_down_with_their_parameters(emulation):
    out = torch.zeros(7, 32, dtype=torch.int32)
    (launch,) = emulation.launches_of(lambda: call(emulation, "call_warp", out, 8))
    assert (launch.kernel, launch.grid, launch.block, launch.shared_bytes) == ("call_warp", (1, 1, 1), (32, 1, 1), 0)
    assert struct.unpack("Pi", launch.parameters) == (out.data_ptr(), 8)
    assert not out.any()
