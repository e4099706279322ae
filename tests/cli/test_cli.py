"""The command line: what starts fast, what is printed where, and what every failure looks like."""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from piip.cli import errors
from piip.errors import CheckError, ConfigError, PiipError, Stopped
from tests.cli.chain import all_commands, parse, run

ROOT = Path(__file__).parents[2]
COMMANDS = list(all_commands())
TSB = "detection/mask_rcnn_piip_tsb_1568_1120_672"


def piip(*arguments: str, code: str = "", **options) -> subprocess.CompletedProcess[str]:
    """The command in a process of its own; `code` runs before it and may see `sys`."""
    script = f"import sys; sys.argv = ['piip', *{list(arguments)!r}]\nfrom piip.cli.main import app\n{code}\napp()"
    return subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, **options)


# --- starting --------------------------------------------------------------------------------------------------------


def test_no_help_imports_torch():
    """All of them in one process: a module once imported stays."""
    script = f"""
import sys
from piip.cli.main import app
for arguments in [["--help"], ["--version"], *([*name.split(), "--help"] for name in {COMMANDS!r})]:
    try:
        app(arguments)
    except SystemExit as end:
        assert not end.code, arguments
    assert "torch" not in sys.modules, arguments
"""
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("name", COMMANDS)
def test_help_names_every_option_in_kebab_case(name):
    done = run(*name.split(), "--help")
    assert done.exit_code == 0
    assert "--debug" in done.stdout
    assert "_" not in "".join(word for word in done.stdout.split() if word.startswith("--"))


@pytest.mark.parametrize("name", COMMANDS)
def test_help_ends_with_two_examples_in_lines_of_their_own_that_a_narrow_terminal_shows(name):
    done = piip(*name.split(), "--help", env={**os.environ, "COLUMNS": "80", "TERMINAL_WIDTH": "80"})
    lines = [line.strip() for line in done.stdout.split("Examples:")[1].splitlines() if line.strip()]
    assert len(lines) == 2
    for line in lines:
        beginning, words = ["piip", *name.split()], shlex.split(line)
        assert words[: len(beginning)] == beginning
        parse(name, words[len(beginning) :])
    assert max(map(len, done.stdout.splitlines())) <= 80


def test_the_help_lists_every_command():
    assert all(name.split()[0] in run("--help").stdout for name in COMMANDS)


def test_version_is_the_package_version():
    import piip as package

    assert run("--version").stdout == f"piip {package.__version__}\n"


# --- usage errors: exit 2 --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["nonsense"], "nonsense"),
        (["train"], "CONFIG"),
        (["eval", TSB], "--weights"),
        (["predict", TSB], "IMAGE"),
        (
            ["predict", TSB, "a.jpg", "--weights", "README.md", "--output", "o", "--score-threshold", "2"],
            "--score-threshold",
        ),
        (["eval", TSB], "--weights is needed"),
        (["predict", TSB, "a.jpg", "--output", "o"], "--weights is needed"),
        (["train", TSB, "--weights-partial"], "--weights-partial goes with --weights"),
        (["train", TSB, "--no-such-option"], "--no-such-option"),
        (["train", TSB, "--", "--lr=0.1"], "--lr"),
        (["train", TSB, "--lr", "0.1"], "no option --lr; settings are given without dashes"),
        (
            ["eval", TSB, "--weights", "README.md", "--optim.lr=0.1"],
            "no option --optim.lr; settings are given without dashes",
        ),
        (["eval", TSB, "--weights", "README.md", "--backend", "other"], "--backend"),
        (["convert-ckpt", "a"], "OUTPUT"),
        (["flops"], "CONFIG or --branches"),
        (["flops", TSB, "--branches", "tsb"], "CONFIG or --branches"),
        (["flops", TSB, "--resolutions", "3,2,1"], "--resolutions goes with --branches"),
        (["flops", "--branches", "tsb", "--resolutions", "big"], "whole numbers"),
        (["flops", "tsb", "optim.lr=1"], "optim.lr=1 replaces a value in a CONFIG"),
        (["flops", TSB, "--optim.lr=1"], "no option --optim.lr; settings are given without dashes"),
    ],
)
def test_wrong_usage_exits_2_naming_the_argument(arguments, words):
    done = run(*arguments)
    assert done.exit_code == 2
    assert words in done.stderr
    assert done.stdout == ""


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["flops", "no_such_config"], "unknown config 'no_such_config'"),
        (["flops", "--branches", "txb"], "use the letters t, s, b and l"),
        (["flops", "--branches", "tb"], "give 2 with --resolutions"),
        (["train", TSB, "optim.learning_rate=1"], "unknown key 'learning_rate'"),
        (["train", TSB, "seed"], "is not of the form key.sub=value"),
        (["eval", "missing.yaml", "--weights", "README.md"], "config file not found: missing.yaml"),
    ],
)
def test_a_wrong_config_exits_2_in_a_few_lines_without_a_traceback(arguments, words):
    done = run(*arguments)
    assert done.exit_code == 2
    assert done.stderr.startswith("error: ")
    assert words in done.stderr
    assert "Traceback" not in done.stderr
    assert len(done.stderr.splitlines()) <= 3
    assert done.stdout == ""


