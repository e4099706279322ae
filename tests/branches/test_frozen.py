"""Branches of which a part does not train."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from piip.backbone.config import BackboneConfig
from piip.backbone.piip import PIIP
from piip.engine.state import RunState
from piip.engine.train import train
from piip.errors import ConfigError
from piip.load import build_model
from piip.weights.files import load_weights
from tests.engine.tiny import tiny_config

VIT = {"embed_dim": 32, "depth": 4, "num_heads": 2, "pretrain_size": 64, "drop_path": 0.5}
CONVNEXT = {"type": "convnext", "model": "convnext_atto"}


def backbone(*, freeze: object, first: dict[str, Any] = VIT) -> PIIP:
    config = {
        "branches": [first | {"freeze": freeze}, VIT],
        "resolutions": [64, 64],
        "interactions": 2,
        "interaction": {"num_heads": 4},
    }
    torch.manual_seed(0)
    network = PIIP(BackboneConfig.model_validate(config))
    for name, parameter in network.named_parameters():
        if name.endswith("gamma"):
            nn.init.normal_(parameter)
    return network


def saved_bytes(network: PIIP, images: torch.Tensor) -> int:
    """What a forward pass keeps for the backward pass, parameters not counted."""
    own = {parameter.untyped_storage().data_ptr() for parameter in network.parameters()}
    kept: dict[int, int] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        maps = network(images)
    assert maps[0].requires_grad
    return sum(kept.values())


@pytest.mark.parametrize(
    ("freeze", "trains"),
    [
        (True, []),
        (2, ["blocks.2", "blocks.3"]),
        ("embed", ["blocks.0", "blocks.1", "blocks.2", "blocks.3"]),
        (False, ["pos_embed", "patch_embed.proj", "blocks.0", "blocks.1", "blocks.2", "blocks.3"]),
    ],
)
def test_just_what_is_not_frozen_gets_gradients(freeze: object, trains: list[str]) -> None:
    network = backbone(freeze=freeze)
    network(torch.randn(1, 3, 64, 64))[0].square().mean().backward()
    branch = network.branches[0]
    moved = {name for name, parameter in branch.named_parameters() if parameter.grad is not None}
    assert moved == {name for name, _ in branch.named_parameters() if name.startswith(tuple(trains))}
    assert all(p.grad is not None for p in network.branches[1].parameters())
    assert all(p.grad is not None for p in network.interactions.parameters())


def test_a_frozen_branch_keeps_less_for_the_backward_pass() -> None:
    images = torch.randn(2, 3, 64, 64)
    trained, blocks, frozen = (saved_bytes(backbone(freeze=freeze), images) for freeze in (False, 2, True))
    assert frozen <= blocks < trained


def test_a_convolutional_branch_is_frozen_by_the_same_words() -> None:
    network = backbone(freeze=3, first=CONVNEXT)
    trains = [any(p.requires_grad for p in unit.parameters()) for unit in network.branches[0].units()]
    assert trains == [False] * 3 + [True] * (len(trains) - 3)


def test_more_blocks_than_there_are_cannot_be_frozen() -> None:
    with pytest.raises(ConfigError, match="freeze: 5 does not fit a branch that has 4 blocks"):
        backbone(freeze=5)


def test_a_frozen_branch_stays_as_it_was_while_the_rest_trains(tmp_path: Path) -> None:
    """In evaluation mode, without drop path, and in the weights that the run saves."""
    branch = {"depth": 1, "num_heads": 2, "pretrain_size": 64, "drop_path": 0.5}
    branches = [branch | {"embed_dim": 32, "freeze": True}, branch | {"embed_dim": 64}]
    changes = {"model__backbone__branches": branches, "schedule__epochs": 1}
    config = tiny_config(tmp_path / "data", **changes)
    cpu = torch.device("cpu")
    state = RunState(config, device=cpu, root=tmp_path, class_names=["a"] * 5, epoch_length=3, data={})
    state.train_mode()
    assert [branch.training for branch in state.model.backbone.branches] == [False, True]
    start = tmp_path / "start.pt"
    torch.save(state.model.state_dict(), start)
    train(config, output=tmp_path / "run", weights=start)
    load_weights(model := build_model(config.model), tmp_path / "run")
    before = state.model.state_dict()
    changed = {name for name, value in model.state_dict().items() if not torch.equal(value, before[name])}
    parts = {".".join(name.split(".")[:3]) for name in changed if name.startswith("backbone")}
    assert "backbone.branches.0" not in parts
    assert {"backbone.branches.1", "backbone.interactions.0"} <= parts
