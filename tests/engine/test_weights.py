"""Weight files."""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors import safe_open

from piip.engine.weights import write_weights


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
