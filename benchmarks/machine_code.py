"""What the CUDA kernels' machine code says before they meet a GPU: `make cubin`, or

    python -m benchmarks.machine_code [--output FOLDER]

Compiles csrc/cuda/deform_attn.cu and benchmarks/classic.cu, the official design, for sm_80 and sm_90, and writes
machine-code.md and machine-code.json to FOLDER (benchmarks/results). Needs nvcc, cuobjdump (of the CUDA toolkit or of
triton) and g++, and no GPU.

Registers, spills and shared memory are ptxas's. Launches are what our host code asks for, recorded by
tests/ops/emulated. Instructions are counted along the ways of the first lanes of all warps of a block in the
middle of the grid (benchmarks/sass.py), times 32 lanes and all blocks, divided by the samples: "lane instructions a
sample", whose parts end at the block's barriers. The inner loop is the one that executes most loads (of a backward most
reductions): the instructions of its body as it stands, with its copies where it is unrolled, and those of them that
load or reduce. Wavefronts and sectors are counted by the emulation while it runs a small problem of the same kind.

The model's assumptions: an H100, 132 multiprocessors that issue 4 instructions at 1.755 GHz, one wavefront of shared
memory or L1 a cycle each; memory at 3 TB/s; L2 adds 110 billion sectors a second. The last was measured on an H200, on
rows of floats at random places: 98 billion in rows of 6 by two floats at once, 101 of 24 and 119 of 32 by four, and 35
where one float is added at a time, which is 280 billion lanes a second. The time is the longest of these, a lower
bound.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import re
import shutil
import struct
import subprocess
import tempfile
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks.ops import ATTENTION
from benchmarks.sass import Instruction, Thread, Trace, parse
from piip.ops import deform_attn
from tests.ops import emulated
from tests.ops.emulated import Emulated, Launch

ROOT = Path(__file__).parents[1]
ARCHITECTURES = (80, 90)
BATCH = 2
SHAPES = {name: sizes for name, sizes in ATTENTION.items() if not name.startswith("DINO encoder, ")}
SM, ISSUED, CLOCK, ADDED_SECTORS, MEMORY = 132, 4, 1.755e9, 110e9, 3e12
READS = ("LDG",)
ADDS = ("RED", "REDG", "ATOM", "ATOMG")


@dataclass
class Kernel:
    """A compiled kernel. spilled: bytes that are stored; shared: bytes of static shared memory."""

    name: str
    registers: int
    spilled: int
    stack: int
    shared: int
    code: list[Instruction]

    def occupancy(self, architecture: int, threads: int, dynamic: int) -> float:
        """The share of a multiprocessor's 64 warps that registers, shared memory and blocks leave."""
        warps = -(-threads // 32)
        registers = -(-self.registers * 32 // 256) * 256 * warps
        shared = {80: 164, 90: 228}[architecture] * 1024
        each = -(-(self.shared + dynamic + 1024) // 128) * 128
        blocks = min(65536 // registers, shared // each, 64 // warps, 32)
        return blocks * warps / 64


@cache
def tool(name: str) -> str | None:
    """nvcc or cuobjdump: on the path, in the toolkit, or in triton."""
    home = os.environ.get("CUDA_HOME") or os.environ.get("CUDA_PATH") or "/usr/local/cuda"
    folders = [Path(home) / "bin"]
    if (triton := importlib.util.find_spec("triton")) and triton.origin:
        folders.append(Path(triton.origin).parent / "backends" / "nvidia" / "bin")
    return shutil.which(name) or next((str(f / name) for f in folders if (f / name).is_file()), None)


def available() -> bool:
    return tool("nvcc") is not None and tool("cuobjdump") is not None


def compile_kernels(source: Path, architecture: int) -> dict[str, Kernel]:
    """The kernels of a file by their short names, such as "forward<Bfloat, 4>"."""
    nvcc, disassembler = tool("nvcc"), tool("cuobjdump")
    assert nvcc is not None
    assert disassembler is not None
    with tempfile.TemporaryDirectory() as folder:
        cubin = str(Path(folder) / "kernels.cubin")
        flags = [
            "-std=c++17",
            "-O3",
            "-ftz=true",
            "--expt-relaxed-constexpr",
            f"-arch=sm_{architecture}",
            "-Xptxas=-v",
            "-cubin",
        ]
        built = subprocess.run([nvcc, *flags, "-o", cubin, str(source)], capture_output=True, text=True)
        if built.returncode:
            raise RuntimeError(f"nvcc does not compile {source.name} for sm_{architecture}:\n{built.stderr}")
        listing = subprocess.run([disassembler, "-sass", cubin], capture_output=True, text=True, check=True).stdout
    code = parse(listing)
    demangled = subprocess.run(["c++filt", *code], capture_output=True, text=True, check=True).stdout.splitlines()
    kernels = {}
    for mangled, name in zip(code, map(emulated.short_name, demangled)):
        about = built.stderr.partition(f"Function properties for {mangled}\n")[2].partition("Compile time")[0]
        stack, stores, _ = map(int, re.findall(r"(\d+) bytes", about)[:3])
        registers = re.search(r"Used (\d+) registers", about)
        shared = re.search(r"(\d+) bytes smem", about)
        assert registers is not None
        kernels[name] = Kernel(name, int(registers[1]), stores, stack, int(shared[1]) if shared else 0, code[mangled])
    return kernels


def traces(kernel: Kernel, architecture: int, launch: Launch) -> list[Trace]:
    """Of the first lane of each warp of a block in the middle of the grid."""
    x, y, z = (size // 2 for size in launch.grid)
    where = (kernel.code, architecture, launch.parameters, launch.block, launch.grid, (x, y, z))
    return [Thread(*where, first).run() for first in range(0, launch.block[0], 32)]


def call(name: str, dtype: torch.dtype, backward: bool, *, small: bool = False) -> Any:
    """A call of the op for a shape of the table; small: of few queries, all of whose corners lie on the maps."""
    grid, shapes, heads, width, points = SHAPES[name]
    batch = 1 if small else BATCH
    shapes = [(32, 32)] * len(shapes) if small else shapes
    cells = sum(h * w for h, w in shapes)
    queries = 96 if small else cells if grid is None else grid[0] * grid[1]
    levels = len(shapes)
    generator = torch.Generator().manual_seed(0)

    def numbers(*sizes: int, scale: float = 1.0) -> Tensor:
        if small:
            return (torch.rand(sizes, generator=generator) * scale).to(dtype)
        return torch.empty(sizes, dtype=dtype)

    value = numbers(batch, cells, heads, width)
    reference = 0.3 + 0.4 * numbers(1, queries, 1, 2).float()
    offsets = numbers(batch, queries, heads, levels, points, 2, scale=4.0)
    logits = numbers(batch, queries, heads, levels * points)
    leaves = [value, offsets, logits]
    if backward:
        leaves = [t.requires_grad_() for t in leaves]

    def run() -> None:
        out = deform_attn(leaves[0], shapes, reference, leaves[1], leaves[2])
        if backward:
            torch.autograd.grad(out, leaves, torch.ones_like(out))

    return run


def classic_launch(name: str, backward: bool) -> Launch:
    """What benchmarks/classic.cu launches, whose host code is not emulated."""
    grid, shapes, heads, width, points = SHAPES[name]
    cells = sum(h * w for h, w in shapes)
    queries = cells if grid is None else grid[0] * grid[1]
    items = BATCH * queries * heads
    sides = [[s[i] for s in shapes] + [0] * (16 - len(shapes)) for i in (0, 1)]
    starts = [sum(h * w for h, w in shapes[:n]) for n in range(len(shapes))] + [0] * (16 - len(shapes))
    sizes = (BATCH, cells, queries, heads, width, len(shapes), points)
    parameters = struct.pack("8Q7i48i", *[1 << 20] * 8, *sizes, *sides[0], *sides[1], *starts)
    if backward:
        return Launch("backward", (items, 1, 1), (width, 1, 1), 4 * width, parameters + bytes(4))
    return Launch("forward", (-(-items * width // 1024), 1, 1), (1024, 1, 1), 0, parameters + bytes(4))


def measure(
    shape: str, kernels: dict[str, Kernel], architecture: int, launches: list[Launch], backward: bool
) -> dict[str, Any]:
    """The kernels of a call: of several the one with most instructions stands in the row, their sums are added."""
    grid, shapes, heads, _, points = SHAPES[shape]
    queries = sum(h * w for h, w in shapes) if grid is None else grid[0] * grid[1]
    samples = BATCH * queries * heads * len(shapes) * points
    rows = []
    for launch in launches:
        kernel = kernels[launch.kernel]
        paths = traces(kernel, architecture, launch)
        lanes = 32 * launch.grid[0] * launch.grid[1] * launch.grid[2] / samples
        longest = max(paths, key=lambda path: path.total)
        parts = [
            sum(sum(path.parts[n].values()) for path in paths if n < len(path.parts)) * lanes
            for n in range(len(longest.parts))
        ]
        rows.append(
            {
                "kernel": launch.kernel,
                "registers": kernel.registers,
                "spilled": kernel.spilled,
                "occupancy": kernel.occupancy(architecture, launch.block[0], launch.shared_bytes),
                "shared_bytes": launch.shared_bytes + kernel.shared,
                "inner_loop": longest.inner_loop(kernel.code, ADDS if backward else READS),
                "parts": parts if len(parts) < 8 else [parts[0], sum(parts[1:])],
                "lane_instructions": sum(parts),
            }
        )
    row = max(rows, key=lambda r: r["lane_instructions"])
    total = sum(r["lane_instructions"] for r in rows)
    issue = total * samples / 32 / (SM * ISSUED * CLOCK)
    return row | {"lane_instructions": total, "samples": samples, "issue_us": issue * 1e6}


def count_accesses(shape: str, emulation: Emulated, dtype: torch.dtype) -> dict[str, float]:
    """Of a forward and a backward, by sample: wavefronts, and sectors of reductions by corner."""
    _, shapes, heads, _, points = SHAPES[shape]
    samples = 96 * heads * len(shapes) * points
    with emulated.installed(emulation):
        emulation.reset_counts()
        call(shape, dtype, False, small=True)()
        forward = [(s, c) for sites in emulation.counts().values() for s, c in sites.items()]
        emulation.reset_counts()
        call(shape, dtype, True, small=True)()
        both = [(s, c) for sites in emulation.counts().values() for s, c in sites.items()]
    return {
        "wavefronts": sum(c.wavefronts for _, c in forward) / samples,
        "worst_conflict": max((c.worst for _, c in both), default=0),
        "reductions_per_corner": sum(c.sectors for s, c in both if s.kind == "add_global") / samples / 4,
    }


def rows_of(
    emulations: dict[int, Emulated], architecture: int, dtype: torch.dtype = torch.bfloat16
) -> list[dict[str, Any]]:
    """A row for each shape, direction and design."""
    ours = compile_kernels(ROOT / "csrc" / "cuda" / "deform_attn.cu", architecture)
    classic = compile_kernels(ROOT / "benchmarks" / "classic.cu", architecture)
    emulation, rows = emulations[10 * architecture], []
    for shape, (grid, shapes, heads, width, points) in SHAPES.items():
        counts = count_accesses(shape, emulation, dtype)
        queries = sum(h * w for h, w in shapes) if grid is None else grid[0] * grid[1]
        numbers = (sum(h * w for h, w in shapes) + queries) * heads * width + 3 * queries * heads * len(shapes) * points
        memory = BATCH * numbers * dtype.itemsize / MEMORY * 1e6
        for backward in (False, True):
            with emulated.installed(emulation):
                launches = emulation.launches_of(call(shape, dtype, backward))
            launches = launches[1:] if backward else launches  # a backward has its forward before it
            row = measure(shape, ours, architecture, launches, backward) | counts
            if backward:
                sectors = row["reductions_per_corner"] * 4 * row["samples"]
                row["reductions_us"] = sectors / ADDED_SECTORS * 1e6
                row["modelled_us"] = max(row["issue_us"], row["reductions_us"])
            else:
                row["shared_us"] = row["wavefronts"] * row["samples"] / (SM * CLOCK) * 1e6
                row["memory_us"] = memory
                row["modelled_us"] = max(row["issue_us"], row["shared_us"], memory)
            old = measure(shape, classic, architecture, [classic_launch(shape, backward)], backward)
            about = {"shape": shape, "architecture": architecture, "direction": "backward" if backward else "forward"}
            rows += [about | {"design": "piip"} | row, about | {"design": "classic"} | old]
    return rows


def table(rows: list[dict[str, Any]]) -> list[str]:
    head = "| shape | design | kernel | registers | occupancy | inner loop (memory) | lane instr. a sample | by part |"
    lines = []
    for architecture in sorted({row["architecture"] for row in rows}):
        for direction in ("forward", "backward"):
            more = (
                "wavefronts a sample | µs: shared + L1 | HBM"
                if direction == "forward"
                else "L2 sectors a corner | µs: L2"
            )
            lines += ["", f"## sm_{architecture}, {direction}", "", f"{head} µs: issue | {more} | µs modelled |"]
            lines.append("|---" * (lines[-1].count("|") - 1) + "|")
            for row in rows:
                if (row["architecture"], row["direction"]) != (architecture, direction):
                    continue
                keys = (
                    ("wavefronts", "shared_us", "memory_us")
                    if direction == "forward"
                    else ("reductions_per_corner", "reductions_us")
                )
                cells = [row["shape"], row["design"], row["kernel"], str(row["registers"])]
                cells += [
                    f"{row['occupancy']:.0%}",
                    "{} ({})".format(*row["inner_loop"]),
                    f"{row['lane_instructions']:,.0f}",
                ]
                cells += [" + ".join(f"{part:,.0f}" for part in row["parts"]), f"{row['issue_us']:,.1f}"]
                cells += [f"{row[key]:,.2f}" if key in row else "" for key in (*keys, "modelled_us")]
                lines.append(f"| {' | '.join(cells)} |")
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=ROOT / "benchmarks" / "results")
    folder = parser.parse_args().output
    if not available():
        raise SystemExit(
            "machine_code: nvcc or cuobjdump was not found; set CUDA_HOME, or install triton for cuobjdump"
        )
    emulations = emulated.build()
    rows = [row for architecture in ARCHITECTURES for row in rows_of(emulations, architecture)]
    about = re.search(
        r"release ([\d.]+)", subprocess.run([tool("nvcc"), "--version"], capture_output=True, text=True).stdout
    )
    lines = [
        "# Machine code of deformable attention on CUDA",
        "",
        f"bfloat16, batch {BATCH}; nvcc {about[1] if about else '?'}. ",
    ]
    lines += ["How everything is counted and modelled: benchmarks/machine_code.py.", *table(rows)]
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "machine-code.md").write_text("\n".join(lines) + "\n")
    (folder / "machine-code.json").write_text(json.dumps(rows, indent=1) + "\n")
    print("\n".join(lines))


if __name__ == "__main__":
    main()
