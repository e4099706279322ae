"""A small DINO from training to prediction: it learns, is scored by boxes alone, and its overlays have no masks."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from torchvision.ops import box_iou

from piip.config.experiment import Config
from piip.data.batch import Batch
from piip.engine.evaluate import run_evaluation
from piip.engine.predict import run_prediction
from piip.engine.train import train
from piip.load import build_model
from tests.engine.tiny import tiny_config


def dino_config(root: Path, **head: Any) -> Config:
    settings = {
        "type": "dino", "num_classes": 5, "num_queries": 20, "encoder_layers": 1, "decoder_layers": 2, "num_heads": 4,
        "ffn_dim": 64, "denoising_queries": 10, "max_detections": 20, **head,
    }  # fmt: skip
    changes = {"model__head": settings, "model__neck": {"type": "channel_mapper", "out_channels": 64}}
    return tiny_config(root, **changes, model__backbone__finest_level=False)


def test_a_run_trains_on_data_with_masks_and_is_scored_by_its_boxes(tmp_path: Path) -> None:
    config = dino_config(tmp_path / "shapes", checkpoint_activations=True)
    metrics = train(config, output=tmp_path / "run", device="cpu")
    assert 0 <= metrics["box_ap"] <= 1
    assert not [name for name in metrics if name.startswith("mask")]
    assert '"d0.dn_loss_iou"' in (tmp_path / "run" / "metrics.jsonl").read_text()

    weights = tmp_path / "run"
    evaluated = run_evaluation(config, weights=weights, device="cpu")
    assert evaluated.metrics["box_ap"] == pytest.approx(metrics["box_ap"])
    assert not [name for row in evaluated.tables[0] for name in row if name.startswith("mask")]

    photo = tmp_path / "photo.png"
    Image.new("RGB", (70, 50), (90, 160, 40)).save(photo)
    arguments = {"weights": weights, "output": tmp_path / "found", "score_threshold": 0.0, "device": "cpu"}
    (prediction,) = run_prediction(config, [photo], **arguments)
    with Image.open(prediction.overlay) as overlay:
        assert overlay.width / overlay.height == pytest.approx(70 / 50)
    document = json.loads((tmp_path / "found" / "predictions.json").read_text())
    assert len(document["annotations"]) == 20
    assert not any("segmentation" in entry for entry in document["annotations"])
    assert all(entry["bbox"][0] + entry["bbox"][2] <= 70.01 for entry in document["annotations"])


def test_two_images_are_learned_by_heart(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = build_model(dino_config(tmp_path).model).train()
    boxes = [torch.tensor([[4.0, 6, 30, 40], [36, 20, 60, 58]]), torch.tensor([[10.0, 30, 50, 60]])]
    labels = [torch.tensor([0, 3]), torch.tensor([1])]
    images = 0.1 * torch.randn(2, 3, 64, 64)
    for image, image_boxes, image_labels in zip(images, boxes, labels, strict=True):
        for (x1, y1, x2, y2), label in zip(image_boxes.int().tolist(), image_labels.tolist(), strict=True):
            image[label % 3, y1:y2, x1:x2] = 2.0 - 0.5 * label
    targets = [{"boxes": b, "labels": x} for b, x in zip(boxes, labels, strict=True)]
    batch = Batch(images, [(64, 64)] * 2, [(64, 64)] * 2, [0, 1], targets)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    for _ in range(120):
        optimizer.zero_grad()
        sum(model.loss(batch).values()).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 0.1)
        optimizer.step()
    for result, target in zip(model.eval().infer(images, batch.image_sizes), targets, strict=True):
        count = len(target["boxes"])
        best = box_iou(target["boxes"], result["boxes"][:count]).max(dim=1)
        assert best.values.min() > 0.7
        assert torch.equal(result["labels"][best.indices], target["labels"])
