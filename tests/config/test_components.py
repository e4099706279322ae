"""Families of components: who their members are, and what is said where one is not what it should be."""

from __future__ import annotations

import subprocess
import sys
from abc import abstractmethod
from pathlib import Path
from typing import ClassVar, Literal

import pytest
from pydantic import ValidationError

from piip import branches
from piip.branches.config import BranchConfig
from piip.branches.vit.config import ViTConfig
from piip.config.strict import Component, Strict
from tests.engine.tiny import environment


class Shape(Component):
    default_type: ClassVar = "circle"

    @abstractmethod
    def area(self) -> float: ...


class Circle(Shape):
    type: Literal["circle"] = "circle"
    radius: float = 1.0

    def area(self) -> float:
        return 3 * self.radius**2


class Quadrangle(Shape):
    """What members share; abstract, so it needs no type."""

    width: float = 1.0


class Square(Quadrangle):
    type: Literal["square", "tile"] = "square"

    def area(self) -> float:
        return self.width**2


class Drawing(Strict):
    shapes: tuple[Shape, ...]


def test_a_field_of_a_family_takes_every_member_that_has_been_defined() -> None:
    drawing = Drawing.model_validate(
        {"shapes": [{"radius": 2}, {"type": "square", "width": 3}, {"type": "tile"}, Circle()]}
    )
    assert drawing.shapes == (Circle(radius=2), Square(width=3), Square(type="tile"), Circle())
    assert Drawing.model_validate(drawing.model_dump()) == drawing
    assert Shape.known() == {"circle": Circle, "square": Square, "tile": Square}


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"type": "star"}, "unknown type"),
        ({"radius": "far"}, "radius"),
        ({"width": 2}, "unknown key 'width'"),
        (3, "a mapping is needed"),
    ],
)
def test_what_no_member_takes_is_refused(given: object, message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        Drawing.model_validate({"shapes": [given]})


def test_two_members_of_one_type_are_refused_and_both_are_named() -> None:
    with pytest.raises(TypeError, match=r"\.Circle and .*\.Disc both have the type 'circle'"):

        class Disc(Shape):
            type: Literal["circle"] = "circle"

    with pytest.raises(TypeError, match=r"\.Circle and .*\.Ring both have the type 'circle'"):

        class Ring(Circle):
            width: float = 1

    assert Shape.known()["circle"] is Circle


def test_a_member_that_can_be_built_needs_a_type() -> None:
    with pytest.raises(TypeError, match=r'Blob needs a type that configs name it by: type: Literal\["name"\] = "name"'):

        class Blob(Shape):
            def area(self) -> float:
                return 0


def test_a_module_that_is_executed_again_takes_the_place_of_its_members() -> None:
    def define(radius: float) -> type[Shape]:
        class Dot(Shape):
            type: Literal["dot"] = "dot"

            def area(self) -> float:
                return radius

        return Dot

    define(1)
    again = define(2)
    assert Shape.known()["dot"] is again
    del Shape.members["dot"]


def test_the_rooms_of_a_package_are_found_without_being_named() -> None:
    folders = {path.parent.name for path in Path(branches.__path__[0]).glob("*/config.py")}
    assert folders
    assert {member.__module__.split(".")[2] for member in BranchConfig.known().values()} >= folders
    assert BranchConfig.known()["vit"] is ViTConfig


def installed(folder: Path, module: str) -> subprocess.CompletedProcess[str]:
    """What a process says of the branches, beside an installed package `toy` with this module."""
    (folder / "toy_branch.py").write_text(module)
    info = folder / "toy-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: toy\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[piip.branches]\ntoy = toy_branch:ToyConfig\n")
    code = (
        "import sys; from piip.branches.config import BranchConfig; "
        "print(*BranchConfig.known(), 'torch' in sys.modules)"
    )
    env = environment()
    env["PYTHONPATH"] += f":{folder}"
    return subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, check=False)


def test_an_installed_package_adds_its_members(tmp_path: Path) -> None:
    module = """
from typing import Literal
from piip.branches.config import BranchConfig

class ToyConfig(BranchConfig):
    type: Literal["toy"] = "toy"

    def build(self): ...
"""
    *types, torch = installed(tmp_path, module).stdout.split()
    assert set(types) == {*BranchConfig.known(), "toy"}
    assert torch == "False"


@pytest.mark.parametrize(
    ("module", "reason"),
    [
        ("import missing_part", "ModuleNotFoundError: No module named 'missing_part'"),
        ("Config = None", "AttributeError: module 'toy_branch' has no attribute 'ToyConfig'"),
    ],
)
def test_an_installed_package_that_cannot_be_imported_is_named(tmp_path: Path, module: str, reason: str) -> None:
    (last,) = installed(tmp_path, module).stderr.splitlines()[-1:]
    assert last.startswith("piip.errors.ConfigError: the installed package 'toy' offers toy_branch:ToyConfig to ")
    assert reason in last
    assert last.endswith("repair or uninstall it")
