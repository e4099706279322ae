"""Blocks and interactions compiled one by one: code shared over the depth, equal results, and all around it works."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import piip
from piip.backbone.config import BackboneConfig
from piip.backbone.piip import PIIP
from piip.engine.train import train
from piip.load import build_model
from piip.precision import prepared_copy
from piip.regions import compile_regions, regions
from piip.weights.files import load_weights
from tests.engine.tiny import tiny_config


class Counter:
    """A backend that runs the graphs as they are, and counts them."""

    def __init__(self) -> None:
        self.graphs = 0

    def __call__(self, graph: Any, _: Any) -> Any:
        self.graphs += 1
        return graph.forward


@pytest.fixture(autouse=True)
def fresh() -> Any:
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


def network(depth: int, **first: Any) -> PIIP:
    branch = {"num_heads": 2, "pretrain_size": 64, "window_size": 3, "depth": depth}
    config = {
        "branches": [{**branch, "embed_dim": 32} | first, {**branch, "embed_dim": 64}],
        "resolutions": [96, 64],
        "interactions": min(depth, 4),
        "interaction": {"num_heads": 4},
    }
    torch.manual_seed(0)
    backbone = PIIP(BackboneConfig.model_validate(config)).eval()
    for name, parameter in backbone.named_parameters():
        if name.endswith("gamma"):
            nn.init.normal_(parameter)
    return backbone


def test_regions_are_the_blocks_and_the_directions_of_interactions() -> None:
    names = set(regions(network(3)))
    assert names == {f"branches.{i}.blocks.{j}" for i in range(2) for j in range(3)} | {
        f"interactions.{i}.units.0.{direction}" for i in range(3) for direction in ("to_fine", "to_coarse")
    }


@pytest.mark.parametrize("depth", [2, 6])
def test_the_number_of_graphs_follows_the_kinds_of_blocks_and_not_the_depth(depth: int) -> None:
    backbone, count = network(depth), Counter()
    images = torch.randn(1, 3, 96, 96)
    with torch.inference_mode():
        expected = backbone(images)
        compile_regions(backbone, backend=count)
        found = backbone(images)
    assert count.graphs == 4  # a block of each branch, and each direction
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-5)


def test_other_sizes_need_a_bounded_number_of_graphs() -> None:
    backbone, count = network(2), Counter()
    compile_regions(backbone, backend=count)
    counts = []
    with torch.inference_mode():
        for size in ((96, 96), (96, 160), (128, 96), (160, 128), (192, 160), (96, 224)):
            backbone(torch.randn(1, 3, *size))
            counts.append(count.graphs)
    assert counts[-1] == counts[3] <= 3 * counts[0]


def test_foundation_branches_are_compiled_too() -> None:
    config = {
        "branches": [
            {"type": "timm_vit", "model": "vit_small_patch16_dinov3", "window_size": 2},
            {"type": "convnext", "model": "convnext_atto"},
        ],
        "resolutions": [64, 64],
        "interactions": 2,
        "interaction": {"num_heads": 4},
        "merge_width": 32,
    }
    backbone = PIIP(BackboneConfig.model_validate(config)).eval()
    images, count = torch.randn(1, 3, 64, 64), Counter()
    with torch.inference_mode():
        expected = backbone(images)
        compile_regions(backbone, backend=count)
        found = backbone(images)
    assert 0 < count.graphs < len(regions(backbone))
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4)


def test_gradients_names_and_copies_stay() -> None:
    plain = network(2).train()
    compiled = copy.deepcopy(plain)
    compile_regions(compiled, backend="aot_eager")
    assert list(compiled.state_dict()) == list(plain.state_dict())
    images = torch.randn(1, 3, 96, 96)
    for backbone in (plain.eval(), compiled.eval()):
        sum(x.square().mean() for x in backbone(images)).backward()
    for (name, a), b in zip(plain.named_parameters(), compiled.parameters(), strict=True):
        torch.testing.assert_close(b.grad, a.grad, rtol=1e-4, atol=1e-6, msg=name)
    for copied in (copy.deepcopy(compiled), prepared_copy(compiled, torch.float32)):
        assert not any(module._compiled_call_impl for module in copied.modules())


def test_a_compiled_run_is_resumed_and_gives_what_a_plain_one_gives(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With a moving average; resumed bit for bit."""
    compiled: list[nn.Module] = []

    def compile_eagerly(model: nn.Module) -> None:
        compiled.append(model)
        compile_regions(model, backend="aot_eager")

    monkeypatch.setattr("piip.engine.train.compile_regions", compile_eagerly)
    settings: dict[str, Any] = {"log_every": 1, "ema": 0.9}
    plain = train(tiny_config(tmp_path / "data", train=settings), output=tmp_path / "plain")
    assert not compiled
    settings["compile"] = True
    config = tiny_config(tmp_path / "data", train=settings)
    whole = train(config, output=tmp_path / "whole")
    assert whole.keys() == plain.keys()
    first, last = sorted((tmp_path / "whole" / "checkpoints").glob("[0-9]*"))
    train(config, output=tmp_path / "again", resume=str(first))
    assert len(compiled) == 2
    resumed, expected = (build_model(config.model), build_model(config.model))
    load_weights(resumed, tmp_path / "again" / "checkpoints" / last.name)
    load_weights(expected, last)
    for (name, a), b in zip(resumed.state_dict().items(), expected.state_dict().values(), strict=True):
        assert a.equal(b), name


def test_a_compiled_model_predicts_through_the_api() -> None:
    """With the real compiler, whose code is C++ here."""
    images = torch.randint(0, 255, (3, 64, 64), dtype=torch.uint8)
    plain = piip.create_model("detection/mask_rcnn_piip_nano", weights="shipped", scale=0.5)
    compiled = piip.create_model("detection/mask_rcnn_piip_nano", weights="shipped", scale=0.5, compile=True)
    expected, found = plain.predict(images), compiled.predict(images)
    torch.testing.assert_close(found["boxes"], expected["boxes"], rtol=1e-3, atol=1e-2)
    torch.testing.assert_close(found["scores"], expected["scores"], rtol=1e-3, atol=1e-4)
