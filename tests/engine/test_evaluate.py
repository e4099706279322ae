"""Evaluation in lower precision, within a training run and on its own."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from piip.engine.evaluate import run_evaluation
from piip.engine.train import train
from piip.load import build_model
from piip.model import Model
from piip.weights.files import load_file
from piip.weights.find import follow
from tests.engine.tiny import tiny_config


def test_evaluation_in_bfloat16_holds_such_weights_and_leaves_those_in_training_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = tiny_config(tmp_path / "data", train__precision="bf16", train__ema=None, schedule__epochs=1)
    held: list[set[torch.dtype]] = []
    infer = Model.infer_batch

    def spy(self: Model, batch: object) -> object:
        held.append({parameter.dtype for parameter in self.backbone.parameters()})
        return infer(self, batch)

    monkeypatch.setattr(Model, "infer_batch", spy)
    metrics = train(config, output=tmp_path / "run")
    assert run_evaluation(config, weights=tmp_path / "run").metrics == metrics
    assert held
    assert all(dtypes == {torch.float32, torch.bfloat16} for dtypes in held)
    saved = follow(tmp_path / "run" / "checkpoints", "last")
    assert saved is not None
    model = build_model(config.model)
    load_file(model, saved / "model.safetensors")
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}
