"""Pretrained networks in a branch, against timm's own."""

from __future__ import annotations

import argparse
import logging
import math
import re
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from scipy import interpolate

from piip.branches.base import Branch, Tokens
from piip.branches.hierarchical.config import ConvNeXtConfig
from piip.branches.vit.config import ViTConfig
from piip.branches.vit.resample import resample_position_bias
from piip.errors import CheckpointError
from piip.features import FeatureSpec
from piip.heads.classifier.config import ClassifierConfig
from piip.heads.classifier.head import Classifier
from piip.official.keys import KeyTable

SMALL = {"embed_dim": 64, "depth": 2, "num_heads": 4}


def timm_vit(**settings):
    torch.manual_seed(0)
    model = timm.create_model("vit_tiny_patch16_224", img_size=64, num_classes=0, **SMALL, **settings)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    return model.eval()


def test_a_timm_network_gives_the_same_tokens_in_a_branch(tmp_path: Path) -> None:
    source = timm_vit(class_token=False, global_pool="avg", init_values=1e-5)
    torch.save({"model": source.state_dict()}, tmp_path / "vit.pth")
    branch = ViTConfig(**SMALL, pretrain_size=64).build().eval()
    branch.load_pretrained(str(tmp_path / "vit.pth"))
    images = torch.randn(1, 3, 64, 64)
    x = source._pos_embed(source.patch_embed(images))
    expected = source.blocks(x).view(1, 4, 4, 64)
    torch.testing.assert_close(branch.run_blocks(branch.embed(images), 0, 2).map, expected, rtol=1e-4, atol=1e-5)


def test_deit_iii_names_of_layer_scale_and_the_parts_of_a_classifier_are_understood(tmp_path: Path) -> None:
    branch = ViTConfig(**SMALL, pretrain_size=64).build()
    state = {key.replace(".ls1.gamma", ".gamma_1").replace(".ls2.gamma", ".gamma_2"): torch.randn_like(value)
             for key, value in branch.state_dict().items()}  # fmt: skip
    extra = {"cls_token": torch.zeros(1, 1, 64), "head.weight": torch.zeros(10, 64), "norm.weight": torch.zeros(64)}
    torch.save({"model": state | extra}, tmp_path / "deit3.pth")
    branch.load_pretrained(str(tmp_path / "deit3.pth"))
    assert branch.blocks[1].ls2.gamma.equal(state["blocks.1.gamma_2"])
    assert branch.pos_embed.equal(state["pos_embed"])


def test_position_embedding_and_patches_of_other_sizes_are_resampled(tmp_path: Path) -> None:
    source = timm_vit(class_token=True)
    state = source.state_dict()
    state["patch_embed.proj.weight"] = torch.randn(64, 3, 14, 14)
    torch.save(state, tmp_path / "vit.pth")
    branch = ViTConfig(**SMALL, pretrain_size=96).build()
    branch.load_pretrained(str(tmp_path / "vit.pth"))
    grid = state["pos_embed"][:, 1:].view(1, 4, 4, 64).permute(0, 3, 1, 2)
    expected = F.interpolate(grid, size=(6, 6), mode="bicubic", align_corners=False).flatten(2).transpose(1, 2)
    torch.testing.assert_close(branch.pos_embed.data, expected)
    expected = F.interpolate(state["patch_embed.proj.weight"], size=(16, 16), mode="bicubic", align_corners=False)
    torch.testing.assert_close(branch.patch_embed.proj.weight.data, expected)


def test_weights_of_another_network_are_refused_with_what_does_not_fit(tmp_path: Path) -> None:
    branch = ViTConfig(**SMALL, pretrain_size=64).build()
    before = branch.pos_embed.clone()
    torch.save(
        ViTConfig(embed_dim=32, depth=3, num_heads=2, pretrain_size=64).build().state_dict(), tmp_path / "other.pth"
    )
    with pytest.raises(CheckpointError, match=r"unknown .*; .* of another shape"):
        branch.load_pretrained(str(tmp_path / "other.pth"))
    assert branch.pos_embed.equal(before)


@pytest.mark.parametrize("shape", [(), (7,), (3, 16, 64), (2, 2, 16, 64), (1, 0, 64), (1, 16, 5)])
def test_embeddings_of_no_shape_that_could_be_resampled_are_refused(tmp_path: Path, shape: tuple[int, ...]) -> None:
    branch = ViTConfig(**SMALL, pretrain_size=64).build()
    torch.save(branch.state_dict() | {"pos_embed": torch.zeros(shape)}, tmp_path / "odd.pth")
    with pytest.raises(CheckpointError, match=r"1 of another shape \(pos_embed\)"):
        branch.load_pretrained(str(tmp_path / "odd.pth"))


