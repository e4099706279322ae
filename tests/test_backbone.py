"""The N-branch network on its own: every number of branches, and the properties that the paper states."""

from __future__ import annotations

import pytest
import timm
import torch
import torch.nn.functional as F
from pydantic import ValidationError
from torch import nn

from piip.backbone.build import build_backbone, group_ends
from piip.backbone.config import BackboneConfig, InteractionConfig
from piip.backbone.piip import PIIP
from piip.branches.convnext.convnext import ConvNeXt
from piip.branches.vit.vit import Attention, ViT, expand_offsets, resize_pos_embed
from piip.errors import ConfigError

TINY = {"T": (32, 2, 2), "S": (64, 2, 4), "B": (96, 4, 6), "L": (128, 6, 8), "H": (160, 6, 10)}  # width, depth, heads
RESOLUTIONS = (160, 128, 96, 64, 32)


def backbone_config(letters: str, **interaction: object) -> BackboneConfig:
    branches = [
        {"embed_dim": dim, "depth": depth, "num_heads": heads, "window_size": 3, "pretrain_size": 64}
        for dim, depth, heads in (TINY[letter] for letter in letters)
    ]
    return BackboneConfig.model_validate(
        {
            "branches": branches,
            "resolutions": RESOLUTIONS[: len(letters)],
            "interactions": 2,
            "interaction": {"num_heads": 4} | interaction,
        }
    )


@pytest.mark.parametrize("letters", ["B", "TB", "TSB", "TSBL", "TSBLH", "TTT", "LT"])
def test_any_number_and_mixture_of_branches_gives_a_pyramid_of_the_last_branchs_width(letters: str) -> None:
    backbone = build_backbone(backbone_config(letters))
    maps = backbone(torch.randn(2, 3, 96, 160))
    width = TINY[letters[-1]][0]
    assert [tuple(x.shape) for x in maps] == [
        (2, width, 24, 40), (2, width, 12, 20), (2, width, 6, 10), (2, width, 3, 5)
    ]  # fmt: skip
    assert [tuple(spec) for spec in backbone.specs] == [(width, 4), (width, 8), (width, 16), (width, 32)]


@pytest.mark.parametrize("attention", ["deformable", "dense"])
def test_every_parameter_gets_a_finite_gradient(attention: str) -> None:
    backbone = build_backbone(backbone_config("TSB", attention=attention))
    for name, parameter in backbone.named_parameters():
        if name.endswith("gamma"):  # zero at the start, which hides what is behind it
            nn.init.normal_(parameter)
    sum(x.square().mean() for x in backbone(torch.randn(1, 3, 96, 160))).backward()
    for name, parameter in backbone.named_parameters():
        assert parameter.grad is not None, name
        assert torch.isfinite(parameter.grad).all(), name


def test_fresh_interactions_leave_the_branches_as_they_are() -> None:
    """Their gains start at zero, so that training begins from the pretrained branches."""
    backbone = build_backbone(backbone_config("TSB")).eval()
    images = torch.randn(1, 3, 64, 160)
    with_interactions = backbone(images)
    backbone.interactions = nn.ModuleList()
    for a, b in zip(with_interactions, backbone(images), strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=0)


def test_both_directions_of_a_unit_see_the_other_branch_as_it_was() -> None:
    unit = build_backbone(backbone_config("TS")).interactions[0].units[0].eval()
    for name, parameter in unit.named_parameters():
        if name.endswith("gamma"):
            nn.init.normal_(parameter)
    fine, coarse = torch.randn(1, 8, 10, 32), torch.randn(1, 6, 8, 64)
    new_fine, new_coarse = unit(fine, coarse)
    torch.testing.assert_close(new_fine, unit.to_fine(fine, coarse))
    torch.testing.assert_close(new_coarse, unit.to_coarse(coarse, fine))
    assert not torch.allclose(new_coarse, unit.to_coarse(coarse, new_fine))


