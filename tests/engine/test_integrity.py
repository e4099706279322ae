"""One damaged byte anywhere in a checkpoint never loads wrong weights, and is always an error that names the file."""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from piip.engine.checkpoint import load_trainer_state, read_evaluation, save_checkpoint, write_evaluation
from piip.errors import CheckpointError
from piip.weights import integrity
from piip.weights.files import load_weights, write_weights
from piip.weights.find import find_weights, newest_checkpoint
from piip.weights.integrity import read_document, read_meta, write_document

CONFIG = {"name": "tiny", "train": {"evaluate_ema": False}}
FILES = ("model.safetensors", "ema.safetensors", "trainer.pt", "meta.json", "evaluation.json")


def network(seed: int) -> nn.Linear:
    torch.manual_seed(seed)
    return nn.Linear(3, 4)


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    """The newer of two, whose moving average is another network than its weights."""
    for step in (1, 2):
        weights = {"model": network(0).state_dict(), "ema": network(1).state_dict()}
        trainer = {"step": step, "x": torch.arange(3)}
        path = save_checkpoint(tmp_path, step, weights=weights, trainer=trainer, config=CONFIG, class_names=["a", "b"])
        write_evaluation(path, {"metrics": {"ap": 0.5}, "best": None})
    return path


def damaged(file: Path) -> Iterator[int]:
    """Writes the file with one byte changed, again and again, and puts it back at the end."""
    whole = file.read_bytes()
    positions = range(0, len(whole), max(1, len(whole) // 100))
    for index, position in enumerate(positions):
        flipped = whole[position] ^ (1 << index % 8)
        file.write_bytes(whole[:position] + bytes([flipped]) + whole[position + 1 :])
        yield position
    file.write_bytes(whole)


@pytest.mark.parametrize("name", FILES)
def test_one_flipped_byte_falls_back_or_changes_nothing(
    checkpoint: Path, name: str, caplog: pytest.LogCaptureFixture
) -> None:
    expected = network(0).state_dict()
    evaluation = read_evaluation(checkpoint)
    for position in damaged(checkpoint / name):
        newest = newest_checkpoint(checkpoint.parent)
        assert newest is not None
        found = read_evaluation(checkpoint)
        if position in range(3, 12) and name.endswith(".json"):
            # The key of the checksum itself: what it covers is whole.
            assert newest.name == "2" or name == "meta.json"
            assert found is None or found.items() >= (evaluation or {}).items()
        else:
            assert newest.name == ("2" if name == "evaluation.json" else "1"), position
            assert found == (None if name == "evaluation.json" else evaluation)
        for given in (checkpoint, checkpoint / "model.safetensors"):
            model = network(2)
            with suppress(CheckpointError):
                load_weights(model, given)
                # What was not damaged, or nothing that matters: the name of the checksum itself.
                assert all(torch.equal(value, expected[key]) for key, value in model.state_dict().items()), position
    assert ("counts as not evaluated" if name == "evaluation.json" else "trying an earlier one") in caplog.text


def test_a_flipped_byte_of_a_weight_file_that_stands_alone_is_seen(tmp_path: Path) -> None:
    file = tmp_path / "converted.safetensors"
    write_weights(file, network(0).state_dict(), config=CONFIG, class_names=["a", "b"])
    seen = 0
    for _ in damaged(file):
        model = network(2)
        try:
            loaded = load_weights(model, file)
        except CheckpointError:
            seen += 1
        else:
            assert all(torch.equal(value, network(0).state_dict()[key]) for key, value in model.state_dict().items())
            assert (loaded.class_names, loaded.config) == (["a", "b"], CONFIG)
    # Two keys of the header are all that may go unseen: that of the checksum, and that of all that is not a tensor.
    assert seen >= 85
    load_weights(network(2), file)


@pytest.mark.parametrize("name", ["meta.json", "evaluation.json"])
@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"\xff\xfe", b"[" * 20_000, b'{"step": 1}', b"FIFO", None])
def test_documents_that_are_something_else_altogether_are_damage_too(
    checkpoint: Path, name: str, content: bytes | None
) -> None:
    (checkpoint / name).unlink()
    if content is None:
        (checkpoint / name).mkdir()
    elif content == b"FIFO":
        os.mkfifo(checkpoint / name)
    else:
        (checkpoint / name).write_bytes(content)
    newest = newest_checkpoint(checkpoint.parent)
    assert newest is not None
    if name == "meta.json":
        assert newest.name == "1"
    else:
        assert read_evaluation(checkpoint) in (None, {"step": 1})