def test_a_name_that_is_neither_file_nor_model_is_an_error() -> None:
    with pytest.raises(CheckpointError, match="'deit_tinny' is neither a file nor a timm model"):
        ViTConfig(**SMALL).build().load_pretrained("deit_tinny")
    with pytest.raises(CheckpointError, match=r"checkpoint not found: gone.pth"):
        ViTConfig(**SMALL).build().load_pretrained("gone.pth")


def tokens(branch: Branch, images: torch.Tensor) -> torch.Tensor:
    with torch.inference_mode():
        return branch.run_blocks(branch.embed(images), 0, branch.depth).map


def randomised(model: torch.nn.Module) -> torch.nn.Module:
    torch.manual_seed(0)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    return model.eval()


def test_mae_and_dinov2_files_are_understood_whatever_else_they_hold(tmp_path: Path) -> None:
    source = timm_vit(class_token=True, init_values=1.0)
    extra = {
        name: torch.zeros(1, 4, 64) for name in ("mask_token", "register_tokens", "decoder_embed.weight", "norm.bias")
    }
    torch.save({"model": source.state_dict() | extra, "args": argparse.Namespace(lr=1.0)}, tmp_path / "mae.pth")
    branch = ViTConfig(**SMALL, pretrain_size=64).build().eval()
    branch.load_pretrained(str(tmp_path / "mae.pth"))
    assert branch.blocks[1].ls1.gamma.equal(source.blocks[1].ls1.gamma)
    assert branch.pos_embed.equal(source.pos_embed[:, 1:])


def test_a_beit_of_timm_gives_the_same_tokens_in_a_branch_with_its_own_window(tmp_path: Path) -> None:
    source = randomised(
        timm.create_model("beitv2_base_patch16_224", img_size=64, num_classes=0, init_values=0.1, **SMALL)
    )
    torch.save({"model": source.state_dict()}, tmp_path / "beit.pth")
    branch = ViTConfig(**SMALL, position="relative", qkv_bias="qv", window_size=4).build().eval()
    branch.load_pretrained(str(tmp_path / "beit.pth"))
    images = torch.randn(1, 3, 64, 64)
    # Without the class token, which the branch does not have: its column takes no part in the softmax.
    x = source.patch_embed(images)
    bias = source.blocks[0].attn._get_rel_pos_bias()
    for block in source.blocks:
        attn, y = block.attn, block.norm1(x)
        qkv = F.linear(y, attn.qkv.weight, torch.cat((attn.q_bias, attn.k_bias, attn.v_bias)))
        q, k, v = qkv.view(1, 16, 3, 4, 16).permute(2, 0, 3, 1, 4)
        bias = attn._get_rel_pos_bias()[..., 1:, 1:]
        y = ((q @ k.transpose(-2, -1)) / 4 + bias).softmax(-1) @ v
        x = x + block.gamma_1 * attn.proj(y.transpose(1, 2).flatten(2))
        x = x + block.gamma_2 * block.mlp(block.norm2(x))
    torch.testing.assert_close(tokens(branch, images), x.view(1, 4, 4, 64), rtol=1e-4, atol=1e-4)


def test_a_position_bias_grows_to_a_larger_window_as_in_beit() -> None:
    """Three offsets 1, q, q^2 apart reach as far as four of the larger window: 1 + q + q^2 = 4."""
    table = torch.randn(7 * 7 + 3, 4)
    assert torch.equal(resample_position_bias(table, 7 * 7), table[:49])
    grown = resample_position_bias(table, 9 * 9).view(9, 9, 4)
    ratio = (math.sqrt(13) - 1) / 2
    old = np.array([-4, -1 - ratio, -1, 0, 1, 1 + ratio, 4])
    new = np.stack(np.meshgrid(np.arange(-4, 5), np.arange(-4, 5), indexing="ij"), axis=-1)
    spline = interpolate.RegularGridInterpolator((old, old), table[:49, 2].view(7, 7).double().numpy(), method="cubic")
    assert np.abs(grown[..., 2].numpy() - spline(new)).max() < 1e-4


