"""A small UperNet learns the label maps it is shown, through the engine that trains everything else."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from piip.engine.train import train
from tests.engine.tiny import tiny_segmentation_config


@pytest.mark.slow
def test_a_few_steps_fit_two_images(tmp_path: Path) -> None:
    shown = {"type": "shapes", "root": str(tmp_path), "form": "label_maps", "size": 64, "split": "train", "images": 2}
    transforms = {"type": "segmentation", "resize": [64, 64]}
    config = tiny_segmentation_config(
        tmp_path,
        model__head={"type": "upernet", "num_classes": 6, "channels": 32, "window": None},
        data__train=shown,
        data__val=shown,
        data__train_transforms=transforms,
        optim={"lr": 1e-2, "clip_grad_norm": 1.0},
        schedule={"iterations": 60, "policy": "cosine", "warmup_iterations": 5},
        train={"eval_every": 60},
    )
    found = train(config, output=tmp_path / "run")
    dataset = config.data.val.build(training=False)
    labels = torch.cat([dataset.target(index)["label_map"].flatten() for index in range(2)]).long()
    counts = torch.bincount(labels)
    # What an answer of background alone gives.
    guess = (counts[0] / counts.sum() / counts.count_nonzero()).item()
    assert guess < 0.2
    assert found["miou"] > 0.4
    assert found["aacc"] > 0.85
