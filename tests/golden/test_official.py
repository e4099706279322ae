"""A detector with official weights computes what the official code computed.

The weights come from the golden rule, are written as an official checkpoint, converted by `convert_checkpoint` and
loaded;
every recorded stage is then compared: relative to its standard deviation for maps, in pixels for boxes.
"""

from __future__ import annotations

import json
from collections.abc import Sequence

import numpy as np
import pytest
import torch
from torch import Tensor

from piip.config.load import config_from_dict, load_config
from piip.data.batch import Batch
from piip.heads.mask_rcnn.roi import pool
from piip.load import build_model
from piip.model import Model
from piip.official.checkpoints import convert_checkpoint
from piip.official.keys import KeyTable
from piip.weights.files import load_weights
from tests.golden.cases import CASES, FOLDER, Case, backbone_errors, build
from tests.golden.rule import golden_image, golden_targets, golden_value

TOLERANCE = 1e-4  # of a tensor's standard deviation
DETECTORS = ("tsb_1120_896_448", "h6b_reduced_maskrcnn", "baseline_vit_b")
FAST = ("h6b_reduced_speedup_bb", "beit_sbl_bb")
BACKBONES = [
    pytest.param(name, marks=[] if name in FAST else [pytest.mark.slow])
    for name in CASES
    if name.endswith("_bb") and (FOLDER / f"{name}.npz").is_file()
]


def official_weights(key: str, shape: Sequence[int]) -> Tensor:
    return torch.from_numpy(np.asarray(golden_value(key, tuple(shape))))


@pytest.mark.parametrize("name", BACKBONES)
def test_every_recorded_stage_of_a_backbone(name: str) -> None:
    case = Case(name)
    errors = dict(backbone_errors(case, build(case)))
    assert errors.keys() == case.values.keys()
    assert max(errors.values()) < TOLERANCE, errors


@pytest.fixture(scope="module", params=DETECTORS)
def case(request: pytest.FixtureRequest) -> Case:
    return Case(request.param)


@pytest.fixture(scope="module")
def model(case: Case, tmp_path_factory: pytest.TempPathFactory) -> Model:
    """The network of an official checkpoint, converted and loaded as users do it."""
    folder = tmp_path_factory.mktemp("official")
    model = build_model(case.config.model)
    state = case.official_state(model.state_dict().keys())
    torch.save({"meta": {}, "state_dict": state}, folder / "official.pth")
    report = convert_checkpoint(folder / "official.pth", folder / "ours.safetensors", config=case.config)
    assert len(report.loaded) == len(state)
    load_weights(model, folder / "ours.safetensors")
    return model.eval()


@pytest.fixture(scope="module")
def neck(case: Case, model: Model) -> list[Tensor]:
    """The neck's maps; backbone and neck are checked on the way."""
    errors = dict(backbone_errors(case, model))
    assert {"backbone/out3", "neck/out4"} <= errors.keys()
    assert max(errors.values()) < TOLERANCE, errors
    with torch.inference_mode():
        return model.features(case.images())


def assert_recorded(case: Case, name: str, value: Tensor) -> None:
    error = case.error(name, value)
    assert error < TOLERANCE, f"{name}: {error:.2e} standard deviations off"


@pytest.mark.slow
def test_region_proposals_are_the_recorded_ones(case: Case, model: Model, neck: list[Tensor]) -> None:
    with torch.inference_mode():
        outputs = model.head.rpn(neck)
        proposals = model.head.rpn.propose(outputs, case.sizes, pre_nms=1000)
    for level, x in enumerate(neck):
        grid = (len(x), *x.shape[2:])
        assert_recorded(case, f"rpn/cls{level}", outputs.logits[level].view(*grid, 3).permute(0, 3, 1, 2))
        assert_recorded(case, f"rpn/bbox{level}", outputs.deltas[level].reshape(*grid, 12).permute(0, 3, 1, 2))
    for image, (boxes, scores) in enumerate(proposals):
        recorded = torch.from_numpy(case.values[f"proposals{image}/all"])
        torch.testing.assert_close(scores, recorded[:, 4], rtol=0, atol=1e-5)
        # Near ties change places, so each recorded box is looked up among ours.
        distance = torch.cdist(recorded[:, :4], boxes, p=torch.inf).amin(dim=1)
        assert (distance < 0.01).float().mean() > 0.995


