"""What the documents say can be done: their code runs, their commands and configs are valid, what they name exists."""

from __future__ import annotations

import ast
import builtins
import importlib
import re
import shlex
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import NamedTuple

import pytest
import torch
import yaml
from PIL import Image

from piip.config.experiment import Config
from piip.config.load import load_config
from piip.config.strict import Strict, models_in
from piip.load import build_model
from piip.weights.files import write_weights
from tests.cli.chain import all_commands, parse, run
from tests.engine.tiny import tiny_config

ROOT = Path(__file__).parents[1]
DOCUMENTS = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
COMMANDS = all_commands()


class Block(NamedTuple):
    """A fenced block of code: its file and line, its language, and its text."""

    document: Path
    line: int
    language: str
    text: str


def blocks(document: Path) -> Iterator[Block]:
    lines = document.read_text(encoding="utf-8").split("\n")
    start: int | None = None
    for number, line in enumerate(lines):
        if not line.startswith("```"):
            continue
        if start is None:
            start = number
        else:
            yield Block(document, start + 1, lines[start][3:], "\n".join(lines[start + 1 : number]) + "\n")
            start = None
    assert start is None, f"{document}, line {start}: a block without an end"


# tests/test_extending.py holds the code of docs/extending.md against its own.
BLOCKS = [block for document in DOCUMENTS if document.name != "extending.md" for block in blocks(document)]


def of(*languages: str) -> pytest.MarkDecorator:
    """Parametrizes a test by the blocks in these languages."""
    found = [block for block in BLOCKS if block.language in languages]
    return pytest.mark.parametrize("block", found, ids=[f"{b.document.name}:{b.line}" for b in found])


def prose(document: Path) -> str:
    """A document without its blocks of code."""
    return re.sub(r"^ *```.*?^ *```", "", document.read_text(encoding="utf-8"), flags=re.DOTALL | re.MULTILINE)


def spans(document: Path) -> list[str]:
    """The code within the lines of a document."""
    return [re.sub(r"\s+", " ", text) for text in re.findall(r"`([^`]+)`", prose(document))]


def command_of(words: list[str]) -> str:
    """The command that words begin with, with that of its group; KeyError if there is none."""
    names = {" ".join(words[:1]), " ".join(words[:2])} & COMMANDS.keys()
    if not names:
        raise KeyError(f"piip {' '.join(words)}: no such command")
    return names.pop()


def commands(text: str) -> Iterator[list[str]]:
    """The words of every line that begins with `piip`, a prompt before it or not."""
    for line in text.replace("\\\n", " ").splitlines():
        words = shlex.split(line, comments=True)
        words = words[1:] if words[:1] == ["$"] else words
        if words[:1] == ["piip"]:
            yield words[1:]


# --- blocks of code --------------------------------------------------------------------------------------------------


def test_every_block_is_of_a_kind_that_is_checked() -> None:
    assert {block.language for block in BLOCKS} <= {"", "python", "text", "sh", "console", "yaml", "bibtex"}


