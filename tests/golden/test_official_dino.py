"""DINO with official weights computes what the official code computed: every stage, every loss, every gradient.

The released 3x detector with fewer interactions, on weights and images of the golden rule (see rule.py).
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from piip.config.experiment import Config
from piip.config.load import config_from_dict, load_config
from piip.heads.dino.denoising import Noise, number_of_groups
from piip.heads.dino.head import Stages
from piip.heads.dino.objects import Objects, gather_objects
from piip.load import build_model
from piip.model import Model
from piip.official.checkpoints import convert_checkpoint
from piip.official.keys import key_table
from piip.weights.files import load_weights
from tests.golden.rule import golden_image, golden_targets, golden_value, recorded_positions

FOLDER = Path(__file__).parent
INFO = json.loads((FOLDER / "dino_sbl.json").read_text())
TRAINING = json.loads((FOLDER / "dino_sbl_train.json").read_text())
RECORDED = np.load(FOLDER / "dino_sbl.npz")
TOLERANCE = 1e-4  # of a tensor's standard deviation
CLASSES = 80


def shallow_config(interactions: int) -> Config:
    """The shipped config with the first interactions only, and without stochastic depth."""
    config = load_config("detection/dino_piip_sbl_1792_1120_672_3x").model_dump()
    backbone = config["model"]["backbone"]
    backbone["interactions"], backbone["interaction"]["drop_path"] = interactions, 0.0
    for branch in backbone["branches"]:
        depth = branch["depth"] // 12 * interactions
        kept = [block for block in branch["global_blocks"] if block < depth]
        branch |= {"depth": depth, "global_blocks": kept, "drop_path": 0.0}
    return config_from_dict(config)


def official_weights(key: str, shape: tuple[int, ...]) -> Tensor:
    return torch.from_numpy(np.asarray(golden_value(key, shape)))


def assert_recorded(name: str, value: Tensor) -> None:
    flat = value.detach().contiguous().numpy().reshape(-1)
    recorded, digest = RECORDED[name], INFO["digests"][name]
    assert list(value.shape) == digest["shape"], name
    error = np.abs(flat[recorded_positions(flat.size, len(recorded))] - recorded).max() / digest["std"]
    assert error < TOLERANCE, f"{name}: {error:.2e} standard deviations off"


def image_sizes(case: dict[str, Any]) -> list[tuple[int, int]]:
    return [(h, w) for h, w in case["input"]["valid_hw"]]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Model:
    folder = tmp_path_factory.mktemp("official")
    state = {key: official_weights(key, tuple(shape)) for key, shape in INFO["keys"]}
    torch.save({"meta": {}, "state_dict": state}, folder / "official.pth")
    assert sum(tensor.numel() for tensor in state.values()) == INFO["n_params"]
    del state
    config = shallow_config(INFO["interactions"])
    report = convert_checkpoint(folder / "official.pth", folder / "ours.safetensors", config=config)
    assert len(report.loaded) == len(INFO["keys"]) - 6
    assert [key.rpartition(".")[0] for key in report.unused] == [f"backbone.fpn1.{i}" for i in (0, 0, 1, 1, 3, 3)]
    with torch.device("meta"):
        model = build_model(config.model)
    model.to_empty(device="cpu")
    load_weights(model, folder / "ours.safetensors")
    return model.eval()


@pytest.fixture(scope="module")
def neck(model: Model) -> list[Tensor]:
    """The neck's maps; backbone and neck are checked on the way."""
    images = torch.from_numpy(golden_image(INFO["input"]["shape"], INFO["input"]["valid_hw"]))
    assert_recorded("input", images)
    with torch.inference_mode():
        features = model.backbone(images)
        maps = model.neck(features)
    for name, outputs in (("backbone", features), ("neck", maps)):
        for level, x in enumerate(outputs):
            assert_recorded(f"{name}/out{level}", x)
    return maps


@pytest.fixture(scope="module")
def stages(model: Model, neck: list[Tensor]) -> Stages:
    with torch.inference_mode():
        return model.head.stages(neck, image_sizes(INFO))


@pytest.mark.slow
def test_encoder_and_query_selection_are_the_recorded_ones(stages: Stages) -> None:
    assert_recorded("encoder/memory", stages.memory.transpose(0, 1))
    assert_recorded("enc/topk_score", stages.proposals.logits)
    assert_recorded("enc/topk_anchor", stages.proposals.boxes)


