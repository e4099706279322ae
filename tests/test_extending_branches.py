"""Branches that `piip` does not know: a Swin transformer of timm, and one that an installed package brings."""

from __future__ import annotations

import inspect
import json
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import pytest
import timm
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from piip.backbone.piip import PIIP
from piip.branches.base import Branch, Tokens
from piip.branches.config import BranchConfig
from piip.config.experiment import ModelConfig
from piip.features import FeatureSpec
from piip.flops.actual import actual_count
from tests.engine.tiny import environment

DOCUMENT = Path(__file__).parent.parent / "docs" / "extending.md"


class SwinConfig(BranchConfig):
    """A Swin transformer (Liu et al., 2021) of timm. Every layer and every downsampling between stages is a block."""

    type: Literal["swin"] = "swin"
    model: str = "swin_tiny_patch4_window7_224"
    depths: tuple[int, ...] = (2, 2, 6, 2)
    num_heads: tuple[int, ...] = (3, 6, 12, 24)
    dim: int = 96
    window_size: int = 7
    drop_path: float = 0.1

    @property
    def label(self) -> str:
        return self.model.partition("_patch")[0]

    def build(self) -> Swin:
        return Swin(self)


class Swin(Branch):
    def __init__(self, config: SwinConfig) -> None:
        super().__init__()
        network = timm.create_model(
            config.model,
            num_classes=0,
            depths=config.depths,
            num_heads=config.num_heads,
            embed_dim=config.dim,
            window_size=config.window_size,
            drop_path_rate=config.drop_path,
            strict_img_size=False,  # images of any size
            always_partition=True,
        )
        self.patch_embed, self.layers = network.patch_embed, network.layers  # under timm's names, for its weights
        stages = zip(network.feature_info, self._stages(), strict=True)
        self.specs = [FeatureSpec(info["num_chs"], info["reduction"]) for info, blocks in stages for _ in blocks]

    def _stages(self) -> list[list[nn.Module]]:
        return [[*([stage.downsample] if index else []), *stage.blocks] for index, stage in enumerate(self.layers)]

    def embed(self, images: Tensor) -> Tokens:
        return Tokens(self.patch_embed(images))

    def run_blocks(self, x: Tokens, start: int, stop: int) -> Tokens:
        y = x.map
        for block in [block for blocks in self._stages() for block in blocks][start:stop]:
            y = block(y)
        return Tokens(y)


# Defining a member makes it known to the whole process, in which other tests say which types there are.
del SwinConfig.members["swin"]


@pytest.fixture(scope="module", autouse=True)
def known() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(SwinConfig.members, "swin", SwinConfig)
        yield


SWIN = {"type": "swin", "depths": [1, 1, 2, 1], "num_heads": [1, 2, 4, 8], "dim": 24, "window_size": 4}
VIT = {"embed_dim": 64, "depth": 4, "num_heads": 2, "pretrain_size": 64}
STAGES = {"interactions": [[0, 2, 5, 7], [0, 1, 2, 3]], "outputs": [0, 1, 2]}  # the Swin's, as the pyramid's levels
MERGED = {"interactions": 2}  # all levels from one map


def swin_model(pyramid: dict[str, Any]) -> ModelConfig:
    backbone = {"branches": [SWIN, VIT], "resolutions": [128, 64], "interaction": {"num_heads": 2}}
    return ModelConfig.model_validate({"backbone": backbone | pyramid, "head": {"num_classes": 5}})


def test_a_swin_is_a_branch_in_sixty_lines() -> None:
    assert sum(len(inspect.getsource(part).splitlines()) for part in (SwinConfig, Swin)) <= 60


def test_a_swin_branch_computes_what_timm_computes() -> None:
    network = timm.create_model(SwinConfig().model, features_only=True, img_size=64, always_partition=True).eval()
    branch = SwinConfig().build().eval()
    state = {key.replace("layers_", "layers."): value for key, value in network.state_dict().items()}
    branch.load_state_dict(state)
    images = torch.randn(1, 3, 64, 64)
    x, start = branch.embed(images), 0
    for stop, expected in zip((2, 5, 12, 15), network(images), strict=True):
        x, start = branch.run_blocks(x, start, stop), stop
        torch.testing.assert_close(x.map, expected, atol=1e-4, rtol=1e-4)
        assert branch.specs[stop - 1] == (expected.shape[3], 64 // expected.shape[1])


@pytest.mark.parametrize(("pyramid", "strides"), [(STAGES, (4, 8, 16, 32)), (MERGED, (8, 16, 32, 64))])
def test_a_swin_and_a_vit_learn_in_one_pyramid(pyramid: dict[str, Any], strides: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    backbone = PIIP(swin_model(pyramid).backbone)
    images = torch.randn(2, 3, 64, 128)
    assert [tuple(x.shape) for x in backbone(images)] == [(2, 64, 64 // s, 128 // s) for s in strides]
    wanted = [torch.randn_like(x) for x in backbone(images)]
    optimizer = torch.optim.Adam(backbone.parameters(), lr=1e-3)
    losses = []
    for _ in range(6):
        loss = sum(F.mse_loss(x, y) for x, y in zip(backbone(images), wanted, strict=True))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0]
    assert all(parameter.grad is not None for parameter in backbone.parameters())


def test_what_a_swin_costs_in_a_pyramid_is_what_it_costs_alone() -> None:
    count = actual_count(swin_model(STAGES), (128, 128))
    (cost,) = (part.cost for part in count.parts if part.name == "swin_tiny 128")
    branch = SwinConfig(**{key: value for key, value in SWIN.items() if key != "type"}).build().eval()
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        branch.run_blocks(branch.embed(torch.randn(1, 3, 128, 128)), 0, branch.depth)
    assert cost.macs == counter.get_total_flops() // 2
    assert cost.params == sum(parameter.numel() for parameter in branch.parameters())


INSTALLED = """
from __future__ import annotations

from typing import Literal

import torch.nn.functional as F
from torch import Tensor, nn

from piip.branches.base import Branch, Tokens
from piip.branches.config import BranchConfig
from piip.features import FeatureSpec
"""


def test_an_installed_package_brings_a_branch(tmp_path: Path) -> None:
    shown = re.search(r"^## A branch\n.*?^```python\n(.*?)^```", DOCUMENT.read_text(), re.MULTILINE | re.DOTALL)
    (tmp_path / "toy.py").write_text(INSTALLED + shown[1])
    (tmp_path / "toy-1.0.dist-info").mkdir()
    (tmp_path / "toy-1.0.dist-info" / "METADATA").write_text("Metadata-Version: 2.1\nName: toy\nVersion: 1.0\n")
    (tmp_path / "toy-1.0.dist-info" / "entry_points.txt").write_text("[piip.branches]\npatches = toy:PatchesConfig\n")
    backbone = "{branches: [{type: patches, dim: 32}], resolutions: [64], interactions: 1}"
    (tmp_path / "toy.yaml").write_text(f"base: detection/mask_rcnn_piip_nano_shapes\nmodel: {{backbone: {backbone}}}\n")
    command = [sys.executable, "-m", "piip", "flops", tmp_path / "toy.yaml", "--json"]
    env = environment()
    env["PYTHONPATH"] += f":{tmp_path}"
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["parts"][0]["name"] == "patches 64"