# --- errors in a command ---------------------------------------------------------------------------------------------


def failing_with(error: BaseException):
    """A command line of one command that raises the error, wrapped as the real ones are."""
    import typer

    def fail() -> None:
        raise error

    single = typer.Typer(pretty_exceptions_enable=False)
    single.callback()(lambda: None)
    single.command("fail")(errors.command(fail))
    return single


class OutOfMemoryError(RuntimeError):
    """Named as torch's, which the command line recognises without importing torch."""


@pytest.mark.parametrize(
    ("error", "code", "stderr"),
    [
        (PiipError("it broke; mend it"), 1, "error: it broke; mend it\n"),
        (ConfigError("key: wrong"), 2, "error: key: wrong\n"),
        (CheckError("2 problems found"), 3, "error: 2 problems found\n"),
        (Stopped("stopped at step 7"), 75, "error: stopped at step 7\n"),
        (KeyboardInterrupt(), 130, "interrupted\n"),
        (KeyboardInterrupt("saved step 7"), 130, "interrupted: saved step 7\n"),
        (FileNotFoundError(2, "No such file or directory", "a.jpg"), 1, "error: No such file or directory: a.jpg\n"),
        (OSError(28, "No space left on device"), 1, "error: No space left on device\n"),
        (OutOfMemoryError("CUDA out of memory"), 1, "error: the GPU is out of memory; lower data.batch_size"),
        (RuntimeError("odd\nmore"), 1, "error: unexpected error (RuntimeError: odd); run with --debug for the trace"),
        (KeyError(), 1, "error: unexpected error (KeyError: ); run with --debug for the traceback\n"),
    ],
)  # fmt: skip
def test_an_error_becomes_its_message_and_exit_code(error, code, stderr):
    done = CliRunner().invoke(failing_with(error), ["fail"])
    assert done.exit_code == code
    assert done.stderr.startswith(stderr)
    assert "Traceback" not in done.stderr
    assert done.stdout == ""


@pytest.mark.parametrize("error", [PiipError("it broke"), ValueError("odd")])
def test_debug_shows_the_traceback_and_keeps_the_exit_code(error):
    done = CliRunner().invoke(failing_with(error), ["fail", "--debug"])
    assert done.exit_code == 1
    assert "Traceback" in done.stderr


@pytest.mark.parametrize("arguments", [["--debug", "flops", "nope"], ["flops", "nope", "--debug"]])
def test_debug_may_stand_before_or_after_the_command(arguments):
    done = run(*arguments)
    assert done.exit_code == 2
    assert "Traceback" in done.stderr


def test_ctrl_c_exits_130_without_a_traceback():
    """A real signal, sent while a command runs."""
    kill = "lambda: os.kill(os.getpid(), signal.SIGINT)"
    code = f"import os, signal, piip.config.load\npiip.config.load.shipped_configs = {kill}"
    done = piip("models", code=code)
    assert done.returncode == 130
    assert done.stderr == "interrupted\n"


def test_a_closed_pipe_is_no_news():
    read_end = subprocess.Popen(["true"], stdin=subprocess.PIPE, cwd=ROOT)
    read_end.wait()
    done = subprocess.run(
        [sys.executable, "-c", "import sys; sys.argv = ['piip', 'models']; from piip.cli.main import app; app()"],
        cwd=ROOT,
        stdout=read_end.stdin,
        stderr=subprocess.PIPE,
        text=True,
    )
    read_end.stdin.close()
    assert done.stderr == ""
    assert done.returncode == 1


