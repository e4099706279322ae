"""Parameter groups against those recorded from the official constructor, learning rates against mmcv's own hooks."""

from __future__ import annotations

import gzip
import json
import math
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from timm.scheduler import CosineLRScheduler
from torch import nn

from piip.config.experiment import OptimConfig, ScheduleConfig
from piip.config.load import load_config
from piip.engine.optim import build_optimizer, lr_factor, parameter_groups, set_lr, total_iterations
from piip.load import build_model
from piip.official.keys import key_table

RECORDED = json.loads(gzip.decompress((Path(__file__).parent / "official_groups.json.gz").read_bytes()))


def official_layer_ids(recorded: dict[str, Any]) -> dict[str, int]:
    """Layer of every parameter of a branch, by its official name: branch 1 is the deepest, the others have a stride."""
    strides = [1.0, *recorded["skip_stride"]]
    ids = {}
    for name, *_ in recorded["parameters"]:
        block = re.match(r"backbone\.branch(\d)\.blocks\.(\d+)\.", name)
        if block:
            ids[name] = math.floor((int(block[2]) + 1) * strides[int(block[1]) - 1])
        elif re.match(r"backbone\.branch\d\.(patch_embed|pos_embed|cls_token)", name):
            ids[name] = 0
    return ids


@pytest.mark.parametrize("network", RECORDED)
def test_groups_equal_the_recorded_official_ones(network: str) -> None:
    recorded = RECORDED[network]
    config = OptimConfig(lr=recorded["lr"], weight_decay=recorded["weight_decay"], layer_decay=recorded["layer_decay"])
    parameters = [(name, nn.Parameter(torch.zeros((1,) * ndim))) for name, ndim, *_ in recorded["parameters"]]
    groups = parameter_groups(parameters, official_layer_ids(recorded), recorded["depth"] + 2, config)

    found = {name: group for group in groups for name in group["param_names"]}
    assert len(found) == sum(len(group["params"]) for group in groups) == len(parameters)
    for name, _, scale, weight_decay, key in recorded["parameters"]:
        assert found[name]["lr_scale"] == pytest.approx(scale, rel=1e-12), name
        assert found[name]["lr"] == pytest.approx(recorded["lr"] * scale, rel=1e-12), name
        assert found[name]["weight_decay"] == weight_decay, name
        assert found[name]["name"] == key, name
    assert len(groups) == len({key for *_, key in recorded["parameters"]})


def test_our_network_puts_every_parameter_into_the_official_group() -> None:
    """PIIP-H6B 512/192: of two branches of unequal depth, and with batch norms behind them."""
    config = load_config("upernet_internvit_h6b_192_512_80k_ade20k_bs16_lr4e-5")
    with torch.device("meta"):
        model = build_model(config.model)
    groups = parameter_groups(model.named_parameters(), model.layer_ids(), model.num_layers, config.optim)
    table = key_table(config.model.backbone)
    found = {
        table.to_official(name): [group["lr_scale"], group["weight_decay"], group["name"]]
        for group in groups
        for name in group["param_names"]
    }
    recorded = {name: group for name, _, *group in RECORDED["h6b_upernet"]["parameters"]}
    assert found.keys() == recorded.keys()
    assert all(found[name][1:] == recorded[name][1:] for name in recorded)
    assert all(found[name][0] == pytest.approx(recorded[name][0], rel=1e-12) for name in recorded)


def test_frozen_parameters_are_in_no_group_and_a_wrong_layer_id_is_refused() -> None:
    frozen = nn.Parameter(torch.zeros(2, 2), requires_grad=False)
    trained = nn.Parameter(torch.zeros(2, 2))
    groups = parameter_groups([("a", frozen), ("b", trained)], {}, 3, OptimConfig())
    assert [group["param_names"] for group in groups] == [["b"]]
    with pytest.raises(ValueError, match="layer id 3 of b"):
        parameter_groups([("b", trained)], {"b": 3}, 3, OptimConfig())


def test_set_lr_keeps_each_groups_scale() -> None:
    parameters = [("early", nn.Parameter(torch.zeros(2, 2))), ("late", nn.Parameter(torch.zeros(2, 2)))]
    config = OptimConfig(lr=1.0, layer_decay=0.5, betas=(0.8, 0.9))
    optimizer = build_optimizer(parameter_groups(parameters, {"early": 0}, 3, config), config)
    schedule = ScheduleConfig(epochs=3, milestones=(1,), warmup_iterations=0)
    assert set_lr(optimizer, 4, base=1.0, schedule=schedule, epoch_length=4) == pytest.approx(0.1)
    assert [group["lr"] for group in optimizer.param_groups] == pytest.approx([0.025, 0.1])
    assert optimizer.param_groups[0]["betas"] == (0.8, 0.9)


