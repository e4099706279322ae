"""Shipped Mask R-CNN and UperNet configs against the official ones, resolved: network, images, optimizer, schedule."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from piip.branches.config import BranchConfig
from piip.branches.hierarchical.config import ConvNeXtConfig
from piip.config.experiment import Config
from piip.config.load import load_config
from piip.heads.upernet.config import UperNetConfig
from piip.official.branch_class import branch_classes, class_of_pretrained
from piip.official.configs.settings import our_settings
from tests.official.recorded import official_recipes

MASK_RCNN = sorted(stem for stem in official_recipes() if stem.startswith("mask_rcnn_"))
UPERNET = sorted(stem for stem in official_recipes() if stem.startswith("upernet_"))


def official_branches(backbone: dict[str, Any]) -> list[dict[str, Any]]:
    """Finest first."""
    if "branch1" not in backbone:
        return [backbone]
    return [backbone[f"branch{number}"] for number in range(4, 0, -1) if f"branch{number}" in backbone]


def check_branch(ours: BranchConfig, official: dict[str, Any], *, grid: str) -> None:
    """grid: the official setting that gives the size of the position embedding."""
    if isinstance(ours, ConvNeXtConfig):
        size = ours.model.removeprefix("convnext_")
        assert official["pretrained"] == f"facebook/convnext-{size}-224"
        assert ours.drop_path == (official.get("drop_path_rate") or 0.0)
        return
    for name in ("embed_dim", "depth", "num_heads", "mlp_ratio", "patch_size"):
        assert getattr(ours, name) == official[name], name
    file = official["pretrained"].rsplit("/", 1)[-1]
    assert ours.drop_path == official["drop_path_rate"]
    assert ours.drop_path_schedule == ("constant" if "deit" in file else "linear")  # the class goes by the file's name
    assert ours.pretrain_size == official[grid]
    assert ours.checkpoint_activations == official.get("with_cp", False)
    assert ours.norm == ("rms" if official.get("norm_layer_type") == "RMSNorm" else "layer")
    assert ours.qk_norm == official.get("qk_normalization", False)
    assert (ours.qkv_bias == "none") == (not official.get("qkv_bias", True))
    assert (ours.activation == "gelu_tanh") == ("fused_mlp" in (official.get("mlp_type"), official.get("Mlp_block")))
    assert ours.layer_scale == (0.0 if "perceiver" in file else official.get("init_values", official.get("init_scale")))
    assert (ours.position == "relative", ours.qkv_bias == "qv") == ("beit" in file,) * 2
    assert (ours.embed_norm, ours.frame_embed, ours.norm_eps == 1e-5) == ("perceiver" in file,) * 3


@pytest.mark.parametrize("stem", MASK_RCNN + UPERNET)
def test_the_network_is_the_official_one(stem: str) -> None:
    official = official_recipes()[stem]["model"]["backbone"]
    backbone = load_config(stem).model.backbone
    branches = official_branches(official)
    assert len(backbone.branches) == len(branches)
    for ours, theirs in zip(backbone.branches, branches, strict=True):
        # Mask R-CNN resizes positions on every forward pass; UperNet holds them at the size of its crop.
        check_branch(ours, theirs, grid="img_size" if stem in UPERNET else "pretrain_img_size")
    if len(branches) > 1:
        sizes = [branch["real_size"] for branch in branches]
        assert list(backbone.resolutions) == sizes
        ends = [[group[-1] for group in branch["interaction_indexes"]] for branch in branches]
        if isinstance(backbone.interactions, int):
            count = backbone.interactions
            depths = [branch["depth"] for branch in branches]
            assert ends == [[(i + 1) * depth // count - 1 for i in range(count)] for depth in depths]
        else:
            assert [list(blocks) for blocks in backbone.interactions] == ends
        interaction = backbone.interaction
        assert interaction.num_heads == official["deform_num_heads"]
        assert interaction.points == official["n_points"]
        assert interaction.ffn_ratio == official["cffn_ratio"]
        assert interaction.value_ratio == official["deform_ratio"]
        assert interaction.drop_path == official["interaction_drop_path_rate"]
        assert interaction.projection == official.get("interaction_proj", True)
        assert (interaction.norm == "none") == (official.get("norm_layer") == "none")
        assert list(backbone.outputs) == official.get("out_interaction_indexes", [])


# Sides of the attention windows of every block, finest branch first, as the files say; 0 is global attention.
WINDOWS = {
    "mask_rcnn_deit_vit_b_fpn_1x_coco_bs16": [[14, 14, 0] * 4],
    "mask_rcnn_deit_vit_l_fpn_1x_coco_bs16": [[14, 14, 0] * 8],
    "mask_rcnn_deit_tsb_1568_1120_672_fpn_1x_coco_bs16": [[14] * 12, [14] * 12, [14] * 12],
    "mask_rcnn_beit_sbl_1568_1120_672_fpn_1x_coco_bs16": [[28] * 12, [28] * 12, [28] * 24],
    "mask_rcnn_internvit_h6b_1024_512_fpn_1x_coco_bs16_ms": [[0] * 32, [0] * 48],
}


@pytest.mark.parametrize("stem", WINDOWS)
def test_blocks_attend_in_the_windows_of_the_official_files(stem: str) -> None:
    settings = our_settings(official_recipes()[stem], Path(f"{stem}.py"), [])["model"]["backbone"]["branches"]
    shipped = [branch.model_dump(mode="json") for branch in load_config(stem).model.backbone.branches]
    for branches in (settings, shipped):
        found = [
            [0 if block in branch["global_blocks"] else branch["window_size"] for block in range(branch["depth"])]
            for branch in branches
        ]
        assert found == WINDOWS[stem]


@pytest.mark.parametrize("stem", sorted(official_recipes()))
def test_a_branch_has_the_official_class_that_its_file_asks_for(stem: str) -> None:
    """Where the official code goes by the class or the names of weights, we go by what the branch is made of."""
    names = {"BEiT": "beit", "ConvNextHFWrapper": "convnext", "InternViT6B": "internvit", "vit_models": "deit"}
    official = official_branches(official_recipes()[stem]["model"]["backbone"])
    expected = [names.get(branch.get("type")) or class_of_pretrained(branch["pretrained"]) for branch in official]
    assert branch_classes(load_config(stem).model.backbone) == expected


def steps(pipeline: list[dict[str, Any]], kind: str) -> list[dict[str, Any]]:
    return [step for step in pipeline if step["type"] == kind]


def scales(step: dict[str, Any]) -> list[tuple[int, int]]:
    listed = step["img_scale"] if isinstance(step["img_scale"][0], list) else [step["img_scale"]]
    return [(max(scale), min(scale)) for scale in listed]


def check_images(config: Config, data: dict[str, Any]) -> None:
    train, transforms = data["train"]["pipeline"], config.data.train_transforms
    (test,) = steps(data["val"]["pipeline"], "MultiScaleFlipAug")
    assert list(config.data.val_transforms.resize) == scales(test)
    assert config.data.val_transforms.pad_divisor == steps(test["transforms"], "Pad")[0]["size_divisor"]
    assert transforms.pad_divisor == steps(train, "Pad")[0]["size_divisor"]
    assert transforms.flip == steps(train, "RandomFlip")[0]["flip_ratio"]
    normalise = steps(train, "Normalize")[0]
    assert list(config.model.mean) == normalise["mean"]
    assert list(config.model.std) == normalise["std"]
    if steps(train, "AutoAugment"):
        plain, zoomed = steps(train, "AutoAugment")[0]["policies"]
        assert transforms.zoom is not None
        assert transforms.zoom.probability == 0.5
        assert list(transforms.resize) == scales(plain[0]) == scales(zoomed[2])
        assert list(transforms.zoom.resize) == scales(zoomed[0])
        assert list(transforms.zoom.crop) == zoomed[1]["crop_size"]
        assert [transforms.crop] * 2 == steps(train, "RandomCrop")[0]["crop_size"]
    else:
        assert list(transforms.resize) == scales(steps(train, "Resize")[0])
        assert (transforms.zoom, transforms.crop) == (None, None)


@pytest.mark.parametrize("stem", MASK_RCNN)
def test_images_optimizer_and_schedule_are_the_official_ones(stem: str) -> None:
    official, config = official_recipes()[stem], load_config(stem)
    check_images(config, official["data"])
    optimizer = official["optimizer"]
    assert (config.optim.lr, config.optim.weight_decay) == (optimizer["lr"], optimizer["weight_decay"])
    assert list(config.optim.betas) == optimizer["betas"]
    decay = optimizer.get("paramwise_cfg", {})
    assert config.optim.layer_decay == decay.get("layer_decay_rate", 1.0)
    assert config.optim.decay_all == ("constructor" not in optimizer)
    assert config.optim.clip_grad_norm is None
    assert config.data.batch_size == (32 if "bs32" in stem else 16)
    assert config.schedule.epochs == official["runner"]["max_epochs"]
    schedule = official["lr_config"]
    assert list(config.schedule.milestones) == schedule["step"]
    assert config.schedule.warmup_iterations == schedule["warmup_iters"]
    assert config.schedule.warmup_ratio == schedule["warmup_ratio"]


@pytest.mark.parametrize("stem", UPERNET)
def test_head_images_optimizer_and_schedule_of_upernet_are_the_official_ones(stem: str) -> None:
    official, config = official_recipes()[stem], load_config(stem)
    head, model, transforms = config.model.head, official["model"], config.data.train_transforms
    assert isinstance(head, UperNetConfig)
    decode, auxiliary = model["decode_head"], model["auxiliary_head"]
    assert (head.num_classes, head.channels, head.dropout) == (150, decode["channels"], decode["dropout_ratio"])
    assert (auxiliary["num_classes"], auxiliary["channels"], auxiliary["dropout_ratio"]) == (150, head.channels, 0.1)
    assert list(head.pool_scales) == decode["pool_scales"]
    assert (head.auxiliary_level, head.auxiliary_weight) == (
        auxiliary["in_index"],
        auxiliary["loss_decode"]["loss_weight"],
    )
    assert model["test_cfg"] == {"mode": "slide", "crop_size": [head.window] * 2, "stride": [head.stride] * 2}

    train = official["data"]["train"]["pipeline"]
    (resize,), (crop,), (pad,), (normalise,) = (
        steps(train, kind) for kind in ("Resize", "RandomCrop", "Pad", "Normalize")
    )
    assert (transforms.resize, transforms.ratio_range) == (tuple(resize["img_scale"]), tuple(resize["ratio_range"]))
    assert ([transforms.crop] * 2, transforms.crop_max_share) == (crop["crop_size"], crop["cat_max_ratio"])
    assert [transforms.pad_divisor] * 2 == pad["size"]
    assert transforms.flip == steps(train, "RandomFlip")[0]["prob"]
    assert transforms.photometric == bool(steps(train, "PhotoMetricDistortion"))
    assert (list(config.model.mean), list(config.model.std)) == (normalise["mean"], normalise["std"])
    (test,) = steps(official["data"]["val"]["pipeline"], "MultiScaleFlipAug")
    assert config.data.val_transforms.resize == (None, min(test["img_scale"]))
    assert config.data.train.reduce_zero_label == steps(train, "LoadAnnotations")[0]["reduce_zero_label"]

    optimizer, rate, schedule = official["optimizer"], official["lr_config"], config.schedule
    assert (config.optim.lr, config.optim.weight_decay) == (optimizer["lr"], optimizer["weight_decay"])
    assert list(config.optim.betas) == optimizer["betas"]
    assert config.optim.layer_decay == optimizer["paramwise_cfg"]["layer_decay_rate"]
    assert config.optim.clip_grad_norm is None
    assert config.data.batch_size == 8 * official["data"]["samples_per_gpu"] == 16
    assert schedule.iterations == official["runner"]["max_iters"]
    assert (schedule.policy, schedule.power, schedule.min_lr_ratio) == ("poly", rate["power"], rate["min_lr"])
    assert (schedule.warmup_iterations, schedule.warmup_ratio) == (rate["warmup_iters"], rate["warmup_ratio"])


@pytest.mark.parametrize("stem", MASK_RCNN + UPERNET)
def test_layer_decay_has_the_released_strides(stem: str) -> None:
    """Blocks of a shallower ViT branch are spread over the decay's layers as `skip_stride` says."""
    decay = official_recipes()[stem]["optimizer"].get("paramwise_cfg")
    branches = load_config(stem).model.backbone.branches
    depths = [branch.depth for branch in branches if not isinstance(branch, ConvNeXtConfig)]
    if decay is None or not depths:
        return
    assert max(depths) == decay["num_layers"]
    given = decay.get("skip_stride", [])
    strides = [*reversed(given if isinstance(given, list) else [given]), 1]
    for branch, stride in zip(branches, strides, strict=True):
        if not isinstance(branch, ConvNeXtConfig):
            assert max(depths) / branch.depth == stride