def without_checksums(path: Path) -> None:
    """Makes a checkpoint one of last month, byte for byte as it was written then."""
    for name in ("model.safetensors", "ema.safetensors"):
        data = (path / name).read_bytes()
        size = int.from_bytes(data[:8], "little")
        header = json.loads(data[8 : 8 + size])
        del header["__metadata__"]["checksum"]
        text = json.dumps(header, separators=(",", ":")).encode()
        (path / name).write_bytes(len(text).to_bytes(8, "little") + text + data[8 + size :])
    meta = json.loads((path / "meta.json").read_text())
    del meta["checksum"]
    described = integrity.describe_files(path)
    meta["files"] = {name: described[name] for name in meta["files"]}
    (path / "meta.json").write_text(json.dumps(meta, indent=1))
    evaluation = json.loads((path / "evaluation.json").read_text())
    del evaluation["checksum"]
    (path / "evaluation.json").write_text(json.dumps(evaluation, indent=1))


def test_checkpoints_from_before_there_were_checksums_are_read_and_checked_as_then(checkpoint: Path) -> None:
    without_checksums(checkpoint)
    assert newest_checkpoint(checkpoint.parent) == checkpoint
    assert read_evaluation(checkpoint) == {"metrics": {"ap": 0.5}, "best": None}
    model = network(2)
    load_weights(model, checkpoint)
    assert torch.equal(model.weight, network(0).weight)
    # By name too, for meta.json lists the file.
    file = checkpoint / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-1] + b"\x00")
    with pytest.raises(CheckpointError, match=re.escape(f"{file} is damaged: its checksum is wrong")):
        load_weights(model, file)


def test_a_document_comes_back_without_its_checksum_and_with_zeros_of_its_own(tmp_path: Path) -> None:
    document = {"zeros": "0" * 64, "x": [1, None], "ü": "é"}
    write_document(tmp_path / "d.json", document)
    assert read_document(tmp_path / "d.json") == document
    assert json.loads((tmp_path / "d.json").read_text()).keys() == {"checksum", *document}


def test_a_file_is_hashed_once_in_a_process(checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for file in checkpoint.iterdir():
        os.utime(file, (1, 1))
    hashed: list[str] = []
    original = integrity._digest
    monkeypatch.setattr(integrity, "_digest", lambda file: hashed.append(file.name) or original(file))
    for _ in range(2):
        read_meta(checkpoint)
        load_weights(network(2), checkpoint)
        load_weights(network(2), checkpoint / "ema.safetensors")
    assert sorted(hashed) == ["ema.safetensors", "model.safetensors", "trainer.pt"]


def test_of_a_checkpoint_only_the_weights_that_are_taken_are_hashed(
    checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hashed: set[str] = set()
    original = integrity._digest
    monkeypatch.setattr(integrity, "_digest", lambda file: hashed.add(file.name) or original(file))
    load_weights(network(2), checkpoint)
    assert hashed == {"model.safetensors"}


class Foreign:
    pass


@pytest.mark.parametrize(
    "state", [{"step": 1, "x": Foreign()}, [1, 2], {"f": os.system}], ids=["class", "no dict", "function"]
)
def test_trainer_states_of_others_are_refused_without_advice_to_execute_them(checkpoint: Path, state: Any) -> None:
    torch.save(state, checkpoint / "trainer.pt")
    with pytest.raises(CheckpointError, match=r"trainer\.pt") as caught:
        load_trainer_state(checkpoint)
    assert "weights_only" not in str(caught.value)
    assert len(str(caught.value).splitlines()) == 1


def test_pointers_with_damaged_bytes_lead_nowhere(checkpoint: Path) -> None:
    root = checkpoint.parent
    (root / "best").write_bytes(b"\xff\xfe\x00")
    assert find_weights(root) == root / "last" / "model.safetensors" or find_weights(root).parent.name == "2"
    shutil.rmtree(checkpoint)
    assert load_file(find_weights(root)).keys() == {"weight", "bias"}