# --- flops, models, doctor -------------------------------------------------------------------------------------------


def test_flops_json_is_one_document_of_integers():
    done = run("flops", "--branches", "ts", "--resolutions", "64,32", "--json")
    assert done.exit_code == 0, done.stderr
    document = json.loads(done.stdout)
    assert list(document) == ["config", "input", "paper", "actual", "parts", "uncounted"]
    assert document["input"] == [64, 64]
    assert [part["name"] for part in document["parts"]][:4] == ["T 64", "S 32", "interactions", "merge"]
    for key in ("params", "macs"):
        assert sum(part[key] for part in document["parts"]) == document["actual"][key]
        assert isinstance(document["paper"][key], int)


def test_flops_takes_an_official_name_and_gives_the_official_integers():
    document = json.loads(run("flops", "mask_rcnn_deit_tsb_1568_1120_672_fpn_1x_coco_bs16", "--json").stdout)
    assert document["paper"] == {"params": 148_774_891, "macs": 453_253_935_360}
    assert document["config"] == TSB


def test_flops_table_is_aligned_and_fits_a_terminal():
    lines = run("flops", "--branches", "ts", "--resolutions", "64,32").stdout.splitlines()
    start = next(index for index, line in enumerate(lines) if line.lstrip().startswith("part"))
    rows = lines[start + 2 : lines.index(next(line for line in lines if line.lstrip().startswith("total")))]
    assert len({line.index("%") for line in rows}) == 1
    assert "█" in "".join(rows)
    assert max(map(len, lines)) <= 80


def test_flops_compares_networks_by_config_and_letters():
    nano, width = "detection/mask_rcnn_piip_nano_shapes", "model.neck.out_channels"
    alone = [json.loads(run("flops", *words, "--json").stdout) for words in (["t"], [nano, f"{width}=8"])]
    assert json.loads(run("flops", "--branches", "t", "--json").stdout) == alone[0]
    assert json.loads(run("flops", nano, "t", "--json").stdout)[1] == alone[0]
    assert json.loads(run("flops", nano, "--json").stdout)["actual"]["macs"] > alone[1]["actual"]["macs"]
    lines = run("flops", nano, nano, f"{width}=8").stdout.splitlines()
    rows = [line.split() for line in lines if line.split()[:1] == [nano]]
    assert len(rows) == 2
    assert rows[0][-1] == rows[1][-1] == "1.00x"
    assert rows[0][2] == f"{alone[1]['actual']['params'] / 1e6:.1f}"


def test_models_lists_every_shipped_config_with_its_published_figures():
    from piip.config.load import shipped_configs

    document = json.loads(run("models", "--json").stdout)
    assert [row["name"] for row in document] == list(shipped_configs())
    row = next(row for row in document if row["name"] == TSB)
    assert row["official"] == "mask_rcnn_deit_tsb_1568_1120_672_fpn_1x_coco_bs16"
    assert (row["published"]["box_ap"], row["published"]["mask_ap"]) == (46.5, 41.3)
    assert row["paper"] == {"params": 148_774_891, "macs": 453_253_935_360}
    assert row["actual"]["params"] > row["paper"]["params"]
    assert row["checkpoint"] == "mask_rcnn_deit_tsb_1568_1120_672_fpn_1x_coco_bs16.pth"
    origins = {row["name"]: row["origin"] for row in document}
    assert origins[TSB] == "released"
    assert origins["detection/mask_rcnn_piip_tsb_896_896_896"] == "published"
    assert origins["detection/mask_rcnn_piip_nano"] == "ours"
    text = run("models").stdout
    assert all(name in text for name in shipped_configs())
    scores = {words[1]: words[-1] for words in map(str.split, text.splitlines()) if len(words) == 6}
    assert scores[TSB] == "46.5/41.3"
    assert scores["segmentation/upernet_piip_h6b_512_512"] == "59.85"
    assert scores["classification/piip_tsb_368_192_128"] == "82.1"
    assert max(len(line.rstrip()) for line in text.splitlines()) <= 101


