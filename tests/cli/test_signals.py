"""SIGTERM and Ctrl-C at any moment: one line, and codes 75 and 130."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.engine.tiny import environment

# Sends the signal to itself when the module is imported, from a place where an exception would be swallowed.
TRAP = """
import os, signal, sys
class Trap:
    def find_spec(self, name, path=None, target=None):
        if name == {module!r}:
            sys.meta_path.remove(self)
            try:
                os.kill(os.getpid(), signal.{signal})
            except BaseException:
                pass
sys.meta_path.insert(0, Trap())
sys.argv = ["piip", "flops", "--branches", "ts", "--resolutions", "64,32"]
import piip.__main__
piip.__main__.main()
"""
ENDS = [("SIGTERM", 75, "stopped by SIGTERM\n"), ("SIGINT", 130, "interrupted\n")]


@pytest.mark.parametrize("module", ["piip.cli.main", "typer", "piip.config.load", "torch"])
@pytest.mark.parametrize(("name", "code", "line"), ENDS)
def test_a_signal_during_an_import_ends_the_command_with_a_line(module: str, name: str, code: int, line: str) -> None:
    done = subprocess.run(
        [sys.executable, "-c", TRAP.format(module=module, signal=name)],
        env=environment(), capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert (done.returncode, done.stderr, done.stdout) == (code, line, "")


@pytest.mark.parametrize(("name", "code", "line"), ENDS)
def test_a_signal_during_work_unwinds_it(tmp_path: Path, name: str, code: int, line: str) -> None:
    script = f"""
import os, signal, sys
import piip.__main__, piip.config.load
from piip.files import replacing
from pathlib import Path
def work():
    with replacing(Path({str(tmp_path / "file")!r})):
        os.kill(os.getpid(), signal.{name})
piip.config.load.shipped_configs = work
sys.argv = ["piip", "models"]
piip.__main__.main()
"""
    done = subprocess.run(
        [sys.executable, "-c", script], env=environment(), capture_output=True, text=True, timeout=60, check=False
    )
    assert (done.returncode, done.stderr) == (code, line)
    assert list(tmp_path.iterdir()) == []


def test_signals_that_are_ignored_stay_so() -> None:
    script = """
import signal
from piip.signals import handle_signals
signal.signal(signal.SIGINT, signal.SIG_IGN)
handle_signals()
assert signal.getsignal(signal.SIGINT) == signal.SIG_IGN
assert callable(signal.getsignal(signal.SIGTERM))
"""
    subprocess.run([sys.executable, "-c", script], env=environment(), check=True)
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL


def test_handlers_are_set_before_anything_slow_is_imported() -> None:
    script = """
import sys, piip.__main__
slow = {"typer", "click", "rich", "pydantic", "yaml", "numpy", "torch"} & set(sys.modules)
assert not slow, slow
"""
    subprocess.run([sys.executable, "-c", script], env=environment(), check=True)


@pytest.mark.parametrize("name", ["SIGTERM", "SIGINT"])
def test_a_signal_while_python_ends_leaves_the_exit_code_of_what_is_done(name: str) -> None:
    # Modules are torn down after Python has given its handlers up.
    script = f"""
import os, signal, sys
import piip.__main__
class Last:
    def __del__(self, kill=os.kill, me=os.getpid(), number=signal.{name}):
        kill(me, number)
sys.last = Last()
sys.argv = ["piip", "models"]
piip.__main__.main()
"""
    done = subprocess.run(
        [sys.executable, "-c", script], env=environment(), capture_output=True, text=True, timeout=60, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")
