"""Configs and overrides that would take the machine: each ends at once, in few words."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from piip.config.load import load_config
from piip.errors import DataError
from tests.config.cases import MINIMAL, SHAPES, message

BOMB = ", ".join(
    ["a0: &a0 [x, x, x]", *(f"a{level}: &a{level} [{', '.join([f'*a{level - 1}'] * 9)}]" for level in range(1, 12))]
)
MERGED_BOMB = ", ".join(
    ["a0: &a0 {x: 1}", *(f"a{n}: &a{n} {{<<: [{', '.join([f'*a{n - 1}'] * 9)}]}}" for n in range(1, 12))]
)
# Seconds, with room for a busy machine: unguarded, these take minutes, or all memory.
AT_ONCE = 10

# The YAML, and what is said of it.
HOSTILE = [
    ("[" * 20_000, "more than 50 deep"),
    ("{a: " * 20_000, "more than 50 deep"),
    ("\n" + "- " * 100_000, "more than 50 deep"),
    (f"{{{BOMB}}}", "more than 10000 values, anchors written out"),
    (f"{{{MERGED_BOMB}}}", "more than 10000 values, anchors written out"),
    (f'[&a "{"x" * 200_000}", {", ".join(["*a"] * 2000)}]', "more than 10000 values, anchors written out"),
    ("[" + "1, " * 50_000 + "]", "more than 10000 values"),
    ("{a: &a [*a]}", "an anchor refers to itself"),
    ("9" * 5000, "'999999999999999999999999999999...' of 5000 characters is no number or date"),
    ("9223372036854775808", "'9223372036854775808' is a number beyond reason"),
    ("-1" + "0" * 400, "of 402 characters is a number beyond reason"),
    ("2020-13-45", "'2020-13-45' is no number or date"),
    ("!!int abc", "'abc' is no number or date"),
    ("x" * 300_000, "has more than 256 kB"),
]


@pytest.mark.parametrize(("text", "words"), HOSTILE, ids=range(len(HOSTILE)))
def test_hostile_yaml_ends_at_once_in_a_message(write, text: str, words: str) -> None:
    path = write(f"optim: {text}")
    for call in (lambda: load_config(path), lambda: load_config(SHAPES, [f"optim={text}"])):
        start = time.process_time()
        found = message(call)
        assert time.process_time() - start < AT_ONCE
        assert words in found
        assert len(found) < 300


@pytest.mark.parametrize(
    "text",
    [
        "\n".join(f"key{n}: 1" for n in range(4900)),
        f"schedule: {{milestones: [{', '.join(['x'] * 4900)}]}}",
        f"model: {{backbone: {{branches: [{', '.join(['{k: 1}'] * 3000)}]}}}}",
        f"model: {{backbone: {{every_branch: {{{', '.join(f'k{n}: 1' for n in range(1500))}}}, "
        f"branches: [{', '.join(['{}'] * 6000)}]}}}}",
        f"optim: {{betas: [{', '.join(['[' * 40 + ']' * 40] * 200)}]}}",
    ],
    ids=["keys", "items", "branches", "every_branch", "nested"],
)
def test_thousands_of_mistakes_are_told_in_a_screen(write, text: str) -> None:
    start = time.process_time()
    found = message(load_config, write(text))
    assert time.process_time() - start < AT_ONCE
    assert len(found) < 10_000


def test_a_line_at_fault_is_named(write) -> None:
    path = write(MINIMAL + "train:\n  seed: 2020-13-45")
    assert message(load_config, path) == f"{path}, line 13: '2020-13-45' is no number or date"


@pytest.mark.parametrize(
    "text", ["train: {seed: 1}\noptim: {lr: 1}\ntrain: {seed: 2}", "\ntrain: {\nseed: 1,\n\nseed: 1}"]
)
def test_a_key_given_twice_is_named_with_both_lines(write, text: str) -> None:
    path = write(text)
    key, first, second = ("train", 1, 3) if text.startswith("train") else ("seed", 3, 5)
    assert message(load_config, path) == f"{path}, line {second}: '{key}' is given twice (line {first})"


def test_an_anchor_may_be_used_often_and_its_copies_are_changed_one_by_one(write) -> None:
    path = write(
        MINIMAL.replace("[[64, 64]]", "&size [[64, 64]]", 1).replace("{resize: [[64, 64]]}", "{resize: *size}")
    )
    config = load_config(path, ["data.train_transforms.resize.0.0=32"])
    assert (config.data.train_transforms.resize, config.data.val_transforms.resize) == (((32, 64),), ((64, 64),))


def test_every_base_is_read_once_however_often_it_is_named(write, monkeypatch: pytest.MonkeyPatch) -> None:
    write(MINIMAL, "x0.yaml")
    for level in range(1, 26):
        write(f"base: [x{level - 1}.yaml, x{level - 1}.yaml]\ntrain: {{seed: {level}}}", f"x{level}.yaml")
    path = write("base: x25.yaml")
    opened: list[str] = []
    whole = Path.open
    monkeypatch.setattr(Path, "open", lambda self, mode: opened.append(self.name) or whole(self, mode))
    assert load_config(path).train.seed == 25
    assert sorted(opened) == sorted(["experiment.yaml", *(f"x{level}.yaml" for level in range(26))])


@pytest.mark.parametrize("name", ["x" * 5000, "a/" * 3000, "\\0"])
def test_what_is_no_name_is_no_file_either(write, name: str) -> None:
    assert "is neither a file relative to this one nor a shipped name" in message(load_config, write(f'base: "{name}"'))
    assert "unknown config" in message(load_config, name.replace("\\0", "\0"))
    path = write(MINIMAL.replace("{type: shapes, images: 4}", f'{{type: coco, images: "{name}", annotations: b}}'))
    with pytest.raises(DataError, match=r"data\.train\.images: there is no "):
        load_config(path).data.train.check_files("data.train")


def test_a_chain_of_bases_without_an_end_is_refused(write) -> None:
    write(MINIMAL, "x0.yaml")
    for level in range(1, 1501):
        write(f"base: x{level - 1}.yaml", f"x{level}.yaml")
    start = time.process_time()
    assert message(load_config, write("base: x1500.yaml")).endswith("more than 100 bases, those of its bases included")
    assert time.process_time() - start < AT_ONCE