def test_window_attention_is_global_attention_inside_each_zero_padded_window() -> None:
    windowed = Attention(dim=16, num_heads=2, window_size=4)
    everywhere = Attention(dim=16, num_heads=2, window_size=0)
    everywhere.load_state_dict(windowed.state_dict())
    x = torch.randn(2, 6, 9, 16)
    padded = F.pad(x, (0, 0, 0, 3, 0, 2))
    expected = torch.empty_like(padded)
    for top in range(0, 8, 4):
        for left in range(0, 12, 4):
            expected[:, top : top + 4, left : left + 4] = everywhere(padded[:, top : top + 4, left : left + 4])
    torch.testing.assert_close(windowed(x), expected[:, :6, :9])


def test_position_embedding_at_its_own_grid_is_untouched_and_elsewhere_bicubic() -> None:
    pos_embed = torch.randn(1, 16, 8)
    assert resize_pos_embed(pos_embed, 4, (4, 4)).equal(pos_embed.view(1, 4, 4, 8))
    resized = resize_pos_embed(pos_embed, 4, (5, 7))
    grid = pos_embed.view(1, 4, 4, 8).permute(0, 3, 1, 2)
    expected = F.interpolate(grid, size=(5, 7), mode="bicubic", align_corners=False)
    torch.testing.assert_close(resized, expected.permute(0, 2, 3, 1))


def test_activation_checkpointing_changes_no_gradient() -> None:
    torch.manual_seed(0)
    plain = ViT(embed_dim=16, depth=2, num_heads=2, pretrain_size=32)
    saving = ViT(embed_dim=16, depth=2, num_heads=2, pretrain_size=32, checkpoint_activations=True)
    saving.load_state_dict(plain.state_dict())
    images = torch.randn(1, 3, 48, 32)
    for branch in (plain, saving):
        branch.run_blocks(branch.embed(images), 0, 2).map.square().sum().backward()
    for (name, a), b in zip(plain.named_parameters(), saving.parameters(), strict=True):
        torch.testing.assert_close(a.grad, b.grad, msg=name)


def test_interactions_are_spread_evenly_over_every_depth() -> None:
    config = backbone_config("TBL")
    assert group_ends(config, [2, 4, 6]) == [(1, 2), (2, 4), (3, 6)]
    listed = config.model_copy(update={"interactions": ((0, 1), (0, 3), (4, 5))})
    assert group_ends(listed, [2, 4, 6]) == [(1, 2), (1, 4), (5, 6)]


@pytest.mark.parametrize(
    ("interactions", "message"),
    [
        (3, "3 interactions need 1 to 2 blocks"),
        (0, "0 interactions need 1 to 2 blocks"),
        (((0, 1), (0, 3)), "one increasing list a branch"),
        (((0, 1), (0, 3), (0, 4)), "last block"),
        (((0, 1), (3, 3), (0, 5)), "increasing"),
        (((1,), (0, 3), (0, 5)), "equally long"),
    ],
)
def test_impossible_interactions_are_refused(interactions: object, message: str) -> None:
    config = backbone_config("TBL").model_copy(update={"interactions": interactions})
    with pytest.raises(ConfigError, match=message):
        group_ends(config, [2, 4, 6])


def test_layers_for_learning_rate_decay_follow_the_deepest_branch() -> None:
    backbone: PIIP = build_backbone(backbone_config("SBL"))
    layers = backbone.layer_ids()
    assert backbone.depth == 6
    assert layers["branches.2.pos_embed"] == layers["branches.0.patch_embed.proj.weight"] == 0
    assert [layers[f"branches.2.blocks.{i}.norm1.weight"] for i in range(6)] == [1, 2, 3, 4, 5, 6]
    assert [layers[f"branches.1.blocks.{i}.norm1.weight"] for i in range(4)] == [1, 3, 4, 6]  # floor((i + 1) * 1.5)
    assert [layers[f"branches.0.blocks.{i}.norm1.weight"] for i in range(2)] == [3, 6]
    assert not [name for name in layers if name.startswith(("interactions", "merge", "pyramid"))]


