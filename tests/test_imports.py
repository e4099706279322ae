"""Who may import whom, read from the source: imports inside functions count too."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "piip"

# Every part of the package, and the other parts it may import; a part may always import itself.
ALLOWED = {
    "errors": set(),
    "signals": {"errors"},
    "files": {"errors"},
    "features": set(),
    "host": set(),
    "rng": set(),
    "by_size": set(),
    "run_lengths": {"host"},
    "config": {"errors"},
    "ops": {"errors", "_C"},
    "precision": {"ops"},
    "branches": {"errors", "features", "by_size", "ops"},
    "backbone": {"errors", "features", "by_size", "ops", "precision", "branches"},
    "necks": {"errors", "features", "ops"},
    "heads": {"errors", "features", "by_size", "host", "ops", "precision", "run_lengths"},
    "metrics": {"errors", "data", "files", "run_lengths"},
    "results": {"errors", "files", "run_lengths"},
    "data": {"errors", "files", "signals", "config", "metrics", "ops", "rng"},
    "convert": {"errors", "files", "config", "model", "branches", "engine"},
    "model": {
        *("errors", "config", "features", "ops", "branches", "backbone", "necks", "heads", "data", "convert", "engine")
    },
    "engine": {
        *(
            "__version__",
            "errors",
            "files",
            "host",
            "signals",
            "rng",
            "config",
            "model",
            "data",
            "metrics",
            "results",
            "convert",
        ),
        "precision",
    },
    "flops": {"errors", "files", "config", "model", "heads", "ops"},
    "doctor": {"errors", "config", "ops", "_C"},
    "cli": {
        "errors",
        "files",
        "signals",
        "config",
        "engine",
        "convert",
        "flops",
        "doctor",
        "__version__",
    },
    "__init__": {"model", "ops"},
    "__main__": {"cli", "signals"},
}
FILES = sorted(PACKAGE.rglob("*.py"))


def part_of(path: Path) -> str:
    return path.relative_to(PACKAGE).with_suffix("").parts[0]


def imported(path: Path) -> list[tuple[str, tuple[str, ...]]]:
    """Every import of a file, as (module, names); names is empty for `import module`."""
    found = []
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found += [(alias.name, ()) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path.name}: write the whole name instead of a relative import"
            found.append((node.module or "", tuple(alias.name for alias in node.names)))
    return found


def parts_imported(path: Path) -> set[str]:
    parts = set()
    for module, names in imported(path):
        first, _, rest = module.partition(".")
        if first == "piip":
            parts |= {rest.split(".")[0]} if rest else set(names)
    return parts


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_a_part_imports_only_the_parts_below_it(path):
    part = part_of(path)
    assert part in ALLOWED, f"piip/{part} is new: say here what it may import"
    assert parts_imported(path) - {part} <= ALLOWED[part]


def test_the_rules_speak_of_parts_that_exist():
    present = {part_of(path) for path in FILES}
    assert present == set(ALLOWED)


def test_ops_need_nothing_but_torch():
    outside = {
        module.split(".")[0]
        for path in FILES
        if part_of(path) == "ops"
        for module, _ in imported(path)
        if module.split(".")[0] not in sys.stdlib_module_names
    }
    assert outside <= {"torch", "piip"}


def test_the_backbone_sees_what_a_branch_is_but_no_particular_branch():
    for path in FILES:
        if part_of(path) == "backbone":
            for module, names in imported(path):
                assert (
                    module.split(".")[:2] != ["piip", "branches"]
                    or module == "piip.branches.base"
                    or set(names) <= {"Branch", "Tokens"}
                )


def test_the_engine_names_no_task():
    tasks = {
        "coco",
        "shapes",
        "ade20k",
        "label_maps",
        "image_folder",
        "miou",
        "accuracy",
        "heads",
        "backbone",
        "branches",
        "necks",
    }
    for path in FILES:
        if part_of(path) == "engine":
            named = {part for module, _ in imported(path) if module.startswith("piip") for part in module.split(".")}
            assert not named & tasks, path.name


@pytest.mark.parametrize(
    "module", ["piip", "piip.config", "piip.errors", "piip.features", "piip.flops.paper", "piip.cli.main"]
)
def test_what_starts_fast_does_not_import_torch(module):
    code = f"import sys, {module}; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=False).returncode == 0