def test_augreg_arrays_give_timms_tokens(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    arrays = {"embedding/kernel": (16, 16, 3, 64), "embedding/bias": (64,), "cls": (1, 1, 64), "head/bias": (10,),
              "head/kernel": (64, 10), "Transformer/posembed_input/pos_embedding": (1, 17, 64),
              "Transformer/encoder_norm/scale": (64,), "Transformer/encoder_norm/bias": (64,)}  # fmt: skip
    for block in range(2):
        prefix = f"Transformer/encoderblock_{block}/"
        attention = prefix + "MultiHeadDotProductAttention_1/"
        for part in ("query", "key", "value"):
            arrays |= {f"{attention}{part}/kernel": (64, 4, 16), f"{attention}{part}/bias": (4, 16)}
        arrays |= {f"{attention}out/kernel": (4, 16, 64), f"{attention}out/bias": (64,)}
        arrays |= {f"{prefix}LayerNorm_{i}/{leaf}": (64,) for i in (0, 2) for leaf in ("scale", "bias")}
        dense = f"{prefix}MlpBlock_3/Dense_"
        arrays |= {f"{dense}0/kernel": (64, 256), f"{dense}0/bias": (256,), f"{dense}1/kernel": (256, 64)}
        arrays[f"{dense}1/bias"] = (64,)
    values = {key: rng.normal(size=shape, scale=0.1).astype(np.float32) for key, shape in arrays.items()}
    np.savez(tmp_path / "augreg.npz", **values)
    source = timm.create_model("vit_tiny_patch16_224", img_size=64, num_classes=0, **SMALL).eval()
    source.load_pretrained(str(tmp_path / "augreg.npz"))
    branch = ViTConfig(**SMALL, pretrain_size=64, layer_scale=None).build().eval()
    branch.load_pretrained(str(tmp_path / "augreg.npz"))
    images = torch.randn(1, 3, 64, 64)
    x = source.patch_embed(images) + source.pos_embed[:, 1:]
    torch.testing.assert_close(tokens(branch, images), source.blocks(x).view(1, 4, 4, 64), rtol=1e-4, atol=1e-5)
    classifier = Classifier(ClassifierConfig(num_classes=10), [FeatureSpec(64, 16)])
    branch = ViTConfig(**SMALL, pretrain_size=64, layer_scale=None, class_token=True).build()
    branch.load_pretrained(str(tmp_path / "augreg.npz"), head=classifier.pretrained(0))
    source.reset_classifier(10)
    source.load_pretrained(str(tmp_path / "augreg.npz"))
    assert branch.cls_token.equal(source.cls_token)
    for ours, theirs in ((classifier.norms[0], source.norm), (classifier.linears[0], source.head)):
        assert ours.weight.equal(theirs.weight)
        assert ours.bias.equal(theirs.bias)
    np.savez(tmp_path / "other.npz", **{"a/kernel": np.zeros(3)})
    with pytest.raises(CheckpointError, match="no vision transformer of AugReg"):
        branch.load_pretrained(str(tmp_path / "other.npz"))


@pytest.mark.parametrize(
    ("settings", "classes", "words"),
    [
        ({"num_classes": 10}, 10, ["its norm is loaded too", "its head is loaded too"]),
        (
            {"num_classes": 10},
            7,
            ["its norm is loaded too", "its head, 10 x 64, does not fit 7 x 64, which starts afr"],
        ),
        ({"num_classes": 0}, 7, ["its norm is loaded too", "has no head for the classifier, which starts afresh"]),
        ({"num_classes": 10, "global_pool": "avg"}, 10, ["its norm is loaded too", "its head is loaded too"]),
    ],
)
def test_norm_and_head_of_the_source_go_to_the_classifier_where_they_fit(
    settings: dict, classes: int, words: list[str], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    source = randomised(timm.create_model("vit_tiny_patch16_224", img_size=64, **SMALL, **settings))
    torch.save({"model": source.state_dict()}, tmp_path / "vit.pth")
    classifier = Classifier(ClassifierConfig(num_classes=classes), [FeatureSpec(64, 16)])
    fresh = classifier.linears[0].weight.clone()
    branch = ViTConfig(**SMALL, pretrain_size=64, layer_scale=None, class_token=True).build()
    with caplog.at_level(logging.INFO):
        branch.load_pretrained(str(tmp_path / "vit.pth"), head=classifier.pretrained(0))
    for word, record in zip(words, caplog.records, strict=True):
        assert word in record.getMessage()
    norm = source.fc_norm if "global_pool" in settings else source.norm
    assert classifier.norms[0].weight.equal(norm.weight)
    assert classifier.linears[0].weight.equal(source.head.weight if classes == 10 else fresh)
    assert branch.cls_token.equal(source.cls_token)


def test_internvit_of_the_hub_is_understood(tmp_path: Path) -> None:
    branch = ViTConfig(**SMALL, pretrain_size=64, norm="rms", qk_norm=True, qkv_bias="none", layer_scale=0.1).build()
    names = {"patch_embed.proj.": "embeddings.patch_embedding.", "pos_embed": "embeddings.position_embedding",
             "blocks.": "encoder.layers."}  # fmt: skip
    state = {key: torch.randn_like(value) for key, value in branch.state_dict().items()}
    theirs = {}
    for key, value in state.items():
        start = next(start for start in names if key.startswith(start))
        theirs[(names[start] + key.removeprefix(start)).removesuffix(".gamma")] = value
    save_file(theirs, tmp_path / "model.safetensors")
    branch.load_pretrained(str(tmp_path / "model.safetensors"))
    for key, value in branch.state_dict().items():
        assert torch.equal(value, state[key]), key


# timm's names inside a ConvNeXt, and its authors'.
FACEBOOK = [(r"stem\.", "downsample_layers.0."), (r"stages\.(\d)\.downsample\.", r"downsample_layers.\1."),
            (r"(stages\.\d)\.blocks\.", r"\1."), (r"\.conv_dw\.", ".dwconv."), (r"\.mlp\.fc", ".pwconv")]  # fmt: skip


@pytest.mark.parametrize("naming", ["timm", "hub", "facebook"])
def test_a_convnext_gives_timms_features_under_timms_the_hubs_and_its_authors_names(
    naming: str, tmp_path: Path
) -> None:
    source = randomised(timm.create_model("convnext_atto", num_classes=0))
    branch = ConvNeXtConfig(model="convnext_atto").build().eval()
    state = source.state_dict()
    if naming == "facebook":
        for pattern, name in FACEBOOK:
            state = {re.sub(pattern, name, key): value for key, value in state.items()}
        state = {"model": state | {"norm.weight": torch.ones(320), "head.bias": torch.zeros(10)}}
        assert timm.models.convnext.checkpoint_filter_fn(state, source).keys() >= branch.state_dict().keys()
    if naming == "hub":
        table = KeyTable(1, ["convnext"])
        local = {key: table.to_official(f"backbone.branches.0.{key}") for key in branch.state_dict()}
        state = {str(name).replace("backbone.convnext_model.", "convnext."): state[key] for key, name in local.items()}
        state |= {"convnext.layernorm.weight": torch.ones(320), "classifier.bias": torch.zeros(10)}
    torch.save(state, tmp_path / "convnext.pth")
    branch.load_pretrained(str(tmp_path / "convnext.pth"))
    images = torch.randn(1, 3, 64, 96)
    with torch.inference_mode():
        expected = source.stages(source.stem(images)).permute(0, 2, 3, 1)
    torch.testing.assert_close(tokens(branch, images), expected, rtol=1e-4, atol=1e-4)


def test_a_missing_file_is_named_with_where_to_fetch_it() -> None:
    with pytest.raises(CheckpointError, match=r"pretrained/intern_vit_6b_224px.pth; fetch .* from https://hugging"):
        ViTConfig(**SMALL).build().load_pretrained("pretrained/intern_vit_6b_224px.pth")


class Swin(Branch):
    """A hierarchical backbone of timm, as somebody else would write it: the names of its parameters are timm's."""

    def __init__(self) -> None:
        super().__init__()
        network = small_swin(num_classes=0)
        self.patch_embed, self.layers = network.patch_embed, network.layers
        self.specs = [FeatureSpec(16, 4), FeatureSpec(32, 8)]

    def embed(self, images: torch.Tensor) -> Tokens:
        return Tokens(self.patch_embed(images))

    def run_blocks(self, x: Tokens, start: int, stop: int) -> Tokens:
        y = x.map
        for layer in self.layers[start:stop]:
            y = layer(y)
        return Tokens(y)

    def layer_of(self, parameter: str) -> int | None:
        return None


def small_swin(num_classes: int) -> torch.nn.Module:
    size = {"img_size": 64, "window_size": 2, "embed_dim": 16, "depths": (1, 1), "num_heads": (1, 2)}
    return timm.create_model("swin_tiny_patch4_window7_224", num_classes=num_classes, **size)


def test_a_branch_with_timms_names_loads_what_timm_publishes_without_a_line_of_its_own(tmp_path: Path) -> None:
    source, branch = randomised(small_swin(10)), Swin().eval()
    torch.save(source.state_dict(), tmp_path / "swin.pth")
    head = torch.nn.Linear(32, 10)
    branch.load_pretrained(str(tmp_path / "swin.pth"), head={"head": head})
    images = torch.randn(1, 3, 64, 64)
    with torch.inference_mode():
        features = source.norm(tokens(branch, images)).mean((1, 2))
        torch.testing.assert_close(head(features), source(images), rtol=1e-4, atol=1e-4)

    before = branch.state_dict()["patch_embed.proj.bias"].clone()
    state = source.state_dict() | {"patch_embed.proj.bias": torch.zeros(16), "stem.weight": torch.zeros(3)}
    del state["layers.0.blocks.0.norm1.bias"]
    torch.save(state, tmp_path / "other.pth")
    with pytest.raises(CheckpointError, match=r"1 missing \(layers.0.blocks.0.norm1.bias\); 1 unknown \(stem.weight\)"):
        branch.load_pretrained(str(tmp_path / "other.pth"))
    assert branch.patch_embed.proj.bias.equal(before)
