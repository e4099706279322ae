"""The smallest real experiment: a two-branch Mask R-CNN on a few generated images, seconds on one thread."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

import piip
from piip.config.experiment import Config
from piip.config.load import config_from_dict

STEPS_PER_EPOCH = 3
_TESTS = Path(__file__).parents[1]
SCRIPTS = _TESTS / "scripts"


def environment() -> dict[str, str]:
    """For a Python of its own that finds the package where this one found it, and computes on as many threads."""
    found = str(Path(piip.__file__).parent.parent)
    return {
        **os.environ,
        "PYTHONPATH": os.pathsep.join([found, str(_TESTS.parent)]),
        "OMP_NUM_THREADS": str(torch.get_num_threads()),
    }


def run_python(arguments: Sequence[str | Path], *, timeout: float = 120) -> str:
    """Runs a Python of its own to its end, which must be a good one; returns what it printed."""
    command = [sys.executable, *map(str, arguments)]
    done = subprocess.run(command, env=environment(), capture_output=True, text=True, timeout=timeout)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


def tiny_config(root: Path, **changes: Any) -> Config:
    """root: where the generated images are kept; changes: values by dotted key, with __ for the dots."""
    branch = {"depth": 1, "num_heads": 2, "patch_size": 16, "pretrain_size": 64, "drop_path": 0.1}
    shapes = {"type": "shapes", "root": str(root), "size": 64}
    transforms = {"resize": [[64, 64]], "pad_divisor": 32}
    data: dict[str, Any] = {
        "name": "tiny",
        "model": {
            "backbone": {
                "branches": [{"embed_dim": 32, **branch}, {"embed_dim": 64, **branch}],
                "resolutions": [64, 32],
                "interactions": 1,
                "interaction": {"num_heads": 2, "drop_path": 0.3},
            },
            "neck": {"out_channels": 16},
            "head": {
                "num_classes": 5,
                "fc_channels": 16,
                "mask_channels": 8,
                "mask_convs": 1,
                "rpn_pre_nms_train": 20,
                "rpn_pre_nms_test": 20,
                "rpn_proposals": 10,
                "roi_batch": 8,
                "max_detections": 5,
            },
        },
        "data": {
            "train": {**shapes, "split": "train", "images": 6},
            "val": {**shapes, "split": "val", "images": 3},
            "train_transforms": {**transforms, "resize": [[64, 64], [64, 48]], "flip": 0.5},
            "val_transforms": transforms,
            "batch_size": 2,
            "workers": 0,
        },
        "optim": {"lr": 1e-3, "layer_decay": 0.8, "clip_grad_norm": 1.0},
        "schedule": {"epochs": 2, "policy": "cosine", "warmup_iterations": 2},
        "train": {"log_every": 1, "ema": 0.9},
    }
    for key, value in changes.items():
        *parents, last = key.split("__")
        node = data
        for parent in parents:
            node = node[parent]
        node[last] = value
    return config_from_dict(data)


def tiny_segmentation_config(root: Path, **changes: Any) -> Config:
    """The same with an UperNet, which has batch norms, on the label maps of the generated images."""
    shapes = {"type": "shapes", "root": str(root), "form": "label_maps", "size": 64}
    transforms = {"type": "segmentation", "resize": [64, 64]}
    settings: dict[str, Any] = {
        "model__neck": {"type": "none"},
        "model__head": {"type": "upernet", "num_classes": 6, "channels": 8, "window": 48, "stride": 32},
        "data__train": {**shapes, "split": "train", "images": 6},
        "data__val": {**shapes, "split": "val", "images": 3},
        "data__train_transforms": {**transforms, "ratio_range": [0.75, 1.5], "crop": 64, "flip": 0.5},
        "data__val_transforms": transforms,
    }
    return tiny_config(root, **settings | changes)
