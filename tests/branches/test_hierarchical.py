"""Networks of timm that are cut into blocks compute what timm computes, whatever their stages are made of."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from timm.models.convnext import ConvNeXtBlock, ConvNeXtStage
from torch import Tensor, nn

from piip.backbone.config import BackboneConfig
from piip.backbone.piip import PIIP
from piip.branches.base import Tokens
from piip.branches.config import BranchConfig
from piip.branches.hierarchical.chain import find_chain, sizing
from piip.branches.hierarchical.config import HierarchicalConfig
from piip.branches.hierarchical.hierarchical import Hierarchical
from piip.branches.timm_names import timm_network
from piip.errors import ConfigError

# The smallest of each family, and the widths and strides of its stages.
NAMES = {
    "swin_tiny_patch4_window7_224": [(96, 4), (192, 8), (384, 16), (768, 32)],
    "swinv2_tiny_window8_256": [(96, 4), (192, 8), (384, 16), (768, 32)],
    "swinv2_cr_tiny_224": [(96, 4), (192, 8), (384, 16), (768, 32)],
    "sam2_hiera_tiny": [(96, 4), (192, 8), (384, 16), (768, 32)],
    "convnext_atto": [(40, 4), (80, 8), (160, 16), (320, 32)],
    "convnextv2_atto": [(40, 4), (80, 8), (160, 16), (320, 32)],
    "davit_tiny": [(96, 4), (192, 8), (384, 16), (768, 32)],
    "focalnet_tiny_srf": [(96, 4), (192, 8), (384, 16), (768, 32)],
    "inception_next_atto": [(40, 4), (80, 8), (160, 16), (320, 32)],
    "mambaout_femto": [(48, 4), (96, 8), (192, 16), (288, 32)],
    "poolformerv2_s12": [(64, 4), (128, 8), (320, 16), (512, 32)],
    "edgenext_xx_small": [(24, 4), (48, 8), (88, 16), (168, 32)],
    "fastvit_t8": [(48, 4), (96, 8), (192, 16), (384, 32)],
}


def pair(name: str, **settings: Any) -> tuple[Hierarchical, nn.Module]:
    """A branch, and timm's network with the same random weights."""
    branch = HierarchicalConfig(model=name, **settings).build().eval()
    network = timm.create_model(name, num_classes=0, **sizing(name)).eval()
    torch.manual_seed(0)
    for parameter in network.parameters():
        nn.init.normal_(parameter, std=0.05 if parameter.dim() > 1 else 0.3)
    branch.load_state_dict({key: value for key, value in network.state_dict().items() if key in branch.state_dict()})
    return branch, network


def run(branch: Hierarchical, images: Tensor, *stops: int) -> Tensor:
    x, start = branch.embed(images), 0
    for stop in (*stops, branch.depth):
        x, start = branch.run_blocks(x, start, stop), stop
    return x.map


def timms(network: nn.Module, name: str, images: Tensor) -> Tensor:
    """What the last block of the network returns while timm runs it (B, H, W, C)."""
    chain, seen = find_chain(name), []
    hook = network.get_submodule(chain.units[-1]).register_forward_hook(lambda _, __, output: seen.append(output))
    network.forward_features(images)
    hook.remove()
    return seen[0] if chain.channels_last[-1][1] else seen[0].permute(0, 2, 3, 1)