@of("python")
def test_python_blocks_run_and_print_what_they_say(
    block: Block, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """With a small network, and weights of that, where a block loads weights."""
    monkeypatch.chdir(tmp_path)
    text = block.text
    if weights := re.search(r'"(\w+/\w+)", weights="(.+?)"', text):
        torch.manual_seed(0)
        tiny = tiny_config(tmp_path)
        write_weights(tmp_path / weights[2], build_model(tiny.model).state_dict(), class_names=list("abcde"))
        (tmp_path / "tiny.yaml").write_text(yaml.safe_dump(tiny.model_dump(mode="json")))
        text = text.replace(weights[1], "tiny.yaml")
        assert load_config(weights[1])
    Image.new("RGB", (70, 50), (90, 160, 40)).save(tmp_path / "photo.jpg")
    exec(compile("\n" * block.line + text, block.document, "exec"), {"__name__": "__main__"})
    following = BLOCKS[BLOCKS.index(block) + 1] if block is not BLOCKS[-1] else block
    printed = following.text if following.language == "text" and following.document == block.document else ""
    assert capsys.readouterr().out == printed


@of("yaml")
def test_yaml_blocks_are_valid_configs(block: Block, tmp_path: Path) -> None:
    file = tmp_path / "my_config.yaml"
    file.write_text(block.text)
    assert load_config(file)


@of("sh")
def test_shell_blocks_are_commands_that_there_are(block: Block, tmp_path: Path) -> None:
    """Their options exist, and so do their configs and values.

    `my_config.yaml` is the first config of the page, and so is that of a run.
    """
    first = next((other for other in BLOCKS if other.document == block.document and other.language == "yaml"), None)
    mine = tmp_path / "my_config.yaml"
    mine.write_text(first.text if first else "base: detection/mask_rcnn_piip_nano_shapes")
    for line in block.text.replace("\\\n", " ").splitlines():
        words = shlex.split(line, comments=True)
        if words[0] == "make":
            assert re.search(rf"^{words[1]}:", (ROOT / "Makefile").read_text(), re.MULTILINE), line
        elif words[0] != "piip":
            assert (ROOT / words[0]).is_file(), line
    for words in commands(block.text):
        name = command_of(words)
        values = parse(name, words[len(name.split()) :])
        if config := values.get("config"):
            load_config(
                mine if config == mine.name or config.startswith("runs/") else config, values.get("overrides") or ()
            )


@of("console")
def test_commands_print_what_the_documents_show(block: Block) -> None:
    """Line by line; a line of three dots stands for lines that are left out."""
    sessions = re.split(r"^\$ ", block.text, flags=re.MULTILINE)[1:]
    for session in sessions:
        command, *shown = session.splitlines()
        done = run(*shlex.split(command)[1:])
        printed = {" ".join(line.split()) for line in (done.stdout + done.stderr).splitlines()}
        missing = [line for line in shown if line != "..." and " ".join(line.split()) not in printed]
        assert not missing, f"{command}: {missing}"


@of("")
def test_the_synopsis_has_every_command_with_every_option(block: Block) -> None:
    lines = re.sub(r"\n +", " ", block.text).splitlines()
    listed = {command_of(line.split()[1:]): line for line in lines}
    assert listed.keys() == COMMANDS.keys()
    for name, line in listed.items():
        options = {option for parameter in COMMANDS[name].params for option in parameter.opts if option[:2] == "--"}
        mentioned = {option.replace("--no-", "--") for option in re.findall(r"--[a-z-]+", line)}
        assert mentioned == options - {"--debug", "--help"}, name


# --- what they name --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_links_lead_to_files_that_exist(document: Path) -> None:
    targets = re.findall(r"\]\(([^)#]+)[^)]*\)", prose(document)) + re.findall(r'src="([^"]+)"', prose(document))
    broken = [t for t in targets if "://" not in t and not (document.parent / t).exists()]
    assert not broken


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_commands_within_lines_exist_with_their_options(document: Path) -> None:
    for span in spans(document):
        words = span.replace("[", " ").replace("]", " ").split()
        if words[:1] == ["piip"] and len(words) > 1:
            known = {option for parameter in COMMANDS[command_of(words[1:])].params for option in parameter.opts}
            assert {word for word in words if word.startswith("--")} <= known, span
        elif span.startswith("--"):
            names = {o for command in COMMANDS.values() for p in command.params for o in (*p.opts, *p.secondary_opts)}
            assert words[0] in names | {"--help"}, span


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_files_modules_and_settings_that_are_named_exist(document: Path) -> None:
    tops = {path.name for path in ROOT.iterdir()}
    for span in spans(document):
        for word in re.findall(r"[\w./*-]+", span):
            if "/" in word and word.split("/")[0] in tops - {"runs", "data"}:
                assert list(ROOT.glob(word.rstrip("/"))), span
        name = re.split(r"[=:( ]", span)[0]
        if name.startswith("piip."):
            assert _resolves(name), span
        elif re.fullmatch(r"[a-z_]+(\.[a-z_0-9]+)+", name):
            setting = any(f".{key}".endswith(f".{name}") for key in _settings())
            assert setting or _is_file(name) or _resolves(name), span


@pytest.mark.parametrize("document", [ROOT / "docs" / "tour.md"], ids=lambda path: path.name)
def test_classes_functions_and_attributes_of_the_tour_exist(document: Path) -> None:
    for span in spans(document):
        if re.fullmatch(r"[A-Za-z_]+(\.[a-z_]+)?", span):
            owner, _, member = span.partition(".")
            assert owner in _defined(), span
            assert not member or member in _members(owner), span


def test_the_tour_is_as_long_as_it_says() -> None:
    total = 0
    for row in (ROOT / "docs" / "tour.md").read_text().splitlines():
        if re.match(r"\| \d ", row):
            files = re.findall(r"\]\(\.\./([^)]+)\)", row)
            lines, said = sum(len((ROOT / file).read_text().splitlines()) for file in files), int(row.split("|")[-2])
            assert said == pytest.approx(lines, rel=0.15), row
            total += lines
    assert total == pytest.approx(1300, rel=0.1)


def _is_file(name: str) -> bool:
    """Whether the repository has a file of this name at its top or in its sources, or the package writes one."""
    sources = [path for top in ("piip", "csrc") for path in (ROOT / top).rglob("*.*")]
    written = any(f'"{name}"' in path.read_text(encoding="utf-8") for path in sources if path.suffix == ".py")
    return written or (ROOT / name).exists() or any(path.name == name for path in sources)


def _resolves(name: str) -> bool:
    """Whether a dotted name is a module, or something in one."""
    parts = name.split(".")
    for end in range(len(parts), 0, -1):
        try:
            found: object = importlib.import_module(".".join(parts[:end]))
        except ImportError:
            continue
        for part in parts[end:]:
            if not hasattr(found, part):
                return False
            found = getattr(found, part)
        return True
    return False


@cache
def _settings(model: type[Strict] = Config) -> set[str]:
    """Every dotted key of a config, with 0 for the items of lists."""
    found = set()
    for name, field in model.model_fields.items():
        found.add(name)
        for inner in models_in(field.annotation):
            item = "0." if "tuple" in str(field.annotation) else ""
            found |= {f"{name}.{item}{key}" for key in _settings(inner)}
    return found


@cache
def _trees() -> list[ast.Module]:
    return [ast.parse(path.read_text(encoding="utf-8")) for path in (ROOT / "piip").rglob("*.py")]


@cache
def _defined() -> set[str]:
    """Names of classes, functions, arguments, variables and attributes anywhere in the package, and Python's own."""
    found = set(dir(builtins))
    for tree in _trees():
        for node in ast.walk(tree):
            if isinstance(node, (ast.ClassDef, ast.FunctionDef)):
                found.add(node.name)
            elif isinstance(node, ast.Attribute):
                found.add(node.attr)
            elif isinstance(node, ast.arg):
                found.add(node.arg)
            elif isinstance(node, ast.Name):
                found.add(node.id)
    return found


@cache
def _members(owner: str) -> set[str]:
    """What is defined in the body of a class."""
    return {
        item.name
        for tree in _trees()
        for node in ast.walk(tree)
        if isinstance(node, ast.ClassDef) and node.name == owner
        for item in node.body
        if isinstance(item, ast.FunctionDef)
    }