@pytest.mark.slow
def test_the_box_head_on_the_recorded_proposals(case: Case, model: Model, neck: list[Tensor]) -> None:
    proposals = [torch.from_numpy(case.values[f"proposals{image}/all"][:, :4]) for image in range(len(case.sizes))]
    with torch.inference_mode():
        pooled = pool(neck[:4], model.head.strides[:4], proposals, 7)
        logits, deltas = model.head.box(pooled)
    assert_recorded(case, "roi/bbox_feats", pooled)
    assert_recorded(case, "roi/cls_score", logits)
    assert_recorded(case, "roi/bbox_pred", deltas.flatten(1))


@pytest.mark.slow
def test_detections_and_masks_are_the_recorded_ones(case: Case, model: Model, neck: list[Tensor]) -> None:
    with torch.inference_mode():
        stages = model.head.stages(neck, case.sizes)
        final = model.head.restore(model.head.detect(neck, case.sizes), case.sizes, [(480, 640)] * len(case.sizes))
    counts = [len(image["boxes"]) for image in stages.detections]
    assert counts == [case.info[f"n_det{image}"] for image in range(len(counts))]
    first20 = [logits[:20] for logits in stages.mask_logits.split(counts)]
    assert_recorded(case, "mask/logits_top20", torch.cat(first20))
    for image, (found, result) in enumerate(zip(stages.detections, final, strict=True)):
        for name, boxes, scores in (
            (f"det{image}/bboxes50", found["boxes"], found["scores"]),
            (f"final{image}/bboxes50_rescaled", result["boxes"], result["scores"]),
        ):
            recorded = torch.from_numpy(case.values[name])
            torch.testing.assert_close(boxes[:50], recorded[:, :4], rtol=0, atol=0.01)  # pixels
            torch.testing.assert_close(scores[:50], recorded[:, 4], rtol=0, atol=1e-5)
        assert found["labels"][:50].tolist() == case.values[f"det{image}/labels50"].tolist()
        areas = torch.from_numpy(case.values[f"final{image}/mask_areas_in_det_order"])
        assert (result["masks"].sum(dim=(1, 2)) - areas).abs().max() <= 2  # pixels at exactly one half


CASE = DETECTORS[0]
TRAINING = json.loads((FOLDER / f"{CASE}_train.json").read_text())


@pytest.mark.slow
def test_training_losses_and_gradients_are_the_recorded_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    """Four interactions instead of twelve, samplers that take the first candidates, no drop path."""
    monkeypatch.setattr(torch, "randperm", lambda count, device=None: torch.arange(count, device=device))
    config = load_config(CASES[CASE][0]).model_dump()
    backbone = config["model"]["backbone"]
    backbone["interactions"] = TRAINING["interactions"]
    backbone["interaction"]["drop_path"] = 0.0
    for branch in backbone["branches"]:
        branch |= {"depth": TRAINING["interactions"], "drop_path": 0.0}
    model = build_model(config_from_dict(config).model).train()
    table = KeyTable(3)
    for key, tensor in model.state_dict().items():
        tensor.copy_(official_weights(table.to_official(key), tensor.shape))
    sizes = [tuple(size) for size in TRAINING["input"]["valid_hw"]]
    images = torch.from_numpy(golden_image(TRAINING["input"]["shape"], sizes))
    targets = [
        {name: torch.from_numpy(value) for name, value in zip(("boxes", "labels", "masks"), image, strict=True)}
        for image in golden_targets(sizes)
    ]
    losses = model.loss(Batch(images, sizes, sizes, [0, 1], targets))
    for name, value in losses.items():
        assert value.item() == pytest.approx(TRAINING["losses"][name], rel=1e-3), name
    sum(losses.values()).backward()
    norms = {table.to_official(name): p.grad.norm().item() for name, p in model.named_parameters()}
    assert norms.keys() == TRAINING["grad_norms"].keys()
    for name, norm in norms.items():
        assert norm == pytest.approx(TRAINING["grad_norms"][name], rel=1e-3, abs=1e-5), name