def test_models_states_what_every_shipped_network_costs():
    """A config that is new or changed is missing here until `python -m piip.flops.recorded` has counted it."""
    document = json.loads(run("models", "--json").stdout)
    assert [row["name"] for row in document if row["actual"] is None] == []


def test_models_names_a_checkpoint_only_where_one_was_released():
    document = json.loads(run("models", "--json").stdout)
    missing = {row["name"].split("/")[1] for row in document if row["official"] and not row["checkpoint"]}
    assert {"mask_rcnn_convnext_b", "mask_rcnn_piip_h6b_1024_512_speedup"} < missing
    assert not missing & {"mask_rcnn_vit_b", "mask_rcnn_piip_ct_cs_cb_1024_672_448", "dino_piip_h6b_1024_768"}
    assert not any(name.startswith(("upernet_", "piip_")) for name in missing)  # all of segmentation and classification


def test_doctor_finds_nothing_wrong_here():
    done = run("doctor", "--json")
    document = json.loads(done.stdout)
    assert document["ok"], document
    assert done.exit_code == 0
    checks = [finding for finding in document["findings"] if finding["group"] == "checks"]
    assert {finding["status"] for finding in checks} == {"ok"}
    assert len(run("doctor").stdout.splitlines()) <= 30


@pytest.mark.parametrize("name", ["deform_attn", "pyramid_resize"])
def test_doctor_exits_3_when_an_op_is_wrong(monkeypatch, name):
    """A kernel that is off by a thousandth, and one that raises."""
    import piip.doctor

    right = getattr(piip.doctor, name)

    def slightly_wrong(*args, **kwargs):
        result = right(*args, **kwargs)
        return result * 1.001 if name == "deform_attn" else [level * 1.001 for level in result]

    def broken(*args, **kwargs):
        raise RuntimeError("no kernel image")

    for replacement, words in (
        (slightly_wrong, r"differs from its definition by [12]\.\de-03"),
        (broken, "failed: no kernel image"),
    ):
        monkeypatch.setattr(piip.doctor, name, replacement)
        done = run("doctor")
        assert done.exit_code == 3
        assert "1 problem found" in done.stderr
        assert re.search(words, done.stdout)
        assert json.loads(run("doctor", "--json").stdout)["ok"] is False


# --- data that are not there -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "missing"),
    [
        (["train", TSB], "data.train.images: there is no data/coco/train2017"),
        (["eval", TSB, "--weights", "README.md"], "data.val.images: there is no data/coco/val2017"),
        (
            ["eval", TSB, "--weights", "README.md", "data.val.images=docs"],
            "data.val.annotations: there is no data/coco/ann",
        ),
        (
            ["train", "piip_sbl_384_192_128", "data.val.root=/nowhere"],
            "data.train.root: there is no data/imagenet/train",
        ),
        (
            ["eval", "piip_sbl_384_192_128", "--weights", "README.md", "data.val.root=/nowhere"],
            "data.val.root: there is no /nowhere",
        ),
    ],
)
def test_data_that_are_not_there_are_told_before_torch_is_imported(arguments, missing):
    end = "import atexit; atexit.register(lambda: print('torch' in sys.modules))"
    done = piip(*arguments, code=end)
    assert done.returncode == 2
    assert done.stderr.startswith(f"error: {missing}")
    relative = "" if "/nowhere" in missing else f" (relative to the current directory {ROOT})"
    assert done.stderr.endswith(f"{relative}\n")
    assert done.stdout == "False\n"


def test_an_image_that_is_not_there_is_told_before_torch_is_imported():
    end = "import atexit; atexit.register(lambda: print('torch' in sys.modules))"
    done = piip("predict", TSB, "missing*", "missing.jpg", "--weights", __file__, "--output", "nowhere", code=end)
    assert (done.returncode, done.stdout, done.stderr) == (2, "False\n", "error: image not found: missing.jpg\n")


def test_an_output_folder_that_is_a_file_is_a_usage_error():
    for command in (
        ["eval", TSB, "--weights", "README.md"],
        ["train", TSB],
        ["predict", TSB, "a.jpg", "--weights", "w"],
    ):
        assert run(*command, "--output", __file__).exit_code == 2
