"""Who may import whom, read from the source: imports inside functions and for type checkers count too."""

from __future__ import annotations

import ast
import importlib
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

from piip.config.strict import Component, Strict, types_of

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "piip"

# The rooms of the house, lowest first. A module belongs to the room with the longest name that its own begins with; it
# imports modules of its own room and of those that come before it in this list. `piip` itself, which every import runs,
# comes first; what it offers of the others it imports on first use, and it is the only module that may.
ORDER = [
    "piip",
    "piip.errors",
    "piip.conventions",
    "piip.features",
    "piip.tiling",
    "piip.by_size",
    "piip.host",
    "piip.rng",
    "piip.files",
    "piip.signals",
    "piip.run_lengths",
    "piip._C",
    "piip.ops",
    "piip.precision",
    "piip.config.strict",
    "piip.weights",
    "piip.branches",
    "piip.backbone",
    "piip.necks",
    "piip.metrics",
    "piip.results",
    "piip.heads",
    "piip.data",
    "piip.config",
    "piip.data.build",  # it puts together what an experiment says of its data
    "piip.in_tiles",
    "piip.model",
    "piip.regions",  # the parts of a network, for what compiles and shards them
    "piip.load",
    "piip.export",
    "piip.pack",
    "piip.page",
    "piip.flops",
    "piip.engine",
    "piip.bench",
    "piip.memory",
    "piip.official",
    "piip.search",
    "piip.doctor",
    "piip.cli",
    "piip.__main__",
]
FILES = sorted(PACKAGE.rglob("*.py"))
MODULES = {".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): path for path in FILES}
CONFIGS = [importlib.import_module(module) for module in MODULES if module.endswith(".config")]
FAMILIES = [family for family in Component.__subclasses__() if family.__module__ in MODULES]


@cache
def tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


def imported(path: Path) -> Iterator[str]:
    """Every module that a file imports, wherever it does so."""
    for node in ast.walk(tree(path)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path.name}: write the whole name instead of a relative import"
            inside = {alias.name: f"{node.module}.{alias.name}" for alias in node.names}
            modules = [name for name in inside.values() if name in MODULES or name == "piip._C"]
            yield from modules or [str(node.module)]


def room_of(module: str) -> int:
    """The place in ORDER of the room that a module belongs to."""
    rooms = [room for room in ORDER if module == room or (room != "piip" and module.startswith(f"{room}."))]
    assert rooms, f"{module} is new: say in ORDER what it stands on"
    return ORDER.index(max(rooms, key=len))


@cache
def member_rooms() -> list[str]:
    """The folders of the members of all families, such as piip.heads.dino."""
    packages = {family.__module__.rpartition(".")[0] for family in FAMILIES}
    rooms = {member.__module__.rpartition(".")[0] for family in FAMILIES for member in family.known().values()}
    return sorted(room for room in rooms if room in MODULES and room not in packages)


def member_room(module: str) -> str | None:
    """The folder of a member that a module lies in."""
    return next((room for room in member_rooms() if module.startswith(f"{room}.")), None)


@pytest.mark.parametrize("module", [module for module in MODULES if module != "piip"])
def test_imports_run_one_way(module: str) -> None:
    upwards = {found for found in imported(MODULES[module]) if found.split(".")[0] == "piip"}
    upwards = {found for found in upwards if room_of(found) > room_of(module)}
    assert not upwards, f"{module} stands below {', '.join(sorted(upwards))}"


def test_the_order_speaks_of_rooms_that_exist() -> None:
    packages = {module.rpartition(".")[0] for module in MODULES}
    assert [room for room in ORDER if room not in {*MODULES, *packages, "piip._C"}] == []


def test_ops_need_nothing_but_torch() -> None:
    outside = {found.split(".")[0] for path in FILES if path.parent.name == "ops" for found in imported(path)}
    assert outside - set(sys.stdlib_module_names) == {"torch", "piip"}


def test_the_engine_asks_the_model_and_never_its_parts() -> None:
    parts = ("piip.branches", "piip.backbone", "piip.necks", "piip.heads")
    engine = [module for module in MODULES if module.startswith("piip.engine.")]
    looked_at = {f"{module}: {found}" for module in engine for found in imported(MODULES[module])}
    assert [found for found in looked_at if found.split(": ")[1].startswith(parts)] == []


# Who else looks into the room of one member, and why.
LOOKS_INTO = {
    "piip.official": "knows what the official repository calls every one of them",
    "piip.config.experiment": "has a default head",
    "piip.config.letters": "knows the sizes of ViTs by their letters",
    "piip.data.sets.shapes": "generated images are written and read as COCO, label maps or folders",
}


@pytest.mark.parametrize("module", MODULES)
def test_no_one_but_its_own_room_knows_a_member_of_a_family(module: str) -> None:
    if not any(module == known or module.startswith(f"{known}.") for known in LOOKS_INTO):
        rooms = {member_room(found) for found in imported(MODULES[module])}
        assert rooms <= {None, member_room(module)}


def test_no_one_but_its_own_room_asks_which_type_a_component_is() -> None:
    """Neither by its class nor by its `type`: what others want to know is a method or a property of the family."""
    members = [member for family in FAMILIES for member in family.known().values()]
    asking = []
    for module, path in MODULES.items():
        if not module.startswith("piip.official"):
            others = [member for member in members if home(member.__module__) != home(module)]
            classes, types = {member.__name__ for member in others}, set(types_of(others))
            nodes = list(ast.walk(tree(path)))
            asking += [f"{module}:{node.lineno}" for node in nodes if _asks(node, classes, types)]
    assert asking == []


def home(module: str) -> str:
    """The folder of a member that a module lies in, or else the module itself."""
    return member_room(module) or module


def _asks(node: ast.AST, classes: set[str], types: set[str]) -> bool:
    return _asks_for_class(node, classes) or _compares_type(node, types)


def _asks_for_class(node: ast.AST, names: set[str]) -> bool:
    if isinstance(node, ast.MatchClass):
        return _ends_in(node.cls, names)
    if not isinstance(node, ast.Call) or not _ends_in(node.func, {"isinstance", "issubclass"}):
        return False
    return any(_ends_in(part, names) for part in ast.walk(node.args[1]))


def _compares_type(node: ast.AST, types: set[str]) -> bool:
    if isinstance(node, ast.Match):
        return _ends_in(node.subject, {"type"})
    if not isinstance(node, ast.Compare):
        return False
    told = [part.value for side in (node.left, *node.comparators) for part in ast.walk(side) if _is_constant(part)]
    return any(_ends_in(side, {"type"}) for side in (node.left, *node.comparators)) and not types.isdisjoint(told)


def _is_constant(node: ast.AST) -> bool:
    return isinstance(node, ast.Constant) and isinstance(node.value, str)


def _ends_in(node: ast.AST, names: set[str]) -> bool:
    return (isinstance(node, ast.Name) and node.id in names) or (isinstance(node, ast.Attribute) and node.attr in names)


@pytest.mark.parametrize(
    "line",
    [
        "isinstance(head, MaskRCNNConfig)",
        "isinstance(head, (int, config.MaskRCNNConfig))",
        "neck.type != 'none'",
        "'dino' == config.head.type",
        "head.type in ('dino', 'mask_rcnn')",
    ],
)
def test_the_search_for_such_questions_finds_them(line: str) -> None:
    types = {"dino", "mask_rcnn", "none"}
    assert any(
        _asks_for_class(node, {"MaskRCNNConfig"}) or _compares_type(node, types) for node in ast.walk(ast.parse(line))
    )
    assert not _compares_type(ast.parse("device.type == 'cuda'", mode="eval").body, types)


def settings(module: str) -> set[str]:
    """The settings that the config beside a module, and above it, give defaults to."""
    names = set()
    while module := module.rpartition(".")[0]:
        beside = vars(sys.modules.get(f"{module}.config", object)).values()
        models = [model for model in beside if isinstance(model, type) and issubclass(model, Strict)]
        names |= {name for model in models for name, field in model.model_fields.items() if not field.is_required()}
    return names


def defaults(path: Path) -> Iterator[str]:
    """The arguments of constructors that have a default."""
    for node in ast.walk(tree(path)):
        if isinstance(node, ast.FunctionDef) and node.name == "__init__":
            told, given = node.args.args, node.args.defaults
            yield from (argument.arg for argument in told[len(told) - len(given) :])
            yield from (arg.arg for arg, value in zip(node.args.kwonlyargs, node.args.kw_defaults) if value is not None)


@pytest.mark.parametrize("module", MODULES)
def test_a_default_is_written_in_the_config_alone(module: str) -> None:
    assert settings(module) & set(defaults(MODULES[module])) == set()


def test_no_config_goes_through_an_untyped_pipe() -> None:
    pipes = [
        f"{module}:{node.lineno}"
        for module, path in MODULES.items()
        for node in ast.walk(tree(path))
        if isinstance(node, ast.Call)
        for keyword in node.keywords
        if keyword.arg is None and "model_dump" in ast.dump(keyword.value)
    ]
    assert pipes == []


def test_packages_are_empty_so_that_a_config_imports_no_torch() -> None:
    full = [module for module, path in MODULES.items() if path.name == "__init__.py" and path.stat().st_size]
    assert full == ["piip", "piip.ops"]


def test_what_starts_fast_does_not_import_torch() -> None:
    configs = [module for module in MODULES if module.startswith("piip.config.")]
    fast = [
        *configs,
        *(module.__name__ for module in CONFIGS),
        "piip",
        "piip.errors",
        "piip.features",
        "piip.cli.main",
        "piip.flops.recorded",
    ]
    fast += ["piip.official.flops.scripts"]
    code = f"import sys, {', '.join(fast)}; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=False).returncode == 0
