"""Builds piip._C from csrc/ with ninja: C++17 for the CPU, CUDA where nvcc is found. No torch is needed to build.

Environment: PIIP_CUDA=auto|0|1 (1: fail without a working nvcc), CUDA_HOME, TORCH_CUDA_ARCH_LIST ("8.0;9.0+PTX"), CXX;
for a quick instrumented build PIIP_SANITIZE ("address,undefined") and PIIP_CPU_BUILD ("avx2", "portable avx512").
"""

from __future__ import annotations

import os
import platform
import re
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from pathlib import Path

from setuptools import Extension, find_packages, setup
from setuptools.command.build_ext import build_ext

ROOT = Path(__file__).parent
CXX_FLAGS = [
    "-std=c++17",
    "-O3",
    "-fPIC",
    "-fvisibility=hidden",
    "-fno-math-errno",
    "-fno-trapping-math",
    "-fno-tree-loop-distribute-patterns",  # a call of memcpy takes longer than a row of a few vectors
    "-Wall",
    "-Wno-psabi",
]
# The portable objects are linked first: of an inline function that several objects hold, the linker keeps the first.
X86_FLAGS = {
    "portable": [],
    "avx2": ["-mavx2", "-mfma", "-mf16c"],
    "avx512": ["-mavx512f", "-mavx512bw", "-mavx512dq", "-mavx512vl", "-mfma", "-mf16c", "-mprefer-vector-width=512"],
}
# Code for 80 also runs on 86 and 89. PTX of the oldest known serves what lies between, that of the newest what follows.
ARCHITECTURES = ("70", "75", "80", "90", "100", "110", "120")


def say(message: str) -> None:
    # setuptools hides what goes to stdout; pip shows stderr when asked to.
    print(f"piip: {message}", file=sys.stderr)


def works(command: list[str], source: str) -> bool:
    """Whether the compiler takes the flags for a small program."""
    return complaint(command, source) is None