# Recorded by driving the hooks of mmcv 1.7.1: base rate 1, 7 iterations an epoch, 4 epochs or 20 iterations.
WARMUP = [0.001, 0.1009, 0.2008, 0.3007, 0.4006, 0.5005, 0.6004, 0.7003, 0.8002, 0.9001]
COSINE_EPOCHS = [
    *WARMUP[:7],
    0.602871267,
    0.688872752,
    0.774874237,
    *[0.860875721] * 4,
    *[0.525] * 7,
    *[0.189124279] * 7,
]
POLY_EPOCHS = [*WARMUP[:7], 0.525225, 0.60015, 0.675075, *[0.75] * 4, *[0.5] * 7, *[0.25] * 7]
STEP_ITERATIONS = [*WARMUP[:6], 0.06004, 0.07003, 0.08002, 0.09001, *[0.1] * 5, *[0.01] * 5]
POLY_ITERATIONS = [
    1e-06, 0.238834848, 0.45521908, 0.648965993, 0.819871625, 0.774170612, 0.728163668, 0.681826632,
    0.635131409, 0.588044955, 0.540527864, 0.492532375, 0.443999458, 0.394854381, 0.344999627,
    0.294302843, 0.242574551, 0.189521855, 0.134633616, 0.076789501,
]  # fmt: skip
COSINE_ITERATIONS = [
    1.0, 0.99384417, 0.975528258, 0.945503262, 0.904508497, 0.853553391, 0.793892626, 0.72699525,
    0.654508497, 0.578217233, 0.5, 0.421782767, 0.345491503, 0.27300475, 0.206107374,
    0.146446609, 0.0954915028, 0.0544967379, 0.0244717419, 0.0061558297,
]  # fmt: skip
MMCV = [
    ({"epochs": 4, "policy": "step", "milestones": (2, 3)}, [*WARMUP, *[1.0] * 4, *[0.1] * 7, *[0.01] * 7]),
    ({"iterations": 20, "policy": "step", "milestones": (6, 15)}, STEP_ITERATIONS),
    ({"epochs": 4, "policy": "poly"}, POLY_EPOCHS),
    (
        {
            "iterations": 20,
            "policy": "poly",
            "power": 0.9,
            "min_lr_ratio": 0.01,
            "warmup_iterations": 4,
            "warmup_ratio": 1e-6,
        },
        POLY_ITERATIONS,
    ),
    ({"epochs": 4, "policy": "cosine", "min_lr_ratio": 0.05}, COSINE_EPOCHS),
    ({"iterations": 20, "policy": "cosine", "warmup_iterations": 0}, COSINE_ITERATIONS),
]


@pytest.mark.parametrize(
    ("settings", "expected"), MMCV, ids=lambda value: value["policy"] if isinstance(value, dict) else ""
)
def test_learning_rate_follows_mmcv(settings: dict[str, Any], expected: list[float]) -> None:
    schedule = ScheduleConfig(**{"warmup_iterations": 10, "warmup_ratio": 0.001} | settings)
    assert total_iterations(schedule, 7) == len(expected)
    assert [lr_factor(step, schedule, 7) for step in range(len(expected))] == pytest.approx(expected, rel=1e-7)


def test_the_released_classification_schedule_is_timms_as_the_official_loop_steps_it() -> None:
    """Which tells it of an epoch at its end; the two groups share start and floor, not the full rate."""
    config = load_config("classification/piip_tsb_368_192_128")
    parameters = [("backbone.branches.0.norm", nn.Parameter(torch.zeros(2))), ("new", nn.Parameter(torch.zeros(2)))]
    ours = build_optimizer(parameter_groups(parameters, {}, 2, config.optim, new={"new"}), config.optim)
    theirs = torch.optim.AdamW(
        [{"params": [parameter], "lr": 3e-5 * factor} for (_, parameter), factor in zip(parameters, (1, 10))]
    )
    scheduler = CosineLRScheduler(theirs, t_initial=20, lr_min=1e-5, warmup_t=5, warmup_lr_init=1e-6)
    for epoch in range(20):
        for step in (3 * epoch, 3 * epoch + 2):
            set_lr(ours, step, base=config.optim.lr, schedule=config.schedule, epoch_length=3)
            assert [g["lr"] for g in ours.param_groups] == pytest.approx([g["lr"] for g in theirs.param_groups])
        scheduler.step(epoch)
    assert [group["weight_decay"] for group in ours.param_groups] == [0.1, 0.1]


def test_what_no_pretrained_network_has_is_new_and_everything_decays() -> None:
    config = load_config("classification/piip_tsb_368_192_128")
    with torch.device("meta"):
        model = build_model(config.model)
    names = {name for name, _ in model.named_parameters()}
    new = model.new_parameters()
    assert new == {name for name in names if name.startswith("backbone.interactions.")}
    groups = parameter_groups(model.named_parameters(), model.layer_ids(), model.num_layers, config.optim, new=new)
    assert {(group["lr_scale"], group["weight_decay"]) for group in groups} == {(1.0, 0.1), (10.0, 0.1)}
    assert {name for group in groups if group["lr_scale"] == 10 for name in group["param_names"]} == new


def test_a_schedule_of_timm_counts_epochs() -> None:
    with pytest.raises(ValueError, match="give epochs instead of iterations"):
        ScheduleConfig(iterations=10, policy="timm_cosine")
