"""Models prepared for inference: what autocast gives, to the bit, without casting a weight."""

from __future__ import annotations

from typing import Any, TypeVar

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from piip.backbone.config import BackboneConfig
from piip.backbone.piip import PIIP
from piip.bench.operators import Operators
from piip.config.load import load_config
from piip.load import build_model
from piip.model import Model
from piip.precision import prepare, prepared_copy

M = TypeVar("M", bound=nn.Module)
BF16 = torch.bfloat16
VIT = {"embed_dim": 32, "depth": 2, "num_heads": 2, "pretrain_size": 64}
# By what they have that others have not.
BRANCHES: dict[str, list[dict[str, Any]]] = {
    "windows": [VIT | {"window_size": 3}, VIT | {"embed_dim": 64, "window_size": 3}, VIT | {"embed_dim": 96}],
    "beit": [VIT | {"window_size": 3, "position": "relative", "qkv_bias": "qv"}, VIT | {"embed_dim": 64}],
    "internvit": [VIT, VIT | {"embed_dim": 64, "norm": "rms", "qk_norm": True, "qkv_bias": "none"}],
    "uniperceiver": [VIT | {"embed_norm": True, "frame_embed": True}, VIT | {"layer_scale": None}],
    "convnext": [{"type": "convnext", "model": "convnext_atto"}, VIT | {"depth": 15}],
    "single": [VIT | {"embed_dim": 96}],
}


def backbone(kind: str, **interaction: Any) -> PIIP:
    """With random gains, where the fresh ones would hide what is behind them."""
    torch.manual_seed(0)
    branches = BRANCHES[kind]
    config = BackboneConfig.model_validate(
        {
            "branches": branches,
            "resolutions": [128, 96, 64][: len(branches)],
            "interactions": 2,
            "interaction": {"num_heads": 2} | interaction,
        }
    )
    return randomise(PIIP(config)).eval()


def randomise(model: M) -> M:
    for name, parameter in model.named_parameters():
        if name.endswith(("gamma", "table", "q_bias", "v_bias")):
            nn.init.normal_(parameter, std=0.5)
    return model


def nano(name: str) -> Model:
    torch.manual_seed(0)
    return randomise(build_model(load_config(name).model)).eval()


def assert_same(found: Any, expected: Any) -> None:
    torch.testing.assert_close(found, expected, rtol=0, atol=0, equal_nan=True)


@torch.inference_mode()
@pytest.mark.parametrize("kind", BRANCHES)
def test_a_prepared_backbone_gives_what_autocast_gives_to_the_bit(kind: str) -> None:
    network, images = backbone(kind), torch.randn(2, 3, 96, 128)
    with torch.autocast("cpu", dtype=BF16):
        expected = network(images)
    assert_same(prepared_copy(network, BF16)(images), expected)
    assert_same(prepared_copy(network, torch.float32)(images), network(images))


@pytest.mark.parametrize(
    "name",
    [
        "detection/mask_rcnn_piip_nano_shapes",
        "detection/dino_piip_nano_shapes",
        "segmentation/upernet_piip_nano_shapes",
        "classification/piip_nano_shapes",
    ],
)
def test_a_prepared_model_gives_what_autocast_gives_to_the_bit(name: str) -> None:
    model, images, sizes = nano(name), torch.randn(1, 3, 128, 128), [(128, 112)]
    with torch.autocast("cpu", dtype=BF16):
        expected = model.infer(images, sizes)
    assert_same(prepared_copy(model, BF16).infer(images, sizes), expected)
    with torch.autocast("cpu", dtype=BF16):  # which has nothing left to do
        assert_same(prepare(model, BF16).infer(images, sizes), expected)


def dtypes(part: nn.Module, kind: type[nn.Module]) -> set[torch.dtype]:
    found = (module for module in part.modules() if isinstance(module, kind))
    return {p.dtype for module in found for p in module.parameters(recurse=False)}


def test_only_what_autocast_would_cast_is_held_in_bfloat16() -> None:
    model = prepare(nano("detection/dino_piip_nano_shapes"), BF16)
    for kind in (nn.Linear, nn.Conv2d, nn.ConvTranspose2d):
        assert dtypes(model.backbone, kind) == {BF16}
    for kind in (nn.LayerNorm, nn.GroupNorm):
        assert dtypes(model, kind) == {torch.float32}
    head = model.head
    for part in (model.neck, head.proposer, head.decoder.predictors):
        assert {p.dtype for p in part.parameters()} == {torch.float32}
    for part in (head.encoder, head.decoder.layers, head.decoder.box_encoding):
        assert dtypes(part, nn.Linear) == {BF16}
    assert dtypes(head.decoder, nn.MultiheadAttention) == {BF16}
    whole = prepare(nano("detection/mask_rcnn_piip_nano_shapes"), BF16)
    assert {p.dtype for p in whole.head.parameters()} == {torch.float32}


