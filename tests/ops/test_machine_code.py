"""The machine code of the CUDA kernels, counted by benchmarks/machine_code.py, and the counting itself."""

from __future__ import annotations

import math
from typing import Any

import pytest

from benchmarks import machine_code
from benchmarks.sass import Thread, parse


def follow(*lines: str, parameters: bytes = b"", thread: int = 0) -> tuple[list[str], Thread]:
    """What a thread executes of instructions that lie 16 bytes apart."""
    listing = "Function : f\n" + "".join(f"  /*{16 * n:04x}*/  {line} ;\n" for n, line in enumerate(lines))
    code = parse(listing)["f"]
    one = Thread(code, 90, parameters, (64, 1, 1), (5, 1, 1), (2, 0, 0), thread)
    trace = one.run()
    return [i.text for i in code for _ in range(trace.at[i.address])], one


def test_a_thread_goes_round_a_loop_as_often_as_its_parameters_say():
    executed, _ = follow(
        "ULDC UR4, c[0x0][0x210]",
        "IMAD.MOV.U32 R0, RZ, RZ, RZ",
        "LDG.E R2, desc[UR6][R4.64]",
        "IADD3 R0, R0, 0x1, RZ",
        "ISETP.GE.AND P0, PT, R0, UR4, PT",
        "@!P0 BRA 0x20",
        "EXIT",
        parameters=(7).to_bytes(4, "little"),
    )
    assert executed.count("LDG.E R2, desc[UR6][R4.64]") == 7
    assert len(executed) == 2 + 4 * 7 + 1


def test_both_ways_of_a_branch_on_loaded_data_count_and_the_slow_path_of_a_division_does_not():
    executed, _ = follow(
        "LDG.E R2, desc[UR6][R4.64]",
        "ISETP.NE.AND P0, PT, R2, RZ, PT",
        "@!P0 BRA 0x50",
        "MOV R3, 0x1",
        "BRA 0x60",
        "MOV R3, 0x2",
        "FCHK P0, R2, R3",
        "@!P0 BRA 0x90",
        "CALL.REL.NOINC 0xa0",
        "EXIT",
        "RET.REL.NODEC R8 0x0",
    )
    assert executed.count("MOV R3, 0x1") == executed.count("MOV R3, 0x2") == 1
    assert "CALL.REL.NOINC 0xa0" not in executed
    with pytest.raises(ValueError, match="loops that depend on what is loaded"):
        follow("LDG.E R2, desc[UR6][R4.64]", "ISETP.NE.AND P0, PT, R2, RZ, PT", "@P0 BRA 0x0", "EXIT")


@pytest.mark.parametrize(
    ("instruction", "register", "value"),
    [
        ("IADD3 R4, R1, -R2, RZ", "R4", 1000 - 7),
        ("IADD3 R4, P1, R2, -R1, RZ", "R4", (7 - 1000) % 2**32),
        ("IMAD R4, R1, R2, -R2", "R4", 1000 * 7 - 7),
        ("IMAD.HI.U32 R4, R3, R1, RZ", "R4", (2**32 - 5) * 1000 >> 32),
        ("IMAD.WIDE R4, R3, R1, RZ", "R5", 2**32 - 1),  # -5 * 1000
        ("IMAD.WIDE.U32 R4, R3, R1, RZ", "R5", 999),
        ("LEA R4, R2, R1, 0x4", "R4", 1112),
        ("LEA.HI R4, R3, R2, RZ, 0x1", "R4", 8),
        ("SHF.R.S32.HI R4, RZ, 0x1f, R3", "R4", 2**32 - 1),
        ("SHF.R.U32.HI R4, RZ, 0x3, R1", "R4", 125),
        ("SHF.L.U64.HI R4, R3, 0x4, R2", "R4", 7 << 4 | 15),
        ("LOP3.LUT R4, R1, 0x3f, R2, 0x6a, !PT", "R4", (1000 & 0x3F) ^ 7),
        ("SEL R4, R1, R2, !PT", "R4", 7),
        ("IMNMX R4, R3, R1, PT", "R4", 2**32 - 5),  # -5
        ("VIADDMNMX.U32 R4, R3, 0x6, R2, !PT", "R4", 7),
        ("IABS R4, R3", "R4", 5),
        ("HFMA2.MMA R4, -RZ, RZ, 0, 5.9604644775390625e-08", "R4", 1),
        ("S2R R4, SR_CTAID.X", "R4", 2),
        ("ULDC UR4, c[0x0][0xc]", "UR4", 5),  # the grid
        ("FADD R4, R1, R2", "R4", None),
        ("LDS.128 R4, [R1]", "R7", None),
    ],
)
def test_integers_are_computed_as_the_hardware_does(instruction, register, value):
    _, thread = follow("MOV R1, 0x3e8", "MOV R2, 0x7", "MOV R3, 0xfffffffb", "MOV R7, 0x1", instruction, "EXIT")
    assert thread.registers[register] == value


