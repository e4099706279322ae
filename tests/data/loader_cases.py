"""What the tests of loaders share: a small generated set and a config that reads it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch

from piip.config.experiment import Config
from piip.config.load import config_from_dict
from piip.data.batch import Batch
from piip.data.loader import Loader

SHAPES = {"type": "shapes", "images": 12, "size": 64}


def make_config(root: Path, *, workers: int = 0, accumulate: int = 1, **data: object) -> Config:
    branch = {"embed_dim": 32, "depth": 1, "num_heads": 1}
    dataset = SHAPES | {"root": str(root)}
    return config_from_dict(
        {
            "name": "loader",
            "model": {"backbone": {"branches": [branch], "resolutions": [64], "interactions": 0}},
            "data": {
                "train": dataset | {"split": "train"},
                "val": dataset | {"split": "val"},
                "train_transforms": {"resize": [[64, 48], [80, 64], [96, 96]], "flip": 0.5},
                "val_transforms": {"resize": [[72, 72]]},
                "batch_size": 4,
                "eval_batch_size": 2,
                "workers": workers,
            }
            | data,
            "optim": {"accumulate": accumulate},
            "schedule": {"epochs": 1},
        }
    )


@contextmanager
def as_rank(rank: int, world: int) -> Iterator[None]:
    """Within the block, this process is one of several that train together."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.distributed, "is_initialized", lambda: True)
        patch.setattr(torch.distributed, "get_rank", lambda: rank)
        patch.setattr(torch.distributed, "get_world_size", lambda: world)
        yield


def epoch(loader: Loader, number: int, start: int = 0) -> list[Batch]:
    loader.set_epoch(number)
    loader.set_start(start)
    return list(loader)
