"""Runs the CPU kernels under AddressSanitizer and UndefinedBehaviorSanitizer: the op suite and generated problems.

    python tests/ops/sanitize.py [--cases 20000] [--quick]

Builds an instrumented extension in a temporary folder and repeats everything for every instruction set of the machine.
--quick takes the best one only, and the generated problems only. Linux and GCC. Any report of a sanitizer ends the run
with an error.
"""

from __future__ import annotations

import argparse
import importlib.util
import os
import random
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
RUNTIMES = ("libasan.so", "libubsan.so", "libstdc++.so.6")


def instruction_sets() -> list[str]:
    """Those of this machine, by the flags that csrc/cpu/dispatch.cpp asks for; the best one last."""
    words = set(Path("/proc/cpuinfo").read_text().split())
    avx2 = {"avx2", "fma", "f16c"}
    needed = {"portable": set(), "avx2": avx2, "avx512": avx2 | {"avx512f", "avx512bw", "avx512dq", "avx512vl"}}
    return [name for name, flags in needed.items() if flags <= words]


def build(folder: Path, names: list[str]) -> Path:
    """The instrumented piip._C."""
    environment = os.environ | {"PIIP_CUDA": "0", "PIIP_SANITIZE": "address,undefined", "CXX": compiler()}
    environment |= {"PIIP_CPU_BUILD": " ".join(names), "PYTHONWARNINGS": "ignore"}
    command = ["setup.py", "-q", "build_ext", "--build-lib", str(folder / "lib"), "--build-temp", str(folder / "temp")]
    subprocess.run([sys.executable, *command], cwd=ROOT, env=environment, check=True, stdout=subprocess.DEVNULL)
    return next((folder / "lib" / "piip").glob("_C*"))


def compiler() -> str:
    found = os.environ.get("CXX", "g++").split()[0]
    if shutil.which(found) is None:
        sys.exit(f"sanitize: {found} was not found; install GCC's g++ or name it in CXX")
    version = subprocess.run([found, "--version"], capture_output=True, text=True, check=True).stdout
    if "Free Software Foundation" not in version:
        sys.exit(f"sanitize: GCC is needed, {found} is {version.splitlines()[0]}; name g++ in CXX")
    return found


def runtimes() -> str:
    """What Python, which is not instrumented, has to load first."""
    paths = []
    for name in RUNTIMES:
        # GCC answers with the bare name where it has no such file.
        command = [compiler(), f"-print-file-name={name}"]
        path = Path(subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip())
        if not path.is_absolute():
            sys.exit(f"sanitize: GCC has no {name}; install its sanitizers (libasan and libubsan of the same version)")
        paths.append(str(path.resolve()))
    return " ".join(paths)


