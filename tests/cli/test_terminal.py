"""Names of classes and files come from elsewhere: what they hold never reaches a terminal or a log as a command."""

from __future__ import annotations

import io
import json
import logging
from pathlib import Path

import pytest
from rich.console import Console
from typer.testing import CliRunner

from piip.cli import errors
from piip.cli.console import facts, print_json
from piip.cli.tables import class_table, print_table
from piip.data.findings import Findings
from piip.engine.log import logging_to
from piip.errors import DataError, first_few, visible
from piip.files import to_json

HOSTILE = "\x1b]0;pwned\x07\x1b[31mred\nnext\r\u202e\x9b2J\ud800"
SHOWN = r"\x1b]0;pwned\x07\x1b[31mred\nnext\r\u202e\x9b2J\ud800"


def test_what_does_not_show_is_escaped_and_what_does_is_kept() -> None:
    assert visible(HOSTILE) == SHOWN
    for text in ("plain", "Füße 猫 🐈", "a\u00a0b\u202fc\u3000d", r"back\slash", "[bold]"):
        assert visible(text) == text
    assert visible("two\nlines\x1b", keep="\n") == "two\nlines\\x1b"
    assert first_few([HOSTILE, "b"]) == f"{SHOWN}, b"


def test_tables_and_facts_show_names_escaped() -> None:
    stream = io.StringIO()
    Console(file=stream, width=200, force_terminal=True, no_color=True).print(
        class_table([{"class": HOSTILE, "ap": 0.5}, {"class": "cat", "ap": None}])
    )
    assert SHOWN in stream.getvalue()
    assert not {"\x07", "\u202e", "\x9b"} & set(stream.getvalue())
    assert facts([("run", HOSTILE)]) == f"run  {SHOWN}"


@pytest.mark.parametrize("width", [40, 80])
def test_where_a_table_is_too_wide_its_rows_are_paragraphs_that_leave_nothing_out(width: int) -> None:
    name = "mask_rcnn_piip_tsb_1568_1120_672_and_then_a_word_more_of_it"
    rows = [("1", "b", "12", None), ("2", name, "3456.78", "46.5/41.3")]
    columns = ("", "config", "multiply-accumulates", "score")
    streams = [io.StringIO(), io.StringIO()]
    for stream, columns_wide in zip(streams, (width, 160), strict=True):
        print_table(Console(file=stream, width=columns_wide), columns, rows, align="rlrr", titles=2)
    lines = streams[0].getvalue().splitlines()
    assert max(map(len, lines)) <= width
    joined = "".join(line.strip() for line in lines).replace(" ", "")
    assert joined == f"config1bmultiply-accumulates12score-2{name}multiply-accumulates3456.78score46.5/41.3"
    assert sum(name in line and "3456.78" in line for line in streams[1].getvalue().splitlines()) == 1


def test_an_error_keeps_its_lines_and_shows_the_rest_escaped() -> None:
    import typer

    app = typer.Typer()

    def fail() -> None:
        raise DataError(f"first line\nclass {HOSTILE}")

    app.command()(errors.command(fail))
    done = CliRunner().invoke(app, [])
    assert done.exit_code == 2
    assert done.stderr == "error: first line\nclass " + SHOWN.replace(r"\n", "\n") + "\n"


@pytest.mark.parametrize("terminal", [False, True])
def test_a_log_has_one_line_a_record_whatever_the_names(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, terminal: bool
) -> None:
    if terminal:
        monkeypatch.setenv("FORCE_COLOR", "1")
        monkeypatch.setenv("COLUMNS", "300")
        monkeypatch.setenv("NO_COLOR", "1")
    report = Findings(HOSTILE)
    report.add("box dropped", HOSTILE)
    with logging_to(tmp_path / "train.log"):
        logging.getLogger("piip.data").warning("%s", report)
    told = capsys.readouterr().err
    for text in (told, (tmp_path / "train.log").read_text()):
        assert text.count(SHOWN) == 2
        assert not {"\x07", "\u202e", "\x9b"} & set(text)
        assert "\nnext" not in text


def test_json_holds_the_names_as_they_are_in_characters_that_do_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    document = {"class": HOSTILE, "other": "Füße 猫"}
    print_json(document)
    printed = capsys.readouterr().out
    assert json.loads(printed) == document
    assert all(char.isprintable() or char == "\n" for char in printed)
    assert "Füße 猫" in printed
    to_json({"file": "\udcff.jpg"}).encode()  # a name that is no UTF-8, as Python has it