@pytest.mark.parametrize("name", NAMES)
def test_maps_are_timms_at_the_pretrained_size_and_at_another(name: str) -> None:
    branch, network = pair(name)
    assert list(dict.fromkeys(map(tuple, branch.specs))) == NAMES[name]
    for size in ((224, 224), (160, 288)):
        images = torch.randn(1, 3, *size)
        with torch.no_grad():
            expected, at_once, in_groups = timms(network, name, images), run(branch, images), run(branch, images, 2, 5)
        assert at_once.shape == (1, size[0] // 32, size[1] // 32, branch.specs[-1].channels)
        assert (at_once - expected).norm() / expected.norm() <= 1e-5
        torch.testing.assert_close(in_groups, at_once, rtol=0, atol=0)


@pytest.mark.parametrize("name", ["swin_tiny_patch4_window7_224", "sam2_hiera_tiny", "davit_tiny"])
def test_gradients_are_timms(name: str) -> None:
    branch, network = pair(name)
    images = torch.randn(1, 3, 64, 96)
    run(branch, images).square().mean().backward()
    timms(network, name, images).square().mean().backward()
    expected = {name: p.grad for name, p in network.named_parameters()}
    for key, parameter in branch.named_parameters():
        assert parameter.grad is not None, key
        torch.testing.assert_close(parameter.grad, expected[key], rtol=1e-3, atol=1e-4 * expected[key].abs().max())


@pytest.mark.parametrize(
    ("name", "multiple"), [("swin_tiny_patch4_window7_224", 4), ("sam2_hiera_tiny", 32), ("davit_tiny", 1)]
)
def test_images_of_any_size_are_taken(name: str, multiple: int) -> None:
    """The levels of a pyramid have odd sizes; what a network cannot take is resized to the next size that it can."""
    branch, _ = pair(name)
    images = torch.randn(1, 3, 103, 130)
    size = [-(-side // multiple) * multiple for side in (103, 130)]
    resized = F.interpolate(images, size=size, mode="bilinear", align_corners=False)
    with torch.no_grad():
        found = run(branch, images)
        torch.testing.assert_close(found, run(branch, resized))
    assert found.shape[1:3] == (4, 5)


def test_sams_hiera_takes_grids_that_its_windows_do_not_divide() -> None:
    """timm's own positions stop at multiples of 8 cells; those of the windows go on."""
    branch, network = pair("sam2_hiera_tiny")
    small, large = torch.zeros(1, 3, 96, 160), torch.zeros(1, 3, 128, 160)
    with torch.no_grad():
        assert branch.embed(small).map.shape == (1, 24, 40, 96)
        stem = network.patch_embed(large)
        torch.testing.assert_close(branch.embed(large).map, network._pos_embed(stem), rtol=0, atol=0)


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("resnet18", "has no stem followed by stages of blocks, being a ResNet"),
        ("caformer_s18", "does not compute on maps in stages.2.blocks.0"),
        ("mvitv2_tiny", "does not compute on maps"),
        ("maxvit_tiny_tf_224", "takes no image of"),
        ("swin_tiny_patch4_window7_225", "did you mean 'swin_tiny_patch4_window7_224'"),
    ],
)
def test_a_network_that_is_no_chain_of_blocks_is_refused_with_the_reason(name: str, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        HierarchicalConfig(model=name).build()


@pytest.mark.parametrize("change", [lambda x: x * 2, lambda x: x.mul_(2)], ids=["a new tensor", "in place"])
def test_a_network_that_computes_between_its_blocks_is_no_chain(
    change: Callable[[Tensor], Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A value that changes there is not passed over, though every shape fits."""
    forward = ConvNeXtStage.forward
    monkeypatch.setattr(ConvNeXtStage, "forward", lambda self, x: change(forward(self, x)))
    with pytest.raises(ValueError, match=r"computes something before stages\.1\.downsample"):
        find_chain.__wrapped__("convnext_femto")


def test_a_network_that_gives_its_blocks_more_than_a_map_is_no_chain(monkeypatch: pytest.MonkeyPatch) -> None:
    def forward(self: ConvNeXtStage, x: Tensor) -> Tensor:
        for block in self.blocks:
            x = block(x, 2)
        return x

    monkeypatch.setattr(ConvNeXtStage, "forward", forward)
    monkeypatch.setattr(ConvNeXtBlock, "forward", lambda self, x, factor=1: x * factor)
    with pytest.raises(ValueError, match=r"gives stages\.0\.blocks\.0 more than a map"):
        find_chain.__wrapped__("convnext_femto")


def test_a_branch_is_built_where_gradients_are_off_for_good() -> None:
    """Tensors of inference mode count no writes."""
    timm_network.cache_clear()
    with torch.inference_mode():
        assert find_chain.__wrapped__("convnext_femto").units
    assert find_chain.__wrapped__("convnext_femto").units


def test_the_type_follows_from_the_model() -> None:
    kinds = {
        name: BranchConfig.meant_type({"model": name}) for name in ("swin_tiny_patch4_window7_224", "convnext_tiny")
    }
    assert kinds == {"swin_tiny_patch4_window7_224": "hierarchical", "convnext_tiny": "convnext"}


def test_a_swin_exchanges_with_a_vit_at_its_own_widths_and_strides() -> None:
    settings = {
        "branches": [{"model": "swin_tiny_patch4_window7_224"}, {"size": "T"}],
        "resolutions": [128, 64],
        "interactions": [[1, 4, 11, 14], [2, 5, 8, 11]],
        "outputs": [0, 1, 2],
        "interaction": {"num_heads": 8},
    }
    backbone = PIIP(BackboneConfig.model_validate(settings))
    maps = backbone(torch.randn(1, 3, 128, 128))
    assert [tuple(x.shape[1:]) for x in maps] == [(192, 32, 32), (192, 16, 16), (192, 8, 8), (192, 4, 4)]
    sum(x.square().mean() for x in maps).backward()
    assert all(p.grad is not None for p in backbone.branches[0].parameters())
    ids = backbone.layer_ids()
    assert ids["branches.0.patch_embed.proj.weight"] == 0
    assert ids["branches.0.layers.3.blocks.1.norm1.weight"] == 15


def test_a_file_of_timm_is_loaded_and_stochastic_depth_and_checkpointing_change_nothing_else(tmp_path: Path) -> None:
    branch, network = pair("swin_tiny_patch4_window7_224")
    save_file(network.state_dict(), tmp_path / "swin.safetensors")
    fresh = HierarchicalConfig(model="swin_tiny_patch4_window7_224", drop_path=0.2, checkpoint_activations=True).build()
    fresh.load_pretrained(str(tmp_path / "swin.safetensors"))
    images = torch.randn(1, 3, 64, 64)
    assert isinstance(fresh.embed(images), Tokens)
    torch.testing.assert_close(run(fresh.eval(), images), run(branch, images))
    with pytest.raises(ConfigError, match="has no stochastic depth in timm: set drop_path to 0"):
        HierarchicalConfig(model="repvit_m0_9", drop_path=0.1).build()
