"""Checkpoints that others wrote are read without executing anything in them."""

from __future__ import annotations

import argparse
import os
from collections import OrderedDict
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from piip.convert.sources import read_state_dict
from piip.errors import CheckpointError

WEIGHTS = {"a.weight": torch.arange(6.0).view(2, 3), "a.bias": torch.ones(2)}


@pytest.mark.parametrize(
    "wrap",
    [
        lambda w: w,
        lambda w: {"state_dict": OrderedDict(w), "meta": {"CLASSES": ("cat", "dog")}},
        lambda w: {"model": w, "epoch": 3},
        lambda w: {"module": w},
        lambda w: {"state_dict": {f"module.{k}": v for k, v in w.items()}},
        lambda w: {"model": {f"module.model.{k}": v for k, v in w.items()}},
    ],
)
def test_weights_are_found_wherever_training_programs_put_them(wrap, tmp_path: Path) -> None:
    path = tmp_path / "weights.pth"
    torch.save(wrap(WEIGHTS), path)
    tensors, _ = read_state_dict(path)
    assert tensors.keys() == WEIGHTS.keys()
    assert tensors["a.weight"].equal(WEIGHTS["a.weight"])


def test_what_lies_beside_the_weights_is_returned(tmp_path: Path) -> None:
    path = tmp_path / "weights.pth"
    torch.save({"state_dict": WEIGHTS, "meta": {"CLASSES": ("cat", "dog")}}, path)
    assert read_state_dict(path)[1] == {"meta": {"CLASSES": ("cat", "dog")}}


def test_safetensors_are_read(tmp_path: Path) -> None:
    save_file(WEIGHTS, tmp_path / "weights.safetensors")
    assert read_state_dict(tmp_path / "weights.safetensors")[0]["a.bias"].equal(torch.ones(2))


class Command:
    """What a malicious file would hold."""

    def __reduce__(self):
        return os.system, ("exit 1",)


class Settings:
    """A class that the reader knows nothing of."""

    def __init__(self) -> None:
        self.lr = 1.0

    def __setstate__(self, state: object) -> None:
        raise AssertionError("a foreign class was brought to life")


@pytest.mark.parametrize("beside", [argparse.Namespace(lr=1), np.float64(0.5), np.zeros(3), Settings()])
def test_foreign_objects_beside_the_weights_are_dropped_unread(beside: object, tmp_path: Path) -> None:
    path = tmp_path / "weights.pth"
    torch.save({"model": WEIGHTS, "args": beside}, path)
    tensors, _ = read_state_dict(path)
    assert tensors["a.weight"].equal(WEIGHTS["a.weight"])


def test_averaged_weights_are_taken_on_demand(tmp_path: Path) -> None:
    path = tmp_path / "weights.pth"
    torch.save({"state_dict": WEIGHTS, "state_dict_ema": {key: -value for key, value in WEIGHTS.items()}}, path)
    assert read_state_dict(path)[0]["a.weight"].equal(WEIGHTS["a.weight"])
    assert read_state_dict(path, ema=True)[0]["a.weight"].equal(-WEIGHTS["a.weight"])
    torch.save({"state_dict": WEIGHTS}, path)
    with pytest.raises(CheckpointError, match="holds no averaged weights"):
        read_state_dict(path, ema=True)


def test_files_in_the_format_before_zip_archives_are_read(tmp_path: Path) -> None:
    path = tmp_path / "old.pth"
    torch.save({"model": WEIGHTS}, path, _use_new_zipfile_serialization=False)
    assert read_state_dict(path)[0]["a.bias"].equal(torch.ones(2))


def test_numpy_archives_are_read(tmp_path: Path) -> None:
    np.savez(tmp_path / "weights.npz", **{"a/kernel": np.arange(6.0).reshape(2, 3)})
    assert read_state_dict(tmp_path / "weights.npz")[0]["a/kernel"].tolist() == [[0, 1, 2], [3, 4, 5]]


def write_half(path: Path) -> None:
    torch.save(WEIGHTS, path)
    path.write_bytes(path.read_bytes()[:200])


@pytest.mark.parametrize(
    ("name", "write", "message"),
    [
        ("gone.pth", lambda path: None, "checkpoint not found: .*gone.pth"),
        ("half.pth", write_half, "half.pth is damaged"),
        (
            "half.safetensors",
            lambda path: path.write_bytes(b"\x10\0\0"),
            "half.safetensors is not a whole safetensors file",
        ),
        ("code.pth", lambda path: torch.save({**WEIGHTS, "run": Command()}, path), "asks for code to be run"),
        ("empty.pth", lambda path: torch.save({"epoch": 3}, path), "holds no tensors"),
        ("list.pth", lambda path: torch.save([1, 2], path), "holds no tensors"),
    ],
)
def test_unusable_files_are_refused_by_name(name: str, write, message: str, tmp_path: Path) -> None:
    write(tmp_path / name)
    with pytest.raises(CheckpointError, match=message):
        read_state_dict(tmp_path / name)