def test_a_copy_shares_what_stays_and_leaves_the_model_to_its_training() -> None:
    model = nano("detection/mask_rcnn_piip_nano_shapes").train()
    before = {name: (tensor.data_ptr(), tensor.clone()) for name, tensor in model.state_dict().items()}
    copied = prepared_copy(model, BF16)
    assert not copied.training
    assert model.training
    own = [p for p in copied.parameters() if p.data_ptr() not in {x.data_ptr() for x in model.parameters()}]
    assert {p.dtype for p in own} == {BF16}
    assert {p.dtype for p in model.parameters()} == {torch.float32}
    copied.infer(torch.randn(1, 3, 64, 64), [(64, 64)])
    for name, tensor in model.state_dict().items():
        assert (tensor.data_ptr(), True) == (before[name][0], tensor.equal(before[name][1])), name
    assert all(p.requires_grad for p in model.parameters())
    assert not any(module._forward_pre_hooks for module in model.modules())
    sum(x.square().mean() for x in model.backbone(torch.randn(1, 3, 64, 64))).backward()


class OneDtype(TorchDispatchMode):
    """Refuses what GPUs refuse: layers whose input and weights differ in dtype."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func.name().split("::")[1].split(".")[0] in ("linear", "conv2d", "layer_norm", "group_norm", "rms_norm"):
            assert len({x.dtype for x in tree_leaves((args, kwargs)) if isinstance(x, Tensor)}) == 1, func
        return func(*args, **(kwargs or {}))


@torch.inference_mode()
@pytest.mark.parametrize("kind", BRANCHES)
def test_off_the_cpu_every_layer_gets_its_input_in_the_dtype_of_its_weights(kind: str) -> None:
    with OneDtype():
        maps = prepare(backbone(kind).to("meta"), BF16)(torch.empty(1, 3, 96, 128, device="meta"))
    assert all(x.dtype in (BF16, torch.float32) for x in maps)


@torch.inference_mode()
def test_a_prepared_backbone_casts_no_weight_and_makes_no_grid() -> None:
    network, images = prepared_copy(backbone("windows"), BF16), torch.randn(1, 3, 128, 128)
    network(images)
    with Operators() as second:
        network(images)
    assert all(len(shape) >= 3 and shape[0] == 1 for shape in second.casts)
    assert not second.counts.keys() & {"arange", "stack", "div", "upsample_bicubic2d", "cat"}


@torch.inference_mode()
@pytest.mark.parametrize("kind", ["windows", "uniperceiver"])
def test_no_norm_has_to_bring_its_input_into_another_layout(kind: str) -> None:
    network = backbone(kind)
    with Operators() as operators:
        network(torch.randn(2, 3, 96, 128))
    assert operators.contiguous
    assert all(operators.contiguous)


@torch.inference_mode()
def test_operators_of_a_released_backbone() -> None:
    """On meta tensors, where norms take one dtype as they do on GPUs; on the CPU there are 103 casts fewer."""
    with torch.device("meta"):
        network = build_model(load_config("detection/mask_rcnn_piip_tsb_1120_896_448").model).backbone
        images = torch.empty(1, 3, 1120, 1120)
    prepare(network, BF16)(images)
    with Operators() as operators:
        network(images)
    assert operators.total <= 1530, operators.counts


def test_a_prepared_backbone_compiles_to_one_graph() -> None:
    network, images = prepare(backbone("beit"), BF16), torch.randn(1, 3, 96, 128)
    compiled = torch.compile(network, backend="eager", fullgraph=True)
    with torch.no_grad():
        assert_same(compiled(images), network(images))


def float32_layers(model: nn.Module) -> list[str]:
    """The linear layers that compute in float32 under autocast."""
    found: list[str] = []
    for name, module in model.named_modules():
        if isinstance(module, nn.Linear):
            module.register_forward_hook(
                lambda _, __, out, name=name: found.append(name) if out.dtype == torch.float32 else None
            )
    return found


def test_deformable_attention_stays_in_float32_where_the_config_says_so() -> None:
    network, images = backbone("windows", mixed_precision=False), torch.randn(1, 3, 96, 128)
    found = float32_layers(network)
    with torch.autocast("cpu", dtype=BF16):
        expected = network(images)
    assert {name.split(".attn.")[-1].split(".")[0] for name in found} == {"deform"}
    assert len(found) == 2 * 2 * 2 * 4  # interactions, units, directions, layers of each
    with torch.inference_mode():
        assert_same(prepare(network, BF16)(images), expected)


def test_dinos_head_stays_in_float32_where_the_config_says_so() -> None:
    config = load_config("detection/dino_piip_nano_shapes", ["model.head.mixed_precision=false"])
    torch.manual_seed(0)
    model: Model = build_model(config.model).eval()
    head = sum(isinstance(module, nn.Linear) for module in model.head.modules())
    found = float32_layers(model)
    with torch.autocast("cpu", dtype=BF16):
        model.infer(torch.randn(1, 3, 64, 64), [(64, 64)])
    # The output layers of self-attention are not called as modules.
    assert len({name for name in found if name.startswith("head.")}) == head - len(model.head.decoder.layers)
    assert {p.dtype for p in prepare(model, BF16).head.parameters()} == {torch.float32}