@pytest.mark.parametrize("divisor", [1, 3, 7, 1536, 2**31])
def test_a_division_by_a_parameter_is_followed(divisor):
    # As nvcc writes 1000 / divisor.
    _, thread = follow(
        "ULDC UR4, c[0x0][0x210]", "I2F.U32.RP R0, UR4", "MUFU.RCP R0, R0", "VIADD R2, R0, 0xffffffe",
        "F2I.FTZ.U32.TRUNC.NTZ R3, R2", "IMAD.MOV.U32 R2, RZ, RZ, RZ", "IMAD.MOV R5, RZ, RZ, -R3",
        "IMAD R5, R5, UR4, RZ", "IMAD.HI.U32 R2, R3, R5, R2", "MOV R1, 0x3e8", "IMAD.HI.U32 R3, R2, R1, RZ",
        "IMAD.MOV R4, RZ, RZ, -R3", "IMAD R4, R4, UR4, R1", "ISETP.GE.U32.AND P0, PT, R4, UR4, PT",
        "@P0 IADD3 R4, R4, -UR4, RZ", "@P0 VIADD R3, R3, 0x1", "ISETP.GE.U32.AND P1, PT, R4, UR4, PT",
        "@P1 VIADD R3, R3, 0x1", "EXIT", parameters=divisor.to_bytes(4, "little"),
    )  # fmt: skip
    assert thread.registers["R3"] == 1000 // divisor


@pytest.mark.parametrize(
    ("instruction", "value"),
    [
        ("ISETP.GT.AND P0, PT, R1, R2, PT", False),
        ("ISETP.GT.U32.AND P0, PT, R1, R2, PT", True),
        ("ISETP.EQ.U32.AND P0, PT, R2, R2, P5", None),
        ("ISETP.EQ.U32.OR P0, PT, R2, R2, P5", True),
        ("ISETP.GE.U32.AND.EX P0, PT, R2, R2, PT, !PT", False),  # by the lower halves
        ("PLOP3.LUT P0, PT, P5, PT, PT, 0x80, 0x0", None),
        ("PLOP3.LUT P0, PT, P5, !PT, PT, 0x80, 0x0", False),
    ],
)
def test_predicates_know_what_they_cannot_know(instruction, value):
    _, thread = follow("MOV R1, 0xfffffffb", "MOV R2, 0x7", "LDG.E R3, desc[UR6][R4.64]",
                       "ISETP.NE.AND P5, PT, R3, RZ, PT", instruction, "EXIT")  # fmt: skip
    assert thread.predicates["P0"] is value


@pytest.fixture(scope="session", params=machine_code.ARCHITECTURES, ids=lambda arch: f"emulated-sm_{arch}")
def rows(request, emulations) -> dict[tuple[str, str, str], dict[str, Any]]:
    if not machine_code.available():
        pytest.skip("no nvcc or no cuobjdump")
    found = machine_code.rows_of(emulations, request.param)
    return {(row["shape"], row["direction"], row["design"]): row for row in found}


@pytest.mark.slow
def test_the_forward_spills_nothing_and_the_backward_next_to_nothing(rows):
    def spilled(direction):
        return {row["spilled"] for (_, way, design), row in rows.items() if (way, design) == (direction, "piip")}

    assert spilled("forward") == {0}
    assert max(spilled("backward")) <= 32  # bytes; fewer blocks at once, without any, took 2 to 5 % longer on an H200


@pytest.mark.slow
@pytest.mark.parametrize("direction", ["forward", "backward"])
def test_every_shape_takes_fewer_instructions_than_the_official_design(rows, direction):
    for shape in machine_code.SHAPES:
        ours, classic = rows[shape, direction, "piip"], rows[shape, direction, "classic"]
        assert ours["lane_instructions"] < classic["lane_instructions"], shape


# Lane instructions per sample, bfloat16.
FORWARD_LIMITS = {
    "T<-S 98x98 from 70x70, D 6": 260,
    "S<-T 70x70 from 98x98, D 12": 310,
    "S<-B 70x70 from 42x42, D 12": 310,
    "B<-S 42x42 from 70x70, D 24": 410,
    "L<-B 28x28 from 42x42, D 32": 500,
    "H<-L 32x32 from 64x64, D 40": 630,
    "6B<-H 32x32 from 64x64, D 100": 2050,
    "DINO encoder at 1792 pixels, D 32": 570,
}


@pytest.mark.slow
@pytest.mark.parametrize("shape", FORWARD_LIMITS)
def test_the_forward_keeps_to_its_instructions_a_sample(rows, shape):
    assert rows[shape, "forward", "piip"]["lane_instructions"] <= FORWARD_LIMITS[shape]


@pytest.mark.slow
def test_the_forward_fills_sixty_percent_of_a_multiprocessor(rows):
    found = {shape: rows[shape, "forward", "piip"]["occupancy"] for shape in machine_code.SHAPES}
    assert min(found.values()) >= 0.6, found


@pytest.mark.slow
@pytest.mark.parametrize("shape", FORWARD_LIMITS)
def test_the_backward_keeps_to_170_instructions_a_warp_and_sample(rows, shape):
    # With four channels per lane so many lanes serve a sample, a power of two. What prepares samples, before the first
    # barrier, and what writes gradients of points and weights, behind the last, come extra.
    row, width = rows[shape, "backward", "piip"], machine_code.SHAPES[shape][3]
    _, *between, _ = row["parts"]
    limit = 170 * min(max(2 ** math.ceil(math.log2(width / 4)), 4), 32)
    if row["architecture"] < 90:
        limit += 45 * 4 * width  # additions to a channel of a corner, one per lane, coalesced
    assert sum(between) <= limit
