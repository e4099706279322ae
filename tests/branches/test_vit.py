"""The plain vision transformer branch: attention, residuals and embeddings against what they are by definition."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from pydantic import ValidationError
from torch import nn

from piip.branches.base import Tokens
from piip.branches.vit.config import ViTConfig
from piip.branches.vit.vit import Attention, ViT, expand_offsets, resize_pos_embed


def vit(**settings: Any) -> ViT:
    """A branch of few small tokens."""
    return ViTConfig(**{"embed_dim": 16, "depth": 1, "num_heads": 2, "pretrain_size": 32} | settings).build()


def attention(**settings: Any) -> Attention:
    """The attention of a block with these settings."""
    config = ViTConfig(**{"depth": 1, "num_heads": 2} | settings)
    return Attention(config, window_size=config.window_size)


def test_window_attention_is_global_attention_inside_each_zero_padded_window() -> None:
    windowed = attention(embed_dim=16, window_size=4)
    everywhere = attention(embed_dim=16)
    everywhere.load_state_dict(windowed.state_dict())
    x = torch.randn(2, 6, 9, 16)
    padded = F.pad(x, (0, 0, 0, 3, 0, 2))
    expected = torch.empty_like(padded)
    for top in range(0, 8, 4):
        for left in range(0, 12, 4):
            expected[:, top : top + 4, left : left + 4] = everywhere(padded[:, top : top + 4, left : left + 4])
    torch.testing.assert_close(windowed(x), expected[:, :6, :9])


def test_a_map_and_its_prefix_are_one_row_and_back() -> None:
    tokens = Tokens(torch.randn(2, 3, 5, 16), torch.randn(2, 4, 16))
    row = tokens.row()
    assert row.shape == (2, 4 + 3 * 5, 16)
    assert row[:, :4].equal(tokens.prefix)
    assert all(a.equal(b) for a, b in zip(tokens.replace_row(row), tokens, strict=True))
    alone = Tokens(tokens.map)
    assert alone.replace_row(alone.row()).map.equal(tokens.map)
    assert alone.replace_row(alone.row()).prefix is None


def test_position_embedding_at_its_own_grid_is_untouched_and_elsewhere_bicubic() -> None:
    pos_embed = torch.randn(1, 16, 8)
    assert resize_pos_embed(pos_embed, 4, (4, 4), torch.float32).equal(pos_embed.view(1, 4, 4, 8))
    resized = resize_pos_embed(pos_embed, 4, (5, 7), torch.float32)
    grid = pos_embed.view(1, 4, 4, 8).permute(0, 3, 1, 2)
    expected = F.interpolate(grid, size=(5, 7), mode="bicubic", align_corners=False)
    torch.testing.assert_close(resized, expected.permute(0, 2, 3, 1))


def test_activation_checkpointing_changes_no_gradient() -> None:
    torch.manual_seed(0)
    plain = vit(depth=2)
    saving = vit(depth=2, checkpoint_activations=True)
    saving.load_state_dict(plain.state_dict())
    images = torch.randn(1, 3, 48, 32)
    for branch in (plain, saving):
        branch.run_blocks(branch.embed(images), 0, 2).map.square().sum().backward()
    for (name, a), b in zip(plain.named_parameters(), saving.parameters(), strict=True):
        torch.testing.assert_close(a.grad, b.grad, msg=name)


def test_queries_and_keys_are_normalised_over_all_heads_together() -> None:
    torch.manual_seed(0)
    normed = attention(embed_dim=16, num_heads=4, qkv_bias="none", qk_norm=True, norm="rms")
    for norm in (normed.q_norm, normed.k_norm):
        nn.init.normal_(norm.weight)
    x = torch.randn(2, 3, 5, 16)
    q, k, v = normed.qkv(x.flatten(1, 2)).chunk(3, dim=-1)
    q, k = (
        y / (y.square().mean(-1, keepdim=True) + 1e-6).sqrt() * norm.weight
        for y, norm in ((q, normed.q_norm), (k, normed.k_norm))
    )
    heads = [
        (q[..., part] @ k[..., part].transpose(1, 2) / 2).softmax(-1) @ v[..., part]
        for part in (slice(start, start + 4) for start in range(0, 16, 4))
    ]
    torch.testing.assert_close(normed(x), normed.proj(torch.cat(heads, -1)).view(x.shape), atol=1e-5, rtol=1e-4)
    assert normed.qkv.bias is None


def test_a_relative_position_bias_depends_on_the_offset_alone() -> None:
    biased = attention(embed_dim=8, window_size=3, qkv_bias="qv", position="relative")
    assert biased.qkv.bias is None
    bias_of = biased.position_bias
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
    assert not [name for name in biased.state_dict() if "index" in name]


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
    branch = vit(layer_scale=0.5)
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
    (block,) = vit(drop_path=0.5).blocks
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
    branch = vit(embed_norm=True, frame_embed=True, norm_eps=1e-5)
    nn.init.normal_(branch.frame_embed)
    images = torch.randn(1, 3, 48, 32)
    positions = resize_pos_embed(branch.pos_embed, 2, (3, 2), torch.float32)
    patches = branch.patch_embed(images) + positions + branch.frame_embed[:, None]
    mean, variance = patches.mean(-1, keepdim=True), patches.var(-1, unbiased=False, keepdim=True)
    torch.testing.assert_close(
        branch.embed(images).map, (patches - mean) / (variance + 1e-5).sqrt(), atol=1e-5, rtol=1e-4
    )


@pytest.mark.parametrize(
    "wrong", [{"position": "relative"}, {"position": "relative", "window_size": 7, "global_blocks": [1]}]
)
def test_a_relative_position_bias_needs_windows(wrong: dict) -> None:
    with pytest.raises(ValidationError, match="needs attention windows"):
        ViTConfig.model_validate({"size": "T", **wrong})
