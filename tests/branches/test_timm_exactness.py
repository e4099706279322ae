"""Branches that are vision transformers of timm compute what timm computes, prefix tokens and rotary positions too."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from piip.backbone.config import BackboneConfig
from piip.backbone.piip import PIIP
from piip.branches.base import Tokens
from piip.branches.config import BranchConfig
from piip.branches.timm_vit.config import TimmViTConfig
from piip.branches.timm_vit.timm_vit import TimmViT
from piip.config.load import load_config
from piip.errors import ConfigError
from piip.flops.actual import actual_count
from piip.precision import prepared_copy

# The smallest of each family, and how many prefix tokens it carries.
NAMES = {
    "vit_tiny_patch16_224": 1,
    "deit_tiny_patch16_224": 1,
    "deit3_small_patch16_224": 1,
    "vit_small_patch14_dinov2": 1,
    "vit_small_patch14_reg4_dinov2": 5,
    "vit_medium_patch16_reg4_gap_256": 4,
    "vit_base_patch32_clip_224": 1,
    "vit_base_patch32_clip_quickgelu_224": 1,
    "vit_base_patch32_siglip_256": 0,
    "vit_base_patch16_siglip_gap_224": 0,
    "vit_wee_patch16_reg1_gap_256": 1,
    "vit_pwee_patch16_reg1_gap_256": 1,  # parallel attention and MLP
    "eva02_tiny_patch14_224": 1,
    "eva02_base_patch16_clip_224": 1,
    "vit_small_patch16_dinov3": 5,
    "vit_small_plus_patch16_dinov3": 5,
    "vit_pe_core_tiny_patch16_384": 1,
    "vit_pe_spatial_tiny_patch16_512": 1,
    "vit_medium_patch16_rope_reg1_gap_256": 1,
    "vit_small_patch16_rope_224": 1,
    "vit_small_patch16_rope_mixed_224": 1,
}
# Too large to run here: built without memory, and held against timm's names and shapes.
LARGE = [
    "vit_7b_patch16_dinov3",
    "vit_huge_plus_patch16_dinov3",
    "vit_giant_patch14_dinov2",
    "vit_so400m_patch14_siglip_384",
    "vit_large_patch14_clip_quickgelu_336",
    "eva02_large_patch14_448",
    "vit_pe_lang_gigantic_patch14_448",
    "vit_pe_spatial_gigantic_patch14_448",
    "vit_large_patch16_sapiens2",
]


def randomise(module: nn.Module) -> None:
    """Values for all parameters, of a size that keeps the tokens in range, so that none hides another."""
    torch.manual_seed(0)
    for parameter in module.parameters():
        nn.init.normal_(parameter, std=0.05 if parameter.dim() > 1 else 0.3)


def pair(name: str, **settings: Any) -> tuple[TimmViT, nn.Module]:
    """A branch, and timm's network with the same random weights."""
    branch = TimmViTConfig(model=name, **settings).build().eval()
    network = timm.create_model(name, num_classes=0, dynamic_img_size=True).eval()
    randomise(network)
    branch.load_state_dict({key: value for key, value in network.state_dict().items() if key in branch.state_dict()})
    return branch, network


def run(branch: TimmViT, images: Tensor, *stops: int) -> Tokens:
    x, start = branch.embed(images), 0
    for stop in (*stops, branch.depth):
        x, start = branch.run_blocks(x, start, stop), stop
    return x


@pytest.mark.parametrize("name", NAMES)
def test_tokens_are_timms_at_the_pretrained_size_and_at_another(name: str) -> None:
    branch, network = pair(name)
    patch = branch.patch_embed.patch_size[0]
    pretrained = network.patch_embed.grid_size[0] if name.endswith("tiny_patch16_224") else 7
    assert branch.num_prefix == NAMES[name]
    for rows, columns in ((pretrained, pretrained), (5, 9)):
        images = torch.randn(1, 3, rows * patch, columns * patch)
        with torch.no_grad():
            expected = network.forward_features(images)
            at_once, in_groups = run(branch, images), run(branch, images, 1, 3)
        assert at_once.map.shape[1:3] == (rows, columns)
        error = (network.norm(at_once.row()) - expected).norm() / expected.norm()
        assert error <= 1e-5
        torch.testing.assert_close(in_groups.row(), at_once.row(), rtol=0, atol=0)


