"""What every head promises to the model and to the counting of FLOPs, and what a new one can do without."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from piip.backbone.piip import PIIP
from piip.config.load import load_config
from piip.data.batch import Batch
from piip.heads.base import Head
from piip.load import build_model
from piip.model import Model

NANO = {
    "mask_rcnn": "detection/mask_rcnn_piip_nano_shapes",
    "dino": "detection/dino_piip_nano_shapes",
    "upernet": "segmentation/upernet_piip_nano_shapes",
    "classifier": "classification/piip_nano_shapes",
}


class Brightness(Head):
    """The mean of the finest map of every image: no more than a head must have."""

    def __init__(self) -> None:
        super().__init__()
        self.gain = nn.Linear(1, 1)

    def loss(
        self, features: list[Tensor], image_sizes: list[tuple[int, int]], targets: list[dict[str, Tensor]]
    ) -> dict[str, Tensor]:
        return {"loss": self.detect(features, image_sizes).square().mean()}

    def detect(self, features: list[Tensor], image_sizes: list[tuple[int, int]]) -> Tensor:
        return self.gain(features[0].mean((1, 2, 3))[:, None])

    def restore(self, outputs: Tensor, image_sizes: Any, original_sizes: Any) -> list[dict[str, Any]]:
        return [{"value": value, "size": size} for value, size in zip(outputs, original_sizes, strict=True)]


def test_loss_detect_and_restore_are_enough() -> None:
    config = load_config(NANO["mask_rcnn"]).model
    backbone = PIIP(config.backbone)
    model = Model(backbone=backbone, neck=config.neck.build(backbone.specs), head=Brightness(), config=config).eval()
    images, sizes, originals = torch.randn(2, 3, 64, 64), [(64, 60), (50, 64)], [(128, 120), (25, 32)]
    outputs = model.head.detect(model.features(images), sizes)
    for results, expected in (
        (model.infer(images, sizes), sizes),
        (model.infer_batch(Batch(images, sizes, originals, [1, 2], [])), originals),
    ):
        torch.testing.assert_close(torch.stack([result["value"] for result in results]), outputs)
        assert [result["size"] for result in results] == expected
    assert model.loss(Batch(images, sizes, sizes, [1, 2], [{}, {}])).keys() == {"loss"}
    assert model.head.parts() == {"gain head": "gain"}
    assert (model.class_rows(), model.head.pretrained(0)) == ({}, {})


def run_for_count(name: str) -> tuple[Head, dict[str, int]]:
    """The head, and the length of the first input of each of its parts that ran, on the meta device."""
    with torch.device("meta"):
        model = build_model(load_config(NANO[name]).model).eval()
    lengths: dict[str, int] = {}
    for part in model.head.parts().values():

        def note(_: nn.Module, inputs: tuple[Any, ...], __: object, part: str = part) -> None:
            lengths[part] = len(inputs[0])

        model.head.get_submodule(part).register_forward_hook(note)
    with torch.no_grad():
        features = model.neck(model.backbone(torch.empty(1, 3, 64, 64, device="meta")))
        model.head.run_for_count(features, [(64, 64)])
    return model.head, lengths


@pytest.mark.parametrize(
    ("name", "parts"),
    [
        ("mask_rcnn", {"rpn", "box", "mask"}),
        ("dino", {"encoder", "decoder", "proposer"}),
        ("upernet", {"pooling", "fuse", "classifier"}),
        ("classifier", {""}),
    ],
)
def test_a_head_runs_for_a_count_without_values_and_names_its_parts(name: str, parts: set[str]) -> None:
    assert run_for_count(name)[1].keys() == parts


def test_mask_rcnn_is_counted_at_its_limits() -> None:
    head, lengths = run_for_count("mask_rcnn")
    assert (lengths["box"], lengths["mask"]) == (head.config.rpn_proposals, head.config.max_detections)
    assert head.config.counted_at.startswith(f"{lengths['box']} proposals and {lengths['mask']} detections")