@pytest.mark.slow
def test_every_decoder_layer_gives_the_recorded_states_references_and_predictions(stages: Stages) -> None:
    assert_recorded("decoder/states", stages.states.transpose(1, 2))
    assert_recorded("decoder/references", stages.references)
    for layer, (logits, boxes) in enumerate(zip(*stages.predictions, strict=True)):
        assert_recorded(f"dec{layer}/cls", logits)
        assert_recorded(f"dec{layer}/bbox", boxes)


@pytest.mark.slow
def test_detections_are_the_recorded_ones(model: Model, neck: list[Tensor]) -> None:
    sizes = image_sizes(INFO)
    with torch.inference_mode():
        found = model.head.detect(neck, sizes)
        final = model.head.restore(found, sizes, [(480, 640), (480, 640)])
    assert [len(image["boxes"]) for image in found] == [INFO["n_det0"], INFO["n_det1"]]
    for image in range(2):
        for name, result in ((f"det{image}/bboxes50", found[image]), (f"final{image}/bboxes50_rescaled", final[image])):
            recorded = torch.from_numpy(RECORDED[name])
            torch.testing.assert_close(result["scores"][:50], recorded[:, 4], rtol=0, atol=1e-5)
            # The scores of this network are close to 1 and to each other, so near ties change places.
            distance, nearest = torch.cdist(recorded[:, :4], result["boxes"], p=torch.inf).min(dim=1)
            assert distance.max() < 0.01  # pixels
            labels = torch.from_numpy(RECORDED[f"det{image}/labels50"])
            assert (result["labels"][nearest] == labels).all()


def recorded_noise(objects: Objects) -> Noise:
    """What the recorded run drew, copy by copy over the objects of all images, put where our objects are."""
    copies, total = 2 * number_of_groups(objects, 100), sum(objects.counts)
    generator = np.random.default_rng(7)
    flipped = generator.random(copies * total).astype(np.float32) < 0.25
    labels = np.zeros(copies * total, np.int64)
    labels[flipped] = generator.integers(0, CLASSES, int(flipped.sum()))
    assert [call[1] for call in TRAINING["dn_random_calls"]] == [[320], [flipped.sum()], [320, 4], [320, 4]]
    sign = generator.integers(0, 2, (copies * total, 4)).astype(np.float32) * 2 - 1
    distance = generator.random((copies * total, 4)).astype(np.float32).reshape(copies, total, 4)
    distance[1::2] += 1
    shift = sign * distance.reshape(-1, 4)

    def place(drawn: np.ndarray) -> Tensor:
        placed = torch.zeros(copies, *objects.valid.shape, *drawn.shape[1:], dtype=torch.from_numpy(drawn).dtype)
        placed[:, objects.valid] = torch.from_numpy(drawn).view(copies, total, *drawn.shape[1:])
        return placed

    return Noise(place(flipped), place(labels), place(shift))


@pytest.mark.slow
def test_training_losses_and_gradients_are_the_recorded_ones() -> None:
    config = shallow_config(TRAINING["interactions"])
    with torch.device("meta"):
        model = build_model(config.model)
    model.to_empty(device="cpu").train()
    table = key_table(config.model.backbone)
    for key, tensor in model.state_dict().items():
        tensor.copy_(official_weights(table.to_official(key), tuple(tensor.shape)))
    sizes = image_sizes(TRAINING)
    images = torch.from_numpy(golden_image(TRAINING["input"]["shape"], sizes))
    targets = [
        {name: torch.from_numpy(value) for name, value in zip(("boxes", "labels", "masks"), image, strict=True)}
        for image in golden_targets(sizes)
    ]
    objects = gather_objects(targets, sizes)
    losses = model.head.loss_with_noise(model.features(images), sizes, objects, recorded_noise(objects))
    assert losses.keys() == TRAINING["losses"].keys() - {"loss"}
    for name, value in losses.items():
        assert value.item() == pytest.approx(TRAINING["losses"][name], rel=1e-4), name
    sum(losses.values()).backward()
    norms = {table.to_official(name): p.grad.norm().item() for name, p in model.named_parameters()}
    assert norms.keys() == TRAINING["grad_norms"].keys()
    for name, norm in norms.items():
        assert norm == pytest.approx(TRAINING["grad_norms"][name], rel=1e-3, abs=1e-5), name
