"""Checkpoints that others wrote are read without executing anything in them."""

from __future__ import annotations

import argparse
import os
import pickle
import zipfile
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from piip.errors import CheckpointError, MissingFile
from piip.weights.read import read_state_dict

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


def test_what_torch_thinks_of_a_pickle_is_not_passed_on(tmp_path: Path, recwarn: pytest.WarningsRecorder) -> None:
    (tmp_path / "weights.pth").write_bytes(pickle.dumps({"state_dict": {"a.bias": 1.0}}, protocol=4))
    with pytest.raises(CheckpointError, match="is damaged or not a checkpoint"):
        read_state_dict(tmp_path / "weights.pth")
    assert not recwarn.list


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


def test_files_are_told_apart_by_their_content_not_their_name(tmp_path: Path) -> None:
    """What an older `convert-ckpt` wrote under .pth is safetensors."""
    save_file(WEIGHTS, tmp_path / "weights.pth")
    torch.save(WEIGHTS, tmp_path / "weights.npz")
    for path in tmp_path.iterdir():
        assert read_state_dict(path)[0]["a.weight"].equal(WEIGHTS["a.weight"])


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"<!DOCTYPE html>\n<html><body>Sign in</body></html>", "is a web page, not weights"),
        (b"\n <html lang=en>", "is a web page, not weights"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 12\n", "Git LFS.*`git lfs pull`"),
        (b"\xff\xd8\xff\xe0\x00\x10JFIF\x00" + bytes(90), "is a JPEG image"),
        (b"\x89PNG\r\n\x1a\n" + bytes(90), "is a PNG image"),
        (b"\x1f\x8b\x08" + bytes(90), "compressed by gzip; unpack it"),
        (b"\x89HDF\r\n\x1a\n" + bytes(90), "HDF5"),
        (b'{"step": 4, "files": {}}', r"is text, not weights, and begins with '\{\"step\": 4"),
        ("name: größe\n".encode() * 60, "is text, not weights, and begins with 'name: größe'"),
        (b"", "is damaged or not a checkpoint"),
        (bytes(range(256)) * 4, "is damaged or not a checkpoint"),
    ],
)
def test_what_is_no_weights_at_all_is_said_to_be_what_it_is(tmp_path: Path, content: bytes, message: str) -> None:
    for name in ("weights.pth", "weights.bin", *(["weights.safetensors"] if "damaged" not in message else [])):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(CheckpointError, match=f"{name} .*{message}") as caught:
            read_state_dict(tmp_path / name)
        assert len(str(caught.value).splitlines()) == 1


class Rebuild:
    """Calls one of torch's own functions with arguments that it does not take."""

    def __init__(self, function: Callable[..., object], *arguments: object) -> None:
        self.call = function, arguments

    def __reduce__(self):
        return self.call


HOSTILE = {
    "no arguments": Rebuild(torch._utils._rebuild_tensor_v2),
    "no storage": Rebuild(torch._utils._rebuild_tensor_v2, 1, 2, 3, 4, 5, 6),
    "parameter": Rebuild(torch._utils._rebuild_parameter, "a", "b", "c"),
    "code": Command(),
    "dictionary": Rebuild(OrderedDict, 5),
}


@pytest.mark.parametrize("name", HOSTILE)
@pytest.mark.parametrize("zipped", [True, False])
def test_a_hostile_pickle_is_an_error_in_our_words(tmp_path: Path, name: str, zipped: bool) -> None:
    path = tmp_path / "weights.pth"
    torch.save({"model": {**WEIGHTS, "x": HOSTILE[name]}}, path, _use_new_zipfile_serialization=zipped)
    with pytest.raises(CheckpointError, match=r"weights\.pth (asks for code to be run|is damaged)") as caught:
        read_state_dict(path)
    assert "weights_only" not in str(caught.value)
    assert len(str(caught.value).splitlines()) == 1


def test_tensors_that_no_network_has_are_no_weights(tmp_path: Path) -> None:
    odd = {
        1: torch.ones(1),
        "meta": torch.ones(1, device="meta"),
        "sparse": torch.ones(2, 2).to_sparse(),
        "quantized": torch.quantize_per_tensor(torch.ones(2), 0.1, 0, torch.qint8),
    }
    torch.save({**WEIGHTS, **odd}, tmp_path / "weights.pth")
    assert read_state_dict(tmp_path / "weights.pth")[0].keys() == WEIGHTS.keys()


def test_the_rest_of_a_checkpoint_is_not_taken_for_its_weights(tmp_path: Path) -> None:
    torch.save({"optimizer": {}, "rng": [], "epoch_length": 3}, tmp_path / "trainer.pt")
    with pytest.raises(CheckpointError, match="is the rest of a checkpoint, not its weights; give its folder"):
        read_state_dict(tmp_path / "trainer.pt")


def announced(path: Path, shape: str) -> None:
    """An archive with one array whose header claims a shape."""
    header = f"{{'descr': '<f4', 'fortran_order': False, 'shape': {shape}, }}".ljust(117) + "\n"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("a.npy", b"\x93NUMPY\x01\x00v\x00" + header.encode() + bytes(64))


def bomb(path: Path) -> None:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive, archive.open("a.npy", "w") as file:
        for _ in range(200):
            file.write(bytes(1 << 20))


def damaged_deflate(path: Path) -> None:
    np.savez_compressed(path, a=np.random.default_rng(0).normal(size=5000))
    data = bytearray(path.read_bytes())
    data[2000:2100] = bytes(100)
    path.write_bytes(data)


@pytest.mark.parametrize(
    ("write", "words"),
    [
        (lambda path: announced(path, "(100000000000000,)"), "Unable to allocate"),
        (lambda path: announced(path, "(100,)"), ""),
        (lambda path: announced(path, "(-1,)"), ""),
        (bomb, r"its \d+ bytes claim to unpack to 209715200"),
        (damaged_deflate, ""),
        (lambda path: np.savez(path, a=np.array(["text"])), ""),
        (lambda path: np.savez(path, a=np.array([{}], dtype=object)), ""),
        (lambda path: path.write_bytes(b"PK\x03\x04" + bytes(30)), ""),
    ],
)
def test_hostile_archives_of_arrays_are_refused(tmp_path: Path, write: Callable[[Path], None], words: str) -> None:
    path = tmp_path / "weights.npz"
    write(path)
    with pytest.raises(CheckpointError, match=rf"weights\.npz is damaged or not an archive of numpy arrays: .*{words}"):
        read_state_dict(path)


def test_an_archive_of_torch_that_claims_more_than_its_size_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "weights.pth"
    torch.save(WEIGHTS, path)
    with zipfile.ZipFile(path) as archive:
        entries = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in entries.items():
            archive.writestr(name, data + bytes(1 << 20 if name.endswith("/0") else 0))
    with pytest.raises(CheckpointError, match=r"is damaged .*claim to unpack to 1\d{6}"):
        read_state_dict(path)


def test_what_the_user_named_and_is_not_there_is_a_usage_error(tmp_path: Path) -> None:
    with pytest.raises(MissingFile) as caught:
        read_state_dict(tmp_path / "gone.pth")
    assert caught.value.exit_code == 2
