"""Files are whole or not there, whatever ends their writer, and nothing else is ever written to."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from piip.errors import DataError
from piip.files import check_outputs, making, replacing, to_json, write_file
from tests.engine.tiny import environment


def start(code: str) -> subprocess.Popen[bytes]:
    """A Python of its own that runs the code; it has come to `ready()` when this returns."""
    script = f"""
import os, sys
from pathlib import Path
from piip.files import making, replacing, write_file
def ready():
    print(flush=True)
    sys.stdin.read()
{code}
"""
    process = subprocess.Popen(
        [sys.executable, "-c", script], stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment()
    )
    assert process.stdout is not None
    assert process.stdout.readline() == b"\n"
    return process


def kill(process: subprocess.Popen[bytes]) -> None:
    process.send_signal(signal.SIGKILL)
    process.communicate()


def write_elsewhere(code: str) -> None:
    subprocess.run(
        [sys.executable, "-c", f"from pathlib import Path\nfrom piip.files import *\n{code}"],
        env=environment(),
        check=True,
    )


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_files_are_replaced_whole_or_not_at_all(tmp_path: Path) -> None:
    file = tmp_path / "file.json"
    write_file(file, "first")

    def fail() -> None:
        with replacing(file) as stream:
            stream.write(b"half")
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail()
    assert file.read_text() == "first"
    write_file(file, "second ü")
    assert file.read_text(encoding="utf-8") == "second ü"
    assert names(tmp_path) == ["file.json"]
    assert json.loads(to_json({"a": [float("inf"), 1.0], "b": (2, None)})) == {"a": [None, 1.0], "b": [2, None]}


def test_folders_are_made_whole_or_not_at_all_and_the_first_one_stays(tmp_path: Path) -> None:
    def fail() -> None:
        with making(tmp_path / "set") as folder:
            (folder / "a").write_text("half")
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail()
    assert names(tmp_path) == []
    for text in ("first", "second"):
        with making(tmp_path / "set") as folder:
            (folder / "a").write_text(text)
    assert (tmp_path / "set" / "a").read_text() == "first"
    assert names(tmp_path) == ["set"]


@pytest.mark.parametrize("umask", [0o022, 0o077, 0o002])
def test_modes_follow_the_umask(tmp_path: Path, umask: int) -> None:
    before = os.umask(umask)
    try:
        write_file(tmp_path / "file", "")
        with making(tmp_path / "folder"):
            pass
    finally:
        os.umask(before)
    assert (tmp_path / "file").stat().st_mode & 0o777 == 0o666 & ~umask
    assert (tmp_path / "folder").stat().st_mode & 0o777 == 0o777 & ~umask


def test_the_temporary_name_cannot_be_guessed_and_what_has_it_already_is_not_written_to(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = []
    for _ in range(2):
        with replacing(tmp_path / "file"):
            found += [path.name for path in tmp_path.glob(".*")]
    assert len(set(found)) == 2
    assert all(re.fullmatch(r"\.file\.[0-9a-f]{16}\.piip-tmp", name) for name in found)
    # Guessed all the same: a link there is not followed.
    victim = tmp_path / "victim"
    victim.write_text("precious")
    monkeypatch.setattr("secrets.token_hex", lambda _: "0" * 16)
    (tmp_path / f".file.{'0' * 16}.piip-tmp").symlink_to(victim)
    with pytest.raises(FileExistsError):
        write_file(tmp_path / "file", "evil")
    assert victim.read_text() == "precious"


def test_a_link_at_the_target_is_replaced_not_followed(tmp_path: Path) -> None:
    (tmp_path / "victim").write_text("precious")
    (tmp_path / "file").symlink_to("victim")
    write_file(tmp_path / "file", "new")
    assert (tmp_path / "victim").read_text() == "precious"
    assert not (tmp_path / "file").is_symlink()


WRITERS = {
    "file": "with replacing(Path({target!r})) as stream:\n    stream.write(b'half')\n    ready()",
    "folder": "with making(Path({target!r})) as folder:\n    (folder / 'a').write_text('half')\n    ready()",
}


@pytest.mark.parametrize("kind", WRITERS)
def test_the_next_writer_removes_what_a_killed_one_left_and_leaves_a_living_one_alone(
    tmp_path: Path, kind: str
) -> None:
    code = WRITERS[kind].format(target=str(tmp_path / "target"))
    dead, alive = start(code), start(code)
    kill(dead)
    try:
        assert len(names(tmp_path)) == {"file": 2, "folder": 4}[kind]
        write_elsewhere(f"write_file(Path({str(tmp_path / 'target.txt')!r}), 'x')")
        left = names(tmp_path)
        assert len(left) == {"file": 2, "folder": 3}[kind]
    finally:
        assert alive.communicate(b"")[1] is None
    assert alive.returncode == 0
    assert names(tmp_path) == ["target", "target.txt"]


def test_names_as_long_as_the_file_system_allows_can_be_written(tmp_path: Path) -> None:
    for name in ("x" * 255, "ü" * 127):
        write_file(tmp_path / name, "1")
        assert (tmp_path / name).read_text() == "1"


@pytest.mark.parametrize(
    "lead",
    [
        lambda source, output: output.symlink_to(source),
        lambda source, output: output.hardlink_to(source),
        lambda source, output: output.parent.joinpath("sub").symlink_to(output.parent),
    ],
)
def test_an_output_that_is_an_input_by_any_name_is_refused(tmp_path: Path, lead: Callable[[Path, Path], None]) -> None:
    source, output = tmp_path / "source", tmp_path / "output"
    source.write_text("x")
    lead(source, output)
    output = output if output.exists() else tmp_path / "sub" / "source"
    with pytest.raises(DataError, match=r"would be overwritten, but .*source is read"):
        check_outputs([tmp_path / "other", output], [source])
    check_outputs([tmp_path / "other", source], [tmp_path / "missing"])