def test_interaction_without_projection_norm_or_ffn_has_no_such_parameters() -> None:
    unit = build_backbone(backbone_config("TS", projection=False, norm="none", ffn_ratio=0)).interactions[0].units[0]
    assert {name.split(".")[1] for name, _ in unit.named_parameters()} == {"gamma", "attn"}
    fine, coarse = unit(torch.randn(1, 4, 4, 32), torch.randn(1, 3, 3, 64))
    assert fine.shape == (1, 4, 4, 32)
    assert coarse.shape == (1, 3, 3, 64)


def test_interaction_defaults_are_the_released_ones() -> None:
    assert InteractionConfig().model_dump() == {
        "attention": "deformable", "num_heads": 16, "points": 4, "value_ratio": 0.5, "ffn_ratio": 0.25,
        "projection": True, "norm": "layer", "drop_path": 0.4, "mixed_precision": True,
    }  # fmt: skip


def test_queries_and_keys_are_normalised_over_all_heads_together() -> None:
    torch.manual_seed(0)
    attention = Attention(dim=16, num_heads=4, window_size=0, qkv_bias="none", make_qk_norm=nn.RMSNorm)
    for norm in (attention.q_norm, attention.k_norm):
        nn.init.normal_(norm.weight)
    x = torch.randn(2, 3, 5, 16)
    q, k, v = attention.qkv(x.flatten(1, 2)).chunk(3, dim=-1)
    q, k = (
        y / (y.square().mean(-1, keepdim=True) + torch.finfo(torch.float32).eps).sqrt() * norm.weight
        for y, norm in ((q, attention.q_norm), (k, attention.k_norm))
    )
    heads = [
        (q[..., part] @ k[..., part].transpose(1, 2) / 2).softmax(-1) @ v[..., part]
        for part in (slice(start, start + 4) for start in range(0, 16, 4))
    ]
    torch.testing.assert_close(attention(x), attention.proj(torch.cat(heads, -1)).view(x.shape), atol=1e-5, rtol=1e-4)
    assert attention.qkv.bias is None


def test_a_relative_position_bias_depends_on_the_offset_alone() -> None:
    attention = Attention(dim=8, num_heads=2, window_size=3, qkv_bias="qv", relative_position=True)
    assert attention.qkv.bias is None
    bias_of = attention.position_bias
    nn.init.normal_(bias_of.table)
    bias = bias_of(torch.float32).view(2, 3, 3, 3, 3)
    seen = {}
    for y in range(3):
        for x in range(3):
            for v in range(3):
                for u in range(3):
                    seen.setdefault((y - v, x - u), []).append(bias[:, y, x, v, u])
    assert len(seen) == 25
    assert all(torch.equal(value, values[0]) for values in seen.values() for value in values)
    assert len({tuple(values[0].tolist()) for values in seen.values()}) == 25
    assert torch.equal(bias_of.table[0], seen[(-2, -2)][0])
    assert not [name for name in attention.state_dict() if "index" in name]


def test_a_position_bias_and_its_gradient_are_those_of_an_index_into_the_table() -> None:
    size, heads = 4, 3
    cell = torch.arange(size)
    offset = cell[:, None] - cell[None, :] + size - 1
    index = (offset[:, None, :, None] * (2 * size - 1) + offset[None, :, None, :]).view(size**2, size**2)
    table = torch.randn((2 * size - 1) ** 2, heads, dtype=torch.float64, requires_grad=True)
    expected, found = table[index].permute(2, 0, 1), expand_offsets(table, size, torch.float64)
    assert found.equal(expected)
    assert found.is_contiguous()
    weight = torch.randn_like(found)
    torch.testing.assert_close(torch.autograd.grad(found, table, weight), torch.autograd.grad(expected, table, weight))
    assert expand_offsets(table.float(), size, torch.bfloat16).equal(expected.float().bfloat16())


