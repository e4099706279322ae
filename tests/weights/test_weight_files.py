"""Weight files."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import nn

from piip.errors import CheckpointError, MissingFile
from piip.weights.files import load_file as load_into
from piip.weights.files import load_weights, write_weights


def test_equal_weights_make_equal_files(tmp_path: Path) -> None:
    state = {"a": torch.randn(3, 5), "b": torch.arange(4), "c": torch.randn(2).bfloat16()}
    about = {"config": {"name": "é", "x": [1, 2]}, "class_names": ["cat", "Straße"], "step": 7}
    files = [tmp_path / f"{index}.safetensors" for index in range(8)]
    for file in files:
        write_weights(file, state, **about)
    assert len({file.read_bytes() for file in files}) == 1
    with safe_open(files[0], framework="pt") as opened:
        assert opened.metadata()["format"] == "pt"
        assert all(opened.get_tensor(name).equal(value) for name, value in state.items())


def test_the_checksum_in_the_header_is_that_of_the_file_with_its_own_digits_as_zeros(tmp_path: Path) -> None:
    file = tmp_path / "w.safetensors"
    write_weights(file, {"a": torch.randn(3, 5), "empty": torch.zeros(0), "scalar": torch.tensor(2.0)}, step=7)
    with safe_open(file, framework="pt") as opened:
        checksum = opened.metadata()["checksum"]
    data = file.read_bytes()
    assert data.count(checksum.encode()) == 1
    assert hashlib.sha256(data.replace(checksum.encode(), b"0" * 64)).hexdigest() == checksum


@pytest.mark.parametrize(
    "dtype", [torch.float64, torch.float16, torch.bfloat16, torch.int64, torch.uint8, torch.bool, torch.float8_e4m3fn]
)
def test_every_type_is_written_as_the_library_reads_it(tmp_path: Path, dtype: torch.dtype) -> None:
    state = {"x": torch.arange(6).reshape(2, 3).to(dtype), "odd": torch.ones(3, dtype=torch.uint8), "y": torch.ones(1)}
    write_weights(tmp_path / "w.safetensors", state | {"turned": state["x"].T})
    found = load_file(tmp_path / "w.safetensors")
    assert found.keys() == {*state, "turned"}
    for name, value in state.items():
        assert found[name].dtype == value.dtype
        assert torch.equal(found[name].view(torch.uint8), value.view(torch.uint8))
    assert found["turned"].float().equal(state["x"].T.float())


def test_the_mode_of_a_weight_file_follows_the_umask(tmp_path: Path) -> None:
    before = os.umask(0o027)
    try:
        write_weights(tmp_path / "w.safetensors", {"a": torch.ones(1)})
    finally:
        os.umask(before)
    assert (tmp_path / "w.safetensors").stat().st_mode & 0o777 == 0o640


def test_weights_that_are_not_finite_are_told_with_name_and_number(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    file, model = tmp_path / "w.safetensors", nn.Linear(3, 4)
    with torch.no_grad():
        model.weight[0] = 3e38  # their sum is infinite, but they are not
    write_weights(file, model.state_dict())
    load_into(model, file)
    assert caplog.text == ""
    with torch.no_grad():
        model.weight[1, 1:] = float("nan")
        model.bias[2] = float("-inf")
    write_weights(file, model.state_dict())
    load_into(nn.Linear(3, 4), file)
    assert "1 of the 4 values of bias are not finite, nor 2 in 1 more tensors" in caplog.text


def test_files_of_other_programs_need_no_checksum(tmp_path: Path) -> None:
    model = nn.Linear(3, 4)
    save_file(model.state_dict(), tmp_path / "w.safetensors", metadata={"checksum_of_another": "x"})
    load_into(nn.Linear(3, 4), tmp_path / "w.safetensors")


def test_what_a_header_says_is_not_believed_beyond_reason(tmp_path: Path) -> None:
    model = nn.Linear(3, 4)
    metadata = {"class_names": "[" * 20_000, "step": "9" * 5_000, "config": "[1]"}
    save_file(model.state_dict(), tmp_path / "w.safetensors", metadata=metadata)
    loaded = load_into(model, tmp_path / "w.safetensors")
    assert (loaded.class_names, loaded.step, loaded.config) == (None, None, None)


def network() -> nn.Sequential:
    return nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2))


def test_weights_of_a_half_written_file_are_refused(tmp_path: Path) -> None:
    file = tmp_path / "weights.safetensors"
    write_weights(file, network().state_dict())
    data = file.read_bytes()
    for size in (0, 5, 60, len(data) - 1):
        file.write_bytes(data[:size])
        with pytest.raises(CheckpointError, match=r"weights\.safetensors is not a whole safetensors file"):
            load_weights(network(), file)


def test_weights_of_another_network_are_refused_with_names_and_leave_the_model_alone(tmp_path: Path) -> None:
    file = tmp_path / "weights.safetensors"
    theirs = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 3), nn.Linear(3, 3))
    write_weights(file, theirs.state_dict(), config={"name": "theirs"})
    model = network()
    before = [parameter.clone() for parameter in model.parameters()]
    with pytest.raises(CheckpointError) as caught:
        load_weights(model, file)
    text = str(caught.value)
    assert "2 unexpected: 2.bias; 2.weight" in text
    assert "2 of another shape: 1.weight: file (3, 4), model (2, 4); 1.bias" in text
    assert "missing" not in text
    assert "'theirs'" in text
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), before, strict=True))

    write_weights(file, {f"backbone.branch1.blocks.{i}.weight": torch.ones(1) for i in range(5)})
    with pytest.raises(CheckpointError, match=r"4 missing: 0\.weight.*\n.*5 unexpected: .*; \.\.\.\n.*convert-ckpt"):
        load_weights(model, file)


def test_missing_weights_are_said_to_be_missing(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"weights not found: .*nowhere"):
        load_weights(network(), tmp_path / "nowhere.safetensors")
    with pytest.raises(MissingFile, match="holds no checkpoint"):
        load_weights(network(), tmp_path)


class Payload:
    """Runs code when it is unpickled without care."""

    def __init__(self, file: Path) -> None:
        self.file = file

    def __reduce__(self) -> tuple[Any, ...]:
        return (os.mkdir, (str(self.file),))


def test_a_pickle_is_read_as_tensors_only(tmp_path: Path) -> None:
    model, other = network(), network()
    torch.save({"state_dict": model.state_dict(), "epoch": 3}, tmp_path / "good.pth")
    load_weights(other, tmp_path / "good.pth")
    assert all(torch.equal(a, b) for a, b in zip(other.parameters(), model.parameters(), strict=True))
    torch.save({"model": model.state_dict(), "args": Payload(tmp_path / "executed")}, tmp_path / "evil.pth")
    with pytest.raises(CheckpointError, match=r"evil\.pth"):
        load_weights(other, tmp_path / "evil.pth")
    assert not (tmp_path / "executed").exists()
