"""What training needs is worked out without values, and holds against a real step."""

from __future__ import annotations

import json

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from piip.bench.network import random_batch
from piip.config.load import load_config
from piip.load import build_model
from piip.memory import _kept, _storage, fake_model, needs, training_size
from tests.cli.chain import run, succeed

NANO = {
    "detection/mask_rcnn_piip_nano_shapes": (
        0.95,
        1.3,
    ),  # its heads at the limits of inference, which are above training's
    "detection/dino_piip_nano_shapes": (0.9, 1.1),
    "segmentation/upernet_piip_nano_shapes": (0.85, 1.05),
    "classification/piip_nano_shapes": (0.9, 1.05),
}


def really_kept(name: str, size: int, batch: int) -> int:
    """Bytes that autograd keeps of a real forward pass with all losses."""
    config = load_config(name)
    model, images = build_model(config.model).train(), random_batch(config, batch, size)
    seen = {_storage(tensor) for tensor in (*model.parameters(), *model.buffers(), images.images)}
    kept: list[Tensor] = []

    def keep(tensor: Tensor) -> Tensor:
        if _storage(tensor) not in seen:
            seen.add(_storage(tensor))
            kept.append(tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        losses = model(images)
    assert losses
    return sum(tensor.untyped_storage().nbytes() for tensor in kept)


@pytest.mark.parametrize("name", NANO)
def test_activations_are_those_of_a_real_step(name: str) -> None:
    mode = FakeTensorMode(allow_non_fake_inputs=True)
    model = fake_model(load_config(name), mode)
    with mode:
        found = _kept(model, torch.empty(4, 3, 320, 320))
    least, most = NANO[name]
    assert least <= found / really_kept(name, 320, 4) <= most


def test_states_are_the_arithmetic_of_the_parameters() -> None:
    config = load_config("detection/mask_rcnn_piip_nano_shapes", ["train.ema=0.99"])
    whole = 4 * sum(p.numel() for p in build_model(config.model).parameters())
    found = {(need.shard, need.checkpointed): need for need in needs(config, gpus=8, batch=1)}
    alone, shared = found[1, False], found[8, False]
    assert (alone.parameters, alone.gradients, alone.optimizer, alone.average) == (whole, whole, 2 * whole, whole)
    assert (shared.parameters, shared.optimizer) == (whole / 8, whole / 4)
    assert shared.activations == alone.activations
    again = found[1, True]
    assert again.activations < alone.activations
    assert again.transient > 0


def test_what_does_not_train_has_no_gradients() -> None:
    name = "detection/mask_rcnn_piip_nano_shapes"
    trained, frozen = (
        needs(load_config(name, words), gpus=1, batch=1)[0]
        for words in ([], ["model.backbone.branches.2.freeze=true", "model.backbone.branches.1.freeze=true"])
    )
    assert frozen.parameters == trained.parameters
    assert frozen.gradients < trained.gradients
    assert frozen.activations < trained.activations


def test_foundation_branches_are_known_too() -> None:
    words = ["model.backbone.branches=[{type: timm_vit, model: vit_small_patch16_dinov3, window_size: 14}, {size: T}]"]
    words += ["model.backbone.resolutions=[128, 64]", "model.backbone.interactions=2", "model.backbone.every_branch={}"]
    alone, shared, *_ = needs(load_config("detection/mask_rcnn_piip_nano_shapes", words), gpus=4, batch=1)
    assert alone.parameters == 4 * shared.parameters > 4 * 27e6


def test_images_have_the_largest_size_of_the_recipe() -> None:
    assert training_size(load_config("detection/mask_rcnn_piip_tsb_1568_1120_672")) == (1120, 1568)  # padded to 224
    assert training_size(load_config("detection/mask_rcnn_piip_h6b_1024_512")) == (1024, 1024)
    assert training_size(load_config("classification/piip_sbl_384_192_128")) == (384, 384)


def test_the_simplest_layout_that_fits_is_suggested() -> None:
    name = "detection/mask_rcnn_piip_nano_shapes"
    layouts = json.loads(succeed("memory", name, "--batch", 1, "--json").stdout)["layouts"]
    peaks = [layout["peak"] for layout in layouts]
    for limit, expected in (
        (max(peaks) * 1.01, layouts[0]),
        (peaks[0] * 0.99, next(x for x in layouts if x["peak"] < peaks[0])),
    ):
        document = json.loads(succeed("memory", name, "--batch", 1, "--limit", f"{limit / 1e9:.6f}GB", "--json").stdout)
        assert document["suggested"]["shard"] == expected["shard"]
        assert document["suggested"]["checkpointed"] == expected["checkpointed"]
    assert "No layout on 8 GPUs fits 0.001GB" in succeed("memory", name, "--limit", "0.001GB").stdout
    assert run("memory", name, "--limit", "much").exit_code == 2