def test_a_residual_added_in_one_operator_has_the_value_and_gradients_of_two() -> None:
    torch.manual_seed(0)
    branch = ViT(embed_dim=16, depth=1, num_heads=2, pretrain_size=32, layer_scale=0.5)
    (block,) = branch.blocks
    for scale in (block.ls1, block.ls2):
        nn.init.normal_(scale.gamma)
    x = torch.randn(2, 3, 5, 16, requires_grad=True)
    middle = x + block.ls1(block.attn(block.norm1(x)))
    expected = middle + block.ls2(block.mlp(block.norm2(middle)))
    inputs = [x, *block.parameters()]
    for found in (block(x), block.train()(x)):
        torch.testing.assert_close(found, expected)
        for a, b in zip(
            torch.autograd.grad(found.square().sum(), inputs),
            torch.autograd.grad(expected.square().sum(), inputs, retain_graph=True),
            strict=True,
        ):
            torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


def test_drop_path_drops_whole_residuals_of_an_image() -> None:
    torch.manual_seed(0)
    (block,) = ViT(embed_dim=16, depth=1, num_heads=2, pretrain_size=32, drop_path=0.5).blocks
    x = torch.randn(64, 2, 2, 16)
    full = block.attn(block.norm1(x))
    block.mlp = nn.Identity()
    block.ls2 = nn.Identity()
    block.norm2 = nn.Identity()
    nn.init.ones_(block.ls1.gamma)
    drops = 0
    for image, out, added in zip(x, block.train()(x), full, strict=True):
        # The second residual is the identity: dropped, or doubled by 1 / 0.5.
        sums = [image, image + 2 * added]
        assert any(torch.allclose(out, factor * part, atol=1e-5) for part in sums for factor in (1, 3))
        drops += any(torch.allclose(out, factor * image, atol=1e-5) for factor in (1, 3))
    assert 10 < drops < 54


def test_uni_perceivers_embedding_adds_a_frames_vector_and_is_normalised() -> None:
    branch = ViT(embed_dim=16, depth=1, num_heads=2, pretrain_size=32, embed_norm=True, frame_embed=True, norm_eps=1e-5)
    nn.init.normal_(branch.frame_embed)
    images = torch.randn(1, 3, 48, 32)
    patches = branch.patch_embed(images) + resize_pos_embed(branch.pos_embed, 2, (3, 2)) + branch.frame_embed[:, None]
    mean, variance = patches.mean(-1, keepdim=True), patches.var(-1, unbiased=False, keepdim=True)
    torch.testing.assert_close(
        branch.embed(images).map, (patches - mean) / (variance + 1e-5).sqrt(), atol=1e-5, rtol=1e-4
    )


def hybrid_config(finest: dict, coarsest: dict, **settings: object) -> BackboneConfig:
    """Four groups of blocks; convnext_atto has 2 + 3 + 7 + 3 of them, at strides 4 to 32 and 40 to 320 channels."""
    ends = {"convnext": [1, 4, 11, 14], "vit": [0, 1, 2, 3]}
    return BackboneConfig.model_validate(
        {
            "branches": [finest, coarsest],
            "resolutions": [128, 64],
            "interactions": [ends[branch.get("type", "vit")] for branch in (finest, coarsest)],
            "interaction": {"num_heads": 2},
            "outputs": [0, 1, 2],
        }
        | settings
    )


VIT = {"embed_dim": 64, "depth": 4, "num_heads": 2, "pretrain_size": 64}
CONVNEXT = {"type": "convnext", "model": "convnext_atto"}