def complaint(command: list[str], source: str, suffix: str = ".cpp") -> str | None:
    """What a compiler says of a small program that it refuses."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / f"probe{suffix}"
        path.write_text(source)
        try:
            done = subprocess.run([*command, str(path), "-o", f"{folder}/probe"], capture_output=True, text=True)
        except OSError as error:
            return str(error)
    return (done.stderr or done.stdout).strip() or f"exit code {done.returncode}" if done.returncode else None


def find_compiler() -> str | None:
    names = [os.environ["CXX"].split()[0]] if os.environ.get("CXX") else ["c++", "g++", "clang++"]
    found = (shutil.which(name) for name in names)
    return next((path for path in found if path and works([path, "-std=c++17"], "int main() { return 0; }")), None)


def find_nvcc() -> Path | None:
    """nvcc inside its own toolkit. A bare `nvcc` on the path may be a link or a wrapper script that lies elsewhere."""
    home = os.environ.get("CUDA_HOME") or os.environ.get("CUDA_PATH")
    if home:
        return Path(home) / "bin" / "nvcc" if (Path(home) / "bin" / "nvcc").is_file() else None
    found = shutil.which("nvcc")
    if found is None:
        return Path("/usr/local/cuda/bin/nvcc") if Path("/usr/local/cuda/bin/nvcc").is_file() else None
    dry_run = subprocess.run([found, "--dryrun", "-x", "cu", "-c", "none.cu"], capture_output=True, text=True)
    top = re.search(r"^#\$ TOP=(.*)$", dry_run.stderr, re.MULTILINE)
    folder = re.search(r"^#\$ _HERE_=(.*)$", dry_run.stderr, re.MULTILINE)
    for candidate in (Path(match.group(1).strip()) for match in (folder, top) if match):
        for nvcc in (candidate / "nvcc", candidate / "bin" / "nvcc"):
            if nvcc.is_file():
                return nvcc.resolve()
    return Path(found).resolve()


def architecture_flags(nvcc: Path) -> tuple[list[str], str]:
    """-gencode flags and the names of the code: TORCH_CUDA_ARCH_LIST, or everything of ours that this nvcc knows."""
    wanted = os.environ.get("TORCH_CUDA_ARCH_LIST", "").replace(" ", ";")
    if wanted:
        items = [
            (item.removesuffix("+PTX").replace(".", ""), item.endswith("+PTX")) for item in wanted.split(";") if item
        ]
    else:
        listing = subprocess.run([str(nvcc), "--list-gpu-code"], capture_output=True, text=True, check=True).stdout
        known = [arch for arch in ARCHITECTURES if re.search(rf"\bsm_{arch}\b", listing)]
        items = [(arch, arch in (known[0], known[-1])) for arch in known]
    codes = [(arch, f"sm_{arch}") for arch, _ in items] + [(arch, f"compute_{arch}") for arch, ptx in items if ptx]
    return [f"-gencode=arch=compute_{arch},code={code}" for arch, code in codes], " ".join(code for _, code in codes)


def ninja_path() -> str:
    try:
        import ninja
    except ImportError:
        found = shutil.which("ninja")
        if found is None:
            raise RuntimeError("piip: ninja is needed to build the extension; pip install ninja") from None
        return found
    return str(Path(ninja.BIN_DIR) / "ninja")


class NinjaBuild(build_ext):
    """Writes build.ninja and runs it."""

    def build_extension(self, ext: Extension) -> None:
        cxx = find_compiler()
        if cxx is None:
            say(
                "no C++ compiler found; the ops will run on their PyTorch definition (slow). Install g++ and reinstall."
            )
            return
        target = Path(self.get_ext_fullpath(ext.name)).absolute()
        folder = Path(self.build_temp).absolute()
        folder.mkdir(parents=True, exist_ok=True)
        target.parent.mkdir(parents=True, exist_ok=True)
        (folder / "build.ninja").write_text(self.ninja_file(cxx, target))
        command = [ninja_path(), "-C", str(folder)]
        if os.environ.get("MAX_JOBS"):
            command += ["-j", os.environ["MAX_JOBS"]]
        if subprocess.run(command).returncode:
            raise RuntimeError("piip: building the extension failed, see the compiler's messages above")

    def ninja_file(self, cxx: str, target: Path) -> str:
        import pybind11

        csrc = (ROOT / "csrc").absolute()
        includes = [f"-I{pybind11.get_include()}", f"-I{sysconfig.get_path('include')}"]
        flags, link = list(CXX_FLAGS), ["-shared"]
        if works([cxx, "-fopenmp"], "#include <omp.h>\nint main() { return omp_get_max_threads() < 1; }"):
            flags.append("-fopenmp")
            link.append("-fopenmp")
        # Only the kernels are instrumented, and little optimised: at -O3 they take minutes to compile.
        sanitize = []
        if os.environ.get("PIIP_SANITIZE"):
            checks = f"-fsanitize={os.environ['PIIP_SANITIZE']}"
            sanitize = ["-Og", "-g1", checks, "-fno-omit-frame-pointer", "-fno-sanitize-recover=undefined"]
            flags.append("-O1")
            link.append(checks)
        else:
            flags.append("-DNDEBUG")
            # Symbols of the static CUDA runtime must not meet those of the runtime that torch brings.
            link += ["-Wl,-s", "-Wl,--exclude-libs,ALL"] if sys.platform.startswith("linux") else ["-Wl,-x"]

        x86 = platform.machine().lower() in ("x86_64", "amd64")
        builds = []
        objects = []

        def add(rule: str, source: Path, name: str, extra: list[str]) -> None:
            objects.append(f"{name}.o")
            builds.append(f"build {name}.o: {rule} {escape(source)}\n  extra = {' '.join(extra)}\n")

        known = X86_FLAGS if x86 else {"portable": []}
        wanted = os.environ.get("PIIP_CPU_BUILD", " ".join(known)).split()
        if not wanted or not set(wanted) <= set(known):
            raise RuntimeError(f"piip: PIIP_CPU_BUILD must name some of {', '.join(known)}, got {' '.join(wanted)!r}")
        dispatch = csrc / "cpu" / "dispatch.cpp"
        kernels = sorted(path for path in dispatch.parent.glob("*.cpp") if path != dispatch)
        for isa in (name for name in known if name in wanted):
            for source in kernels:
                add("cxx", source, f"{source.stem}_{isa}", [f"-DPIIP_ISA={isa}", *known[isa], *sanitize])
        add("cxx", dispatch, "dispatch", [f"-DPIIP_BUILD_{isa.upper()}" for isa in wanted])

        definitions = []
        nvcc = self.nvcc(cxx)
        nvcc_flags: list[str] = []
        if nvcc is not None:
            gencode, names = architecture_flags(nvcc)
            version = re.search(
                r"release ([\d.]+)", subprocess.run([str(nvcc), "--version"], capture_output=True, text=True).stdout
            )
            definitions = [
                "-DPIIP_WITH_CUDA",
                f"'-DPIIP_CUDA_VERSION=\"{version.group(1) if version else 'unknown'}\"'",
                f"'-DPIIP_CUDA_ARCHITECTURES=\"{names}\"'",
            ]
            nvcc_flags = ["-std=c++17", "-O3", "-ftz=true", "--expt-relaxed-constexpr", "-cudart=static", "-ccbin", cxx]
            nvcc_flags += ["-Xcompiler=-fPIC,-fvisibility=hidden", *gencode]
            for source in sorted((csrc / "cuda").glob("*.cu")):
                add("nvcc", source, f"{source.stem}_cuda", [])
            library = next((p for p in (nvcc.parent.parent / "lib64", nvcc.parent.parent / "lib") if p.is_dir()), None)
            link += [f"-L{library}"] if library else []
            link += ["-lcudart_static", "-ldl", "-lrt", "-lpthread"]
        add("cxx", csrc / "bindings.cpp", "bindings", [*includes, *definitions])
        return "\n".join(
            [
                f"cxx = {cxx}",
                f"nvcc = {nvcc}",
                f"flags = {' '.join(flags)}",
                f"nvcc_flags = {' '.join(nvcc_flags)}",
                rule("cxx", "$cxx $flags"),
                rule("nvcc", "$nvcc $nvcc_flags"),
                f"rule link\n  command = $cxx $in {' '.join(link)} -o $out",
                *builds,
                f"build {escape(target)}: link {' '.join(objects)}",
                f"default {escape(target)}\n",
            ]
        )

    def nvcc(self, cxx: str) -> Path | None:
        choice = os.environ.get("PIIP_CUDA", "auto")
        if choice not in ("auto", "0", "1"):
            raise RuntimeError(f"piip: PIIP_CUDA must be auto, 0 or 1, got {choice!r}")
        if choice == "0":
            return None
        nvcc, problem = find_nvcc(), None
        if nvcc is None:
            problem = "nvcc was not found; set CUDA_HOME to the toolkit"
        else:
            # Not every nvcc takes every host compiler.
            command = [str(nvcc), "-std=c++17", "-cudart=static", "-ccbin", cxx, "-c"]
            message = complaint(command, "#include <vector>\n__global__ void nothing() {}\n", ".cu")
            if message is not None:
                problem = f"{nvcc} does not work with {cxx}; name another compiler in CXX: {message}"
        if problem is None:
            return nvcc
        if choice == "1":
            raise RuntimeError(f"piip: PIIP_CUDA=1 but {problem}")
        say(f"building for the CPU only: {' '.join(problem.split())}")
        return None


def rule(name: str, command: str) -> str:
    tail = "$extra -MMD -MF $out.d -c $in -o $out"
    return f"rule {name}\n  command = {command} {tail}\n  depfile = $out.d\n  deps = gcc"


def escape(path: Path) -> str:
    return str(path).replace("$", "$$").replace(" ", "$ ").replace(":", "$:")


setup(
    # The experiments are part of the package: piip.configs in a wheel, configs/ beside it in a checkout.
    packages=[*find_packages(include=["piip", "piip.*"]), "piip.configs"],
    package_dir={"piip.configs": "configs"},
    package_data={
        "piip": ["py.typed", "flops/recorded.json", "branches/catalogue.json"],
        "piip.configs": ["**/*.yaml", "weights/*.safetensors"],
    },
    # Optional: without a compiler nothing is built, and setuptools must not miss it.
    ext_modules=[Extension("piip._C", [], optional=True)],
    cmdclass={"build_ext": NinjaBuild},
)
