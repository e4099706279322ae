"""setup.py decides by what the compilers of a machine can do. They are scripts here, so that a build takes no time."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
# Writes the file after -o, as every compiler does; of nvcc also the questions about itself.
COMPILER = """#!{python}
import sys
if "{name}" == "nvcc":
    if "--list-gpu-code" in sys.argv:
        sys.exit(print("{known}"))
    if "--version" in sys.argv:
        sys.exit(print("Cuda compilation tools, release 12.9, V12.9.1"))
    if "{refuses}" and any(word.endswith("probe.cu") for word in sys.argv):
        sys.exit("host_config.h: error: unsupported GNU version!\\n  gcc versions later than 12 are not supported")
if "-o" in sys.argv:
    open(sys.argv[sys.argv.index("-o") + 1], "w").close()
if "-MF" in sys.argv:
    open(sys.argv[sys.argv.index("-MF") + 1], "w").write("x.o:")
"""
KNOWN = "sm_50 sm_70 sm_75 sm_80 sm_86 sm_90 sm_100 sm_120"


@pytest.fixture
def build(tmp_path):
    """Runs the build with PIIP_CUDA and an nvcc that refuses the host compiler or not; gives build.ninja too."""

    def run(choice: str, refuses: bool = False, known: str = KNOWN, **variables: str):
        compilers = {"c++": tmp_path / "bin" / "c++", "nvcc": tmp_path / "cuda" / "bin" / "nvcc"}
        for name, path in compilers.items():
            path.parent.mkdir(parents=True, exist_ok=True)
            text = COMPILER.format(python=sys.executable, name=name, known=known, refuses="yes" * refuses)
            path.write_text(text)
            path.chmod(0o755)
        environment = {key: value for key, value in os.environ.items() if key not in ("CXX", "TORCH_CUDA_ARCH_LIST")}
        environment |= {"PIIP_CUDA": choice, "CUDA_HOME": str(tmp_path / "cuda"), "CXX": str(compilers["c++"])}
        command = ["setup.py", "-q", "build_ext", "--build-lib", str(tmp_path / "lib"), "--build-temp"]
        done = subprocess.run(
            [sys.executable, *command, str(tmp_path / "temp")],
            cwd=ROOT,
            env=environment | variables,
            capture_output=True,
            text=True,
        )
        ninja = tmp_path / "temp" / "build.ninja"
        return done, ninja.read_text() if ninja.exists() else ""

    return run


def test_by_default_an_nvcc_that_refuses_the_compiler_leaves_a_cpu_build_and_one_line_that_says_why(build):
    done, ninja = build("auto", refuses=True)
    assert done.returncode == 0, done.stderr
    (line,) = (line for line in done.stderr.splitlines() if line.startswith("piip: "))
    assert "building for the CPU only" in line
    assert "c++; name another compiler in CXX: host_config.h: error: unsupported GNU version!" in line
    assert "PIIP_WITH_CUDA" not in ninja
    assert "bindings.o" in ninja


def test_where_cuda_is_asked_for_the_same_is_an_error_that_quotes_the_compiler(build):
    done, ninja = build("1", refuses=True)
    assert done.returncode != 0
    assert "PIIP_CUDA=1 but" in done.stderr
    assert "gcc versions later than 12 are not supported" in done.stderr
    assert not ninja


def test_without_nvcc_cuda_is_left_out_or_an_error(build, tmp_path):
    none = {"CUDA_HOME": str(tmp_path / "none")}
    done, ninja = build("auto", **none)
    assert (done.returncode, "PIIP_WITH_CUDA" in ninja) == (0, False)
    assert "piip: building for the CPU only: nvcc was not found; set CUDA_HOME" in done.stderr
    done, _ = build("1", **none)
    assert done.returncode != 0
    assert "PIIP_CUDA=1 but nvcc was not found; set CUDA_HOME" in done.stderr


def test_code_is_made_for_what_nvcc_knows_and_ptx_of_the_oldest_and_the_newest(build):
    done, ninja = build("auto")
    assert done.returncode == 0, done.stderr
    codes = [word.split("code=")[-1] for word in ninja.split() if word.startswith("-gencode")]
    assert codes == ["sm_70", "sm_75", "sm_80", "sm_90", "sm_100", "sm_120", "compute_70", "compute_120"]
    assert f'PIIP_CUDA_ARCHITECTURES="{" ".join(codes)}"' in ninja
    assert 'PIIP_CUDA_VERSION="12.9"' in ninja
    _, ninja = build("auto", known="sm_75 sm_80 sm_90 sm_100 sm_110 sm_120")
    assert "code=sm_110" in ninja
    assert "code=compute_75" in ninja
    assert "70" not in "".join(word for word in ninja.split() if word.startswith("-gencode"))


def test_named_architectures_are_the_ones_that_are_built(build):
    _, ninja = build("1", TORCH_CUDA_ARCH_LIST="8.6;9.0+PTX")
    codes = [word.split("code=")[-1] for word in ninja.split() if word.startswith("-gencode")]
    assert codes == ["sm_86", "sm_90", "compute_90"]


def test_every_source_is_built_and_kernels_for_the_cpu_once_per_instruction_set(build):
    done, ninja = build("auto")
    assert done.returncode == 0, done.stderr
    instruction_sets = re.findall(r"deform_attn_(portable|avx2|avx512)\.o:", ninja)
    for source in (ROOT / "csrc").rglob("*.c[pu]*"):
        kernel = source.parent.name == "cpu" and source.stem != "dispatch"
        assert ninja.count(f" {source}\n") == (len(instruction_sets) if kernel else 1), source
    assert len(set(re.findall(r"^build (\S+):", ninja, re.MULTILINE))) == ninja.count("\nbuild ")


def test_every_file_of_the_sources_is_packed():
    patterns = re.search(r"^recursive-include csrc (.*)$", (ROOT / "MANIFEST.in").read_text(), re.MULTILINE)
    for path in (ROOT / "csrc").rglob("*.*"):
        assert any(path.match(pattern) for pattern in patterns[1].split()), path