@pytest.mark.parametrize(
    "name", ["vit_small_patch14_reg4_dinov2", "vit_small_patch16_dinov3", "eva02_tiny_patch14_224"]
)
def test_gradients_are_timms(name: str) -> None:
    branch, network = pair(name)
    images = torch.randn(1, 3, *(3 * branch.patch_embed.patch_size[0],) * 2)
    network.norm(run(branch, images).row()).square().sum().backward()
    network_norm = {name: p.grad.clone() for name, p in network.norm.named_parameters()}
    network.zero_grad()
    network.forward_features(images).square().sum().backward()
    expected = {name: p.grad for name, p in network.named_parameters()}
    for key, parameter in branch.named_parameters():
        torch.testing.assert_close(parameter.grad, expected[key], rtol=1e-4, atol=1e-4 * expected[key].abs().max())
    for key, gradient in network_norm.items():
        torch.testing.assert_close(gradient, expected[f"norm.{key}"], rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize("name", LARGE)
def test_large_networks_have_timms_parameters(name: str) -> None:
    config = BranchConfig.known()[BranchConfig.meant_type({"model": name})](model=name)
    with torch.device("meta"):
        branch, network = config.build(), timm.create_model(name, num_classes=0)
    theirs = {key: tuple(value.shape) for key, value in network.state_dict().items()}
    behind = ("norm.", "fc_norm.", "attn_pool.")
    ours = {key: tuple(value.shape) for key, value in branch.state_dict().items()}
    assert ours == {key: shape for key, shape in theirs.items() if not key.startswith(behind)}


@pytest.mark.parametrize("grid", [(6, 6), (5, 7), (2, 2)])
@pytest.mark.parametrize(
    "name",
    [
        "vit_small_patch16_dinov3",
        "vit_pe_core_tiny_patch16_384",
        "eva02_tiny_patch14_224",
        "vit_base_patch32_siglip_256",
    ],
)
def test_windows_are_global_attention_without_pairs_of_patches_of_different_windows(
    name: str, grid: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Against timm's blocks with that mask, on grids that the windows fill and that they do not."""
    branch, network = pair(name, window_size=3, global_blocks=[1])
    images = torch.randn(2, 3, *(side * branch.patch_embed.patch_size[0] for side in grid))
    row, column = torch.meshgrid(torch.arange(grid[0]) // 3, torch.arange(grid[1]) // 3, indexing="ij")
    window = (row * 100 + column).flatten()
    mask = F.pad(window[:, None] == window, (branch.num_prefix, 0, branch.num_prefix, 0), value=True)
    x = branch.embed(images)
    y = x.row()
    rope = {} if branch.rope is None else {"rope": branch.rope.get_embed(shape=grid)}
    with torch.no_grad():
        for index, block in enumerate(network.blocks[:3]):
            y = block(y, attn_mask=None if index == 1 else mask, **rope)
        torch.testing.assert_close(branch.run_blocks(x, 0, 3).row(), y, rtol=1e-4, atol=1e-4)


def test_windows_cost_what_they_attend_to() -> None:
    """Every patch meets the patches of its window and the prefix, the prefix meets all."""
    name, cells, size = "vit_small_patch16_dinov3", 12 * 12, 4
    with torch.device("meta"):
        branch = TimmViTConfig(model=name, window_size=size).build().eval()
        images = torch.zeros(1, 3, 192, 192)
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        branch.run_blocks(branch.embed(images), 0, 1)
    prefix = branch.num_prefix
    attention = counter.get_flop_counts()["Global"][torch.ops.aten.bmm]
    assert attention == 4 * 384 * (cells * (size**2 + prefix) + prefix * (cells + prefix))


def test_a_model_without_a_type_gets_the_branch_that_has_all_of_it() -> None:
    def kind(name: str) -> str | None:
        return BranchConfig.meant_type({"model": name})

    assert kind("vit_small_patch16_224.augreg_in21k") == "vit"
    assert kind("vit_small_patch14_reg4_dinov2.lvd142m") == "timm_vit"  # a ViT branch has no registers
    assert kind("vit_small_patch16_dinov3.lvd1689m") == "timm_vit"
    assert kind("vit_base_patch16_clip_224.openai") == "timm_vit"
    assert kind("vit_giant_patch14_dinov2") == "timm_vit"


def test_a_pyramid_of_foundation_models_is_a_few_lines(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text(
        "base: detection/mask_rcnn_piip_tsb_1568_1120_672\n"
        "model:\n  backbone:\n    branches: [{model: vit_small_patch16_dinov3.lvd1689m}, {model: convnext_tiny}]\n"
        "    resolutions: [128, 64]\n    interactions: 3\n    merge_width: 64\n"
    )
    config = load_config(path)
    assert [branch.type for branch in config.model.backbone.branches] == ["timm_vit", "convnext"]
    assert config.model.backbone.branches[0].window_size == 14  # of the base
    counted = {part.name: part.cost for part in actual_count(config.model, (128, 128)).parts}
    with torch.device("meta"):
        branch, images = config.model.backbone.branches[0].build().eval(), torch.zeros(1, 3, 128, 128)
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        run(branch, images)
    name = "vit_small_patch16_dinov3 128"
    assert counted[name].macs == pytest.approx(counter.get_total_flops() / 2, rel=2e-3)
    assert counted[name].params == sum(p.numel() for p in branch.parameters())


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        (
            {"model": "vit_small_patch16_dinov4"},
            "timm has no model 'vit_small_patch16_dinov4'; did you mean 'vit_small_patch16_dinov3'",
        ),
        ({"model": "convnext_tiny"}, "'convnext_tiny' cannot be of type timm_vit: .* or set it to convnext"),
        ({"model": "beit_base_patch16_224"}, "is no vision transformer that timm builds of blocks of one width"),
        (
            {"model": "vit_pwee_patch16_reg1_gap_256", "window_size": 4},
            "has no attention windows, .* set window_size to 0",
        ),
        ({"model": "vit_small_patch16_dinov3", "embed_dim": 100, "num_heads": 3}, "each a multiple of 4 wide"),
        ({"model": "vit_base_patch16_siglip_gap_224", "num_heads": 7}, "does not divide into num_heads 7"),
    ],
)
def test_what_cannot_be_such_a_branch_is_refused(settings: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        TimmViTConfig(**settings).build()


def test_a_type_that_lacks_parts_of_the_model_is_refused_with_the_remedy() -> None:
    with pytest.raises(ConfigError, match="leave out the type"):
        load_config(
            "detection/mask_rcnn_piip_nano", ["model.backbone.branches=[{type: vit, model: vit_small_patch16_dinov3}]"]
        )


@pytest.mark.parametrize("name", ["vit_small_patch16_dinov3", "vit_base_patch32_siglip_256"])
def test_a_file_of_timm_is_loaded_and_what_is_not_used_is_named(
    name: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """At another patch size too, to which timm resamples."""
    branch, network = pair(name)
    save_file(network.state_dict(), tmp_path / "weights.safetensors")
    fresh = TimmViTConfig(model=name).build()
    with caplog.at_level(logging.INFO):
        fresh.load_pretrained(str(tmp_path / "weights.safetensors"))
    for key, value in fresh.state_dict().items():
        torch.testing.assert_close(value, branch.state_dict()[key], rtol=0, atol=0)
    assert "not used, behind the blocks: " in caplog.text
    assert "norm" in caplog.text.split("behind the blocks: ")[1].split("\n")[0].split(", ")
    smaller = TimmViTConfig(model=name, patch_size=14).build()
    smaller.load_pretrained(str(tmp_path / "weights.safetensors"))
    assert smaller.patch_embed.proj.weight.shape[2:] == (14, 14)
    assert smaller.blocks[0].norm1.weight.equal(branch.blocks[0].norm1.weight)


def test_an_architecture_can_be_had_smaller_for_training_from_scratch() -> None:
    branch = TimmViTConfig(model="vit_small_patch16_dinov3", embed_dim=64, depth=3, num_heads=2, window_size=2).build()
    assert [tuple(spec) for spec in branch.specs] == [(64, 16)] * 3
    assert run(branch, torch.randn(1, 3, 48, 80)).row().shape == (1, 5 + 3 * 5, 64)
    assert branch.blocks[0].attn.num_heads == 2


def test_layers_blocks_and_stochastic_depth_are_known_for_training() -> None:
    branch = TimmViTConfig(model="vit_small_patch16_dinov3", drop_path=0.1, checkpoint_activations=True).build()
    layers = {name: branch.layer_of(name) for name, _ in branch.named_parameters()}
    assert layers["cls_token"] == layers["patch_embed.proj.weight"] == 0
    assert layers["blocks.11.mlp.fc1.weight"] == 12
    assert len(branch.units()) == branch.depth == 12
    assert branch.blocks[-1].drop_path1.drop_prob == pytest.approx(0.1)
    plain = TimmViTConfig(model="vit_small_patch16_dinov3").build().eval()
    saving = TimmViTConfig(model="vit_small_patch16_dinov3", checkpoint_activations=True).build().eval()
    randomise(plain)
    saving.load_state_dict(plain.state_dict())
    images = torch.randn(1, 3, 32, 48)
    for network in (plain, saving):
        run(network, images).row().square().mean().backward()
    for (name, a), b in zip(plain.named_parameters(), saving.parameters(), strict=True):
        torch.testing.assert_close(a.grad, b.grad, msg=name)


def test_registers_run_beside_interactions() -> None:
    settings = {
        "branches": [{"model": "vit_small_patch16_dinov3"}, {"size": "T"}],
        "resolutions": [64, 32],
        "interactions": 3,
        "merge": False,
    }
    fine, coarse = PIIP(BackboneConfig.model_validate(settings)).eval()(torch.randn(1, 3, 64, 64))
    assert fine.prefix.shape == (1, 5, 384)
    assert coarse.prefix is None


@pytest.mark.parametrize("window_size", [0, 2])
@pytest.mark.parametrize(
    "name", ["vit_small_patch16_dinov3", "eva02_base_patch16_clip_224", "vit_small_patch14_reg4_dinov2"]
)
def test_a_prepared_branch_gives_what_autocast_gives(name: str, window_size: int) -> None:
    branch = TimmViTConfig(model=name, window_size=window_size).build().eval()
    randomise(branch)
    branch.mixed_precision = True
    images = torch.randn(1, 3, *(3 * branch.patch_embed.patch_size[0],) * 2)
    with torch.inference_mode():
        exact = run(branch, images).row()
        with torch.autocast("cpu", torch.bfloat16):
            expected = run(branch, images).row()
        found = run(prepared_copy(branch, torch.bfloat16), images).row()
        whole = run(prepared_copy(branch, torch.float32), images).row()
    torch.testing.assert_close(whole, exact, rtol=1e-4, atol=1e-4)
    assert (found - expected.float()).norm() <= 0.5 * (expected.float() - exact).norm()