def test_a_convnext_branch_has_a_block_for_every_layer_between_two_maps() -> None:
    branch = ConvNeXt(model="convnext_atto").eval()
    assert branch.depth == 2 + 3 + 7 + 3
    assert [tuple(spec) for spec in branch.specs] == [(40, 4)] * 2 + [(80, 8)] * 3 + [(160, 16)] * 7 + [(320, 32)] * 3
    x = branch.embed(torch.randn(1, 3, 70, 96))
    for index, spec in enumerate(branch.specs):
        x = branch.run_blocks(x, index, index + 1)
        assert x.map.shape == (1, 70 // 4 // (spec.stride // 4), 96 // spec.stride, spec.channels)
    with pytest.raises(ConfigError, match="'resnet50' is no ConvNeXt of timm"):
        ConvNeXt(model="resnet50")


@pytest.mark.parametrize(
    ("finest", "coarsest", "channels", "strides"),
    [
        (CONVNEXT, VIT, [64, 64, 64, 64], [4, 8, 16, 32]),  # a regular pyramid as it comes
        (VIT, {**VIT, "embed_dim": 32}, [32, 32, 32, 32], [4, 8, 16, 32]),  # scaled from maps of stride 16
    ],
)
def test_a_pyramid_of_intermediate_merges(finest: dict, coarsest: dict, channels: list, strides: list) -> None:
    backbone = build_backbone(hybrid_config(finest, coarsest))
    assert [tuple(spec) for spec in backbone.specs] == list(zip(channels, strides, strict=True))
    maps = backbone(torch.randn(1, 3, 128, 64))
    assert [tuple(x.shape) for x in maps] == [(1, c, 128 // s, 64 // s) for c, s in backbone.specs]
    sum(x.square().mean() for x in maps).backward()
    assert not [name for name, parameter in backbone.named_parameters() if parameter.grad is None]


def test_only_plain_vits_take_part_in_layer_decay() -> None:
    backbone = build_backbone(hybrid_config(CONVNEXT, VIT))
    assert backbone.depth == 4
    layers = backbone.layer_ids()
    assert {name.split(".")[1] for name in layers} == {"1"}
    assert layers["branches.1.blocks.3.norm1.weight"] == 4


def test_a_single_convnext_gives_its_own_stages() -> None:
    config = {"branches": [CONVNEXT], "resolutions": [64], "interactions": [[1, 4, 11, 14]], "outputs": [0, 1, 2]}
    backbone = build_backbone(BackboneConfig.model_validate(config)).eval()
    assert [tuple(spec) for spec in backbone.specs] == [(40, 4), (80, 8), (160, 16), (320, 32)]
    network = timm.create_model("convnext_atto", features_only=True).eval()
    ours = backbone.branches[0].state_dict()
    names = {key: key.replace("stem_", "stem.").replace("stages_", "stages.") for key in network.state_dict()}
    network.load_state_dict({key: ours[name] for key, name in names.items()})
    images = torch.randn(1, 3, 64, 96)
    for x, expected in zip(backbone(images), network(images), strict=True):
        torch.testing.assert_close(x, expected, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"outputs": [0, 1, 3]}, "name interactions before the last, 0 to 2"),
        ({"interactions": [[0, 1, 11, 14], [0, 1, 2, 3]]}, r"has strides \[4, 4, 16, 32\] there; they must double"),
    ],
)
def test_outputs_that_are_no_pyramid_are_refused(settings: dict, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        build_backbone(hybrid_config(CONVNEXT, VIT, **settings))


def test_settings_of_every_branch_are_filled_in_and_may_be_overridden() -> None:
    config = BackboneConfig.model_validate(
        {
            "every_branch": {"window_size": 7, "drop_path": 0.1},
            "branches": [{"size": "T"}, {"size": "S", "drop_path": 0.2}],
            "resolutions": [64, 32],
        }
    )
    assert [(branch.window_size, branch.drop_path) for branch in config.branches] == [(7, 0.1), (7, 0.2)]
    assert BackboneConfig.model_validate(config.model_dump()) == config


@pytest.mark.parametrize(
    "wrong", [{"position": "relative"}, {"position": "relative", "window_size": 7, "global_blocks": [1]}]
)
def test_a_relative_position_bias_needs_windows(wrong: dict) -> None:
    with pytest.raises(ValidationError, match="needs attention windows"):
        BackboneConfig.model_validate({"branches": [{"size": "T", **wrong}], "resolutions": [64]})
