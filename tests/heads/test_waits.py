"""How often training and inference wait for a device, counted on CPU tensors that stand for tensors there.

The deformable attention that DINO calls is counted by tests of its own.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from piip import host
from piip.config.experiment import Config
from piip.config.load import load_config
from piip.data.batch import Batch
from piip.engine.step import Step, optimizer_step
from piip.host import HostCopy
from piip.load import build_model
from tests.engine.tiny import tiny_config, tiny_segmentation_config
from tests.no_waits import Waits

DINO = {
    "model__head": {
        "type": "dino", "num_classes": 5, "num_queries": 20, "encoder_layers": 1, "decoder_layers": 2, "num_heads": 4,
        "ffn_dim": 64, "denoising_queries": 10, "max_detections": 20,
    },
    "model__neck": {"type": "channel_mapper", "out_channels": 64},
    "model__backbone__finest_level": False,
}  # fmt: skip


@pytest.fixture
def waits(monkeypatch: pytest.MonkeyPatch) -> Iterator[Waits]:
    """A counter that also sees what is read of a HostCopy, unless a wait in between has let the device pass it."""
    counter = Waits()
    start, wait = HostCopy.__init__, HostCopy.wait
    started: dict[HostCopy, int] = {}

    def started_copy(self: HostCopy, tensor: Tensor) -> None:
        start(self, tensor)
        started[self] = counter.total()

    def waited_copy(self: HostCopy) -> Tensor:
        if counter.total() == started[self]:
            counter.count("copy")
        return wait(self)

    monkeypatch.setattr(HostCopy, "__init__", started_copy)
    monkeypatch.setattr(HostCopy, "wait", waited_copy)
    monkeypatch.setattr(host, "is_host", lambda device: False)
    return counter


def places(waits: Waits) -> Counter[tuple[str, str]]:
    return Counter({place: count for place, count in waits.places.items() if not place[1].startswith("piip/ops/")})


def batch_of(count: int, *kinds: str) -> Batch:
    generator = torch.Generator().manual_seed(count)
    targets = []
    for image in range(count):
        objects = image % 4
        corner = torch.rand(objects, 2, generator=generator) * 30
        everything = {
            "boxes": torch.cat([corner, corner + 8 + torch.rand(objects, 2, generator=generator) * 20], dim=1),
            "labels": torch.arange(objects),
            "masks": torch.ones(objects, 60, 64, dtype=torch.uint8),
            "label_map": torch.full((60, 64), image % 5, dtype=torch.uint8),
            "label": torch.tensor(image % 7),
        }
        targets.append({kind: everything[kind] for kind in kinds})
    images = torch.randn(count, 3, 64, 64, generator=generator)
    return Batch(images, [(60, 64)] * count, [(90, 96)] * count, list(range(count)), targets)


CASES: dict[str, Any] = {
    "mask_rcnn": (tiny_config, {}, ("boxes", "labels", "masks")),
    "dino": (tiny_config, DINO, ("boxes", "labels")),
    "upernet": (tiny_segmentation_config, {}, ("label_map",)),
    "classifier": (lambda folder: load_config("classification/piip_nano_shapes"), {}, ("label",)),
}


def config_and_batch(name: str, images: int, folder: Path) -> tuple[Config, Batch]:
    build, changes, kinds = CASES[name]
    return build(folder, **changes), batch_of(images, *kinds)


@pytest.mark.parametrize(
    ("name", "images", "most"),
    [
        ("mask_rcnn", 2, 4),
        ("mask_rcnn", 4, 4),
        ("mask_rcnn", 8, 4),
        ("dino", 2, 2),
        ("dino", 8, 2),
        ("upernet", 3, 1),
        ("classifier", 3, 1),
    ],
)
def test_a_training_step_waits_no_more_often_whatever_the_batch(
    waits: Waits, tmp_path: Path, name: str, images: int, most: int
) -> None:
    """The second of two steps, which reads what the first one said."""
    config, batch = config_and_batch(name, images, tmp_path)
    model = build_model(config.model).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, fused=True)
    steps: list[Step] = []

    def read() -> None:
        if steps:
            steps.pop().result()

    def step() -> None:
        settings = {"config": config.optim, "device": torch.device("cpu"), "precision": "fp32", "signal": 0}
        steps.append(optimizer_step(model, optimizer, iter([batch]), before_update=read, **settings))

    with waits:
        step()
        before = places(waits)
        step()
    found = places(waits) - before
    assert sum(found.values()) <= most, found


@pytest.mark.parametrize(
    ("name", "images", "most"),
    [("mask_rcnn", 1, 3), ("mask_rcnn", 4, 3), ("dino", 4, 0), ("upernet", 3, 0), ("classifier", 3, 0)],
)
def test_inference_waits_no_more_often_whatever_the_batch(
    waits: Waits, tmp_path: Path, name: str, images: int, most: int
) -> None:
    config, batch = config_and_batch(name, images, tmp_path)
    model = build_model(config.model).eval()
    with waits:
        # Masks as pixels: encoding them takes two waits more for each image.
        results = model.infer(batch.images, batch.image_sizes)
    assert len(results) == images
    found = places(waits)
    assert sum(found.values()) <= most, found
