"""UperNet with official weights computes what the official code computed: every stage from the backbone to the labels.

The released PIIP-H6B 512/512, narrower and shallower, on weights and an image of the golden rule (see rule.py): the
crop on the left is what `backbone/`, `decode/`, `aux/` and `encode_decode/` were recorded on, the one on the right
(`mid/`) the second of the two that a sliding window sees.
"""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from piip.load import build_model
from piip.model import Model
from piip.official.checkpoints import convert_checkpoint
from piip.weights.files import load_weights
from tests.golden.cases import Case, backbone_errors

TOLERANCE = 1e-4  # of a tensor's standard deviation
CROP = 512


@pytest.fixture(scope="module")
def case() -> Case:
    return Case("seg_h6b_512_512_reduced")


@pytest.fixture(scope="module")
def model(case: Case, tmp_path_factory: pytest.TempPathFactory) -> Model:
    """The network of an official checkpoint, converted and loaded as users do it."""
    folder = tmp_path_factory.mktemp("official")
    model = build_model(case.config.model)
    torch.save({"meta": {}, "state_dict": case.official_state(model.state_dict().keys())}, folder / "official.pth")
    report = convert_checkpoint(folder / "official.pth", folder / "ours.safetensors", config=case.config)
    assert len(report.loaded) == len(case.info["keys"]) == 374
    load_weights(model, folder / "ours.safetensors")
    return model.eval()


@pytest.fixture(scope="module")
def left(case: Case) -> Tensor:
    return case.images()[..., :CROP].contiguous()


def assert_recorded(case: Case, name: str, value: Tensor) -> None:
    error = case.error(name, value)
    assert error < TOLERANCE, f"{name}: {error:.2e} standard deviations off"


def test_every_recorded_stage_of_the_backbone(case: Case, model: Model, left: Tensor) -> None:
    assert case.error("input", case.images()) < TOLERANCE
    right = case.images()[..., -CROP:].contiguous()
    errors = {name: error for name, error in backbone_errors(case, model, left) if not name.startswith("mid/")}
    errors |= {name: error for name, error in backbone_errors(case, model, right) if name.startswith("mid/")}
    assert errors.keys() == {name for name in case.values if name.startswith(("backbone/", "mid/"))}
    assert max(errors.values()) < TOLERANCE, errors


def test_both_heads(case: Case, model: Model, left: Tensor) -> None:
    with torch.inference_mode():
        features = model.features(left)
        assert_recorded(case, "decode/logits", model.head.detect(features, [(CROP, CROP)]))
        assert_recorded(case, "aux/logits", model.head.auxiliary(features[2]))


def test_the_logits_of_one_window(case: Case, model: Model, left: Tensor) -> None:
    logits = model.infer(left, [(CROP, CROP)])
    assert_recorded(case, "encode_decode/logits", logits)
    assert different_labels(logits.argmax(1), case.info["crop_argmax_hist"]) <= 10  # ties


def test_the_sliding_window_and_the_labels_of_the_original_image(case: Case, model: Model) -> None:
    images, sizes = case.images(), case.sizes
    logits = model.infer(images, sizes)
    assert_recorded(case, "slide/logits", logits)
    assert different_labels(logits.argmax(1), case.info["slide_argmax_hist"]) <= 10
    height, width = case.info["digests"]["inference/softmax_rescaled"]["shape"][2:]
    resized = torch.nn.functional.interpolate(logits, size=(height, width), mode="bilinear", align_corners=False)
    probabilities = resized.softmax(1)
    assert_recorded(case, "inference/softmax_rescaled", probabilities)
    (result,) = model.head.restore(logits, sizes, [(height, width)])
    scores, labels = probabilities[0].max(0)
    assert torch.equal(result["labels"], labels.byte())
    torch.testing.assert_close(result["scores"], scores, rtol=0, atol=1e-5)


def different_labels(labels: Tensor, recorded: list[int]) -> int:
    """How many pixels at least have another label than those that were counted by label."""
    counted = torch.bincount(labels.flatten(), minlength=len(recorded))
    return int((counted - torch.tensor(recorded)).abs().sum()) // 2