def use_extension(path: Path) -> None:
    """Puts the instrumented module where piip.ops looks for piip._C."""
    import torch  # noqa: F401  before the extension, as piip.ops does

    spec = importlib.util.spec_from_file_location("piip._C", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["piip._C"] = module
    spec.loader.exec_module(module)


def generated_attention(generator: random.Random) -> None:
    import torch

    from piip.ops import deform_attn

    pick = generator.choice
    shapes = [(generator.randint(1, 7), generator.randint(1, 7)) for _ in range(generator.randint(1, 4))]
    batch, queries, heads = generator.randint(0, 3), generator.randint(0, 70), generator.randint(1, 5)
    width, points = (
        pick([1, 2, 3, 5, 6, 7, 8, 9, 12, 15, 16, 17, 24, 31, 33, 40, 64, 100, 129]),
        generator.randint(1, 5),
    )
    dtype = pick([torch.float32, torch.float64, torch.bfloat16, torch.float16])
    point_dtype = pick([dtype, torch.float32])
    value = torch.randn(batch, sum(h * w for h, w in shapes), heads, width).to(dtype).requires_grad_()
    reference = torch.rand(pick([1, batch]) if batch else 1, queries, pick([1, len(shapes)]), pick([2, 4]))
    offsets = torch.randn(batch, queries, heads, len(shapes), points, 2) * pick([0.0, 1.0, 5.0, 1e3, 1e20])
    if offsets.numel() and generator.random() < 0.3:
        offsets.view(-1)[:: generator.randint(1, 9)] = pick(
            [float("nan"), float("inf"), -float("inf"), -1.0, -0.5, 0.5]
        )
    logits = torch.randn(batch, queries, heads, len(shapes) * points) * pick([1.0, 100.0])
    offsets, logits = (t.to(point_dtype).requires_grad_() for t in (offsets, logits))
    out = deform_attn(value, shapes, reference, offsets, logits)
    out.backward(torch.randn_like(out))
    assert value.grad is not None
    assert value.grad.shape == value.shape


def generated_pyramid(generator: random.Random) -> None:
    import torch

    from piip.ops import pyramid_resize

    pick = generator.choice
    batch, height, width = generator.randint(0, 2), generator.randint(1, 80), generator.randint(1, 80)
    settings = {"mode": pick(["bilinear", "bicubic"]), "antialias": pick([True, False])}
    sizes = [(generator.randint(1, 90), generator.randint(1, 90)) for _ in range(generator.randint(1, 3))]
    if batch and generator.random() < 0.5:
        settings["valid_sizes"] = [(generator.randint(1, height), generator.randint(1, width)) for _ in range(batch)]
    if generator.random() < 0.5:
        settings |= {"mean": [1.0, 2.0, 3.0], "std": [2.0, 3.0, 4.0]}
    settings["dtype"] = pick([torch.float32, torch.float64, torch.bfloat16, torch.float16])
    if generator.random() < 0.5:
        # Three rows of channels last cannot be told from three channels.
        layouts = [(batch, 3, height, width)] + ([(batch, height, width, 3)] if height != 3 else [])
        shape = pick(layouts)
        pyramid_resize(torch.randint(0, 256, shape, dtype=torch.uint8), sizes, **settings)
        return
    dtype = pick([torch.float32, torch.float64, torch.bfloat16, torch.float16])
    images = torch.randn(batch, 3, height, width).to(dtype).requires_grad_()
    sum(level.float().sum() for level in pyramid_resize(images, sizes, **settings)).backward()
    assert images.grad is not None


def child(extension: Path, cases: int, suite: bool) -> int:
    use_extension(extension)
    import pytest
    import torch

    from piip.ops import _extension

    assert _extension._C is not None
    name = _extension._C.cpu_instruction_set()
    torch.set_num_threads(2)
    # The tests that start processes of their own would run the ordinary extension; compiled code starts compilers;
    # emulated kernels are not instrumented.
    chosen = "not instruction_set and not compiled and not peak_memory and not importing and not emulated"
    tests = ROOT / "tests" / "ops"
    # A sanitizer's report goes to the real stderr, which must not be captured.
    arguments = ["-q", "--capture=sys", "-p", "no:cacheprovider", "-k", chosen]
    arguments += ["--ignore", str(tests / "test_onnx.py"), str(tests)]
    if suite and pytest.main(arguments):
        return 1
    generator = random.Random(0)
    torch.manual_seed(0)
    for i in range(cases):
        (generated_pyramid if i % 4 == 0 else generated_attention)(generator)
    print(f"{name}: {cases} generated problems without a report")
    return 0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", type=int, default=20000)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--child", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.child:
        sys.exit(child(arguments.child, arguments.cases, not arguments.quick))
    names = instruction_sets()[-1:] if arguments.quick else instruction_sets()
    preload = runtimes()
    with tempfile.TemporaryDirectory() as folder:
        extension = build(Path(folder), names)
        for name in names:
            environment = os.environ | {
                "LD_PRELOAD": preload,
                "ASAN_OPTIONS": "detect_leaks=0:halt_on_error=1",
                "UBSAN_OPTIONS": "print_stacktrace=1:halt_on_error=1",
                "PIIP_CPU": name,
                "PYTHONPATH": str(ROOT),
            }
            command = [sys.executable, __file__, "--child", str(extension), "--cases", str(arguments.cases)]
            command += ["--quick"] if arguments.quick else []
            started = time.monotonic()
            if subprocess.run(command, cwd=ROOT, env=environment).returncode:
                sys.exit(f"sanitize: {name} failed, see above")
            print(f"{name}: {time.monotonic() - started:.0f} s", flush=True)


if __name__ == "__main__":
    main()
