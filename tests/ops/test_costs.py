"""What the ops may cost beside their results: memory, and the time to import them."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from piip.ops.deform_attn import _fixed_point_unit

PEAK = """
import sys, torch
from piip.ops import deform_attn

def status(key):
    lines = open("/proc/self/status").read().splitlines()
    return int(next(line for line in lines if line.startswith(key)).split()[1]) * 1024

def peak_of(call):
    open("/proc/self/clear_refs", "w").write("5")
    before = status("VmRSS")
    kept = call()
    return status("VmHWM") - before

def problem(batch, side, queries, heads, width):
    tensors = [torch.randn(batch, side * side, heads, width), torch.rand(1, queries, 1, 2)]
    tensors += [torch.randn(batch, queries, heads, 1, 4, 2), torch.randn(batch, queries, heads, 4)]
    return [t.requires_grad_() for t in tensors]

torch.set_num_threads(2)
warm = problem(1, 8, 8, 2, 8)
out = deform_attn(warm[0], [(8, 8)], *warm[1:])
torch.autograd.grad(out, (warm[0], *warm[2:]), torch.ones_like(out))
batch, side, queries, heads, width = map(int, sys.argv[1:])
value, ref, offsets, logits = problem(batch, side, queries, heads, width)
outs = []
forward = peak_of(lambda: outs.append(deform_attn(value, [(side, side)], ref, offsets, logits)))
grad = torch.ones_like(outs[0])
backward = peak_of(lambda: torch.autograd.grad(outs[0], (value, offsets, logits), grad))
size = lambda *tensors: sum(t.numel() * 4 for t in tensors)
print(forward - size(outs[0]), backward - size(value, offsets, logits))
"""


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="needs Linux")
@pytest.mark.parametrize(
    ("batch", "side", "queries", "width"),
    [
        (4, 70, 98 * 98, 6),  # T<-S of PIIP-TSB, where locations alone would be 19 MiB
        (1, 64, 32 * 32, 100),  # 6B<-H of PIIP-LH6B
        (1, 200, 2000, 32),  # large planes
    ],
)
def test_peak_memory_is_the_results_and_a_few_planes_per_thread(batch, side, queries, width):
    # A plane is one head of one image in float32 with a border; a thread of the backward holds values and gradients.
    plane = (side + 3) * (side + 2) * width * 4
    problem = [str(number) for number in (batch, side, queries, 16, width)]
    run = subprocess.run([sys.executable, "-c", PEAK, *problem], capture_output=True, text=True, check=True)
    forward, backward = (int(number) for number in run.stdout.split())
    slack = 4 * 2**20
    assert forward <= 2 * plane + slack
    assert backward <= 2 * 2 * plane + slack


def test_importing_the_ops_adds_at_most_50_ms_of_processor_time_to_torch():
    script = "import time, torch; t = time.process_time(); import piip.ops; print(time.process_time() - t)"
    times = [
        float(subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout)
        for _ in range(3)
    ]
    assert min(times) <= 0.05


def test_fixed_point_sums_cannot_overflow_whatever_the_weights():
    grad, weights = torch.full((4, 8), 3e4), torch.full((4, 2), 1e6)
    samples = 1000
    for given in (None, weights):
        unit = _fixed_point_unit(grad, samples, given).item()
        largest = 3e4 * (1 if given is None else 1e6)
        assert samples * largest * unit < 2**63
        assert samples * largest * unit > 2**58, "bits are wasted"
