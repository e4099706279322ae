"""What processes that share a network must get right; run by torchrun, with a folder to work in and a part to do."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from piip.config.experiment import Config
from piip.engine import distributed
from piip.engine.train import train
from piip.errors import ConfigError
from piip.weights.unpickle import load_pickle
from tests.engine.tiny import tiny_config, tiny_segmentation_config


def quiet(config: dict[str, Any]) -> dict[str, Any]:
    """With averages. AdamW makes steps of rounding errors where a gradient is nothing else, so that they are small."""
    settings = {"train": {"log_every": 1, "ema": 0.9, "ema_warmup": True} | config.pop("train", {})}
    return {"optim": {"lr": 1e-4, "layer_decay": 0.8, "clip_grad_norm": 0.1}} | settings | config


def detector(data: Path, **changes: Any) -> Config:
    """Widths that two or four processes do not divide, accumulation, and a clip that is always in force."""
    optim = {"lr": 1e-4, "layer_decay": 0.8, "clip_grad_norm": 0.1, "accumulate": 2}
    shapes = {"type": "shapes", "root": str(data), "split": "train", "images": 24, "size": 64}
    return tiny_config(data, **quiet({"optim": optim, "data__train": shapes, "data__batch_size": 4, **changes}))


def dino(data: Path, **changes: Any) -> Config:
    head = {"type": "dino", "num_classes": 5, "num_queries": 10, "denoising_queries": 4, "num_heads": 2, "ffn_dim": 34}
    head |= {"encoder_layers": 1, "decoder_layers": 2, "max_detections": 5}
    neck = {"type": "channel_mapper", "out_channels": 32}
    return tiny_config(data, **quiet({"model__head": head, "model__neck": neck, **changes}))


def segmenter(data: Path, **changes: Any) -> Config:
    shapes = {"type": "shapes", "root": str(data), "form": "label_maps", "size": 64, "split": "train", "images": 12}
    return tiny_segmentation_config(data, **quiet({"data__train": shapes, "data__batch_size": 4, **changes}))


def classifier(data: Path, **changes: Any) -> Config:
    branch = {"depth": 2, "num_heads": 2, "pretrain_size": 64, "drop_path": 0.0}
    shapes = {"type": "shapes", "root": str(data), "form": "crops", "size": 64}
    backbone = {
        "branches": [branch | {"embed_dim": 68}, branch | {"embed_dim": 36, "freeze": 1}],
        "resolutions": [64, 32],
        "interactions": 2,
        "interaction": {"num_heads": 2},
        "merge": False,
    }
    transforms = {"type": "classification", "size": 64}
    settings = {
        "model__backbone": backbone,
        "model__neck": {"type": "none"},
        "model__head": {"type": "classifier", "num_classes": 5, "token": "mean"},
        "data__train": {**shapes, "split": "train", "images": 6},
        "data__val": {**shapes, "split": "val", "images": 3},
        "data__train_transforms": transforms,
        "data__val_transforms": transforms,
    }
    return tiny_config(data, **quiet(settings | changes))


def assert_close_runs(a: Path, b: Path, *, tolerance: float) -> None:
    """Weights, averages, moments and what was logged of two runs."""
    if not distributed.is_main():
        return
    first, second = (run / "checkpoints" / "last" for run in (a, b))
    for name in ("model", "ema"):
        ours, theirs = load_file(first / f"{name}.safetensors"), load_file(second / f"{name}.safetensors")
        assert ours.keys() == theirs.keys()
        for key, value in ours.items():
            torch.testing.assert_close(
                value, theirs[key], rtol=tolerance, atol=tolerance, msg=lambda m, k=key: f"{k}: {m}"
            )
    ours, theirs = (load_pickle(run / "trainer.pt")["optimizer"] for run in (first, second))
    assert [g["param_names"] for g in ours["param_groups"]] == [g["param_names"] for g in theirs["param_groups"]]
    for number, moments in ours["state"].items():
        for key, value in moments.items():
            torch.testing.assert_close(value, theirs["state"][number][key], rtol=10 * tolerance, atol=tolerance)


def foundation(data: Path, **changes: Any) -> Config:
    """A rotary branch with registers and windows, and a convolutional one, which is frozen."""
    backbone = {
        "branches": [
            {"type": "timm_vit", "model": "vit_small_patch16_dinov3", "window_size": 2},
            {"type": "convnext", "model": "convnext_atto", "freeze": True},
        ],
        "resolutions": [64, 64],
        "interactions": 2,
        "interaction": {"num_heads": 4},
        "merge_width": 32,
    }
    return tiny_config(data, **quiet({"model__backbone": backbone, "schedule__epochs": 1, **changes}))


KINDS: dict[str, Callable[..., Config]] = {
    "detector": detector, "dino": dino, "segmenter": segmenter, "classifier": classifier,
    "foundation": foundation
}  # fmt: skip


def check_all_tasks(folder: Path, data: Path) -> None:
    """Six steps of each task, sharded, give what DistributedDataParallel gives."""
    for name, make in KINDS.items():
        train(make(data), output=folder / f"{name}_ddp")
        train(make(data, parallel={"shard": "all"}), output=folder / f"{name}_sharded")
        assert_close_runs(folder / f"{name}_sharded", folder / f"{name}_ddp", tolerance=1e-5)


def check_resume(folder: Path, data: Path) -> None:
    """Bit for bit on the same layout; and an unsharded run goes on sharded, and a sharded one unsharded."""
    sharded = folder / "detector_sharded"
    steps = sorted((sharded / "checkpoints").glob("[0-9]*"), key=lambda path: int(path.name))
    config = detector(data, parallel={"shard": "all"}, train={"checkpoint_activations": "all"})
    train(config, output=folder / "again", resume=str(steps[0]))
    assert_close_runs(folder / "again", sharded, tolerance=0)
    train(detector(data), output=folder / "unsharded", resume=str(steps[0]))
    assert_close_runs(folder / "unsharded", sharded, tolerance=1e-5)
    with pytest.MonkeyPatch.context() as units:
        units.setattr("piip.engine.parallel._SMALLEST_UNIT", 2**20)
        other = sorted((folder / "detector_ddp" / "checkpoints").glob("[0-9]*"), key=lambda path: int(path.name))[0]
        kept = detector(data, parallel={"shard": "all", "reshard_after_forward": False})
        train(kept, output=folder / "from_ddp", resume=str(other))
        assert_close_runs(folder / "from_ddp", sharded, tolerance=1e-5)


def check_mistakes(folder: Path, data: Path) -> None:
    processes = distributed.world_size()
    with pytest.raises(ConfigError, match=f"the number of processes, which is {processes}; start torchrun with"):
        train(detector(data, parallel={"shard": 3 * processes}), output=folder / "wrong")
    with pytest.raises(ConfigError, match="leave it out on a CPU"):
        train(detector(data, parallel={"shard": "all", "offload": True}), output=folder / "offload")


def check_hybrid(folder: Path, data: Path) -> None:
    """Two pairs of processes that repeat each other."""
    train(detector(data, data__batch_size=8), output=folder / "ddp")
    train(detector(data, data__batch_size=8, parallel={"shard": 2}), output=folder / "hybrid")
    assert_close_runs(folder / "hybrid", folder / "ddp", tolerance=1e-5)


def check_compiled(folder: Path, data: Path, patch: pytest.MonkeyPatch) -> None:
    from piip.regions import compile_regions

    patch.setattr("piip.engine.train.compile_regions", lambda model: compile_regions(model, backend="aot_eager"))
    train(detector(data, parallel={"shard": "all"}, train={"compile": True}), output=folder / "compiled")
    assert_close_runs(folder / "compiled", folder / "detector_sharded", tolerance=1e-5)


def main() -> None:
    folder, part = Path(sys.argv[1]), sys.argv[2]
    torch.set_num_threads(1)
    data = folder / "data"
    with distributed.session("cpu"), pytest.MonkeyPatch.context() as units:
        units.setattr("piip.engine.parallel._SMALLEST_UNIT", 1)  # so that these small networks have some
        if part == "hybrid":
            check_hybrid(folder, data)
        else:
            check_all_tasks(folder, data)
            check_resume(folder, data)
            check_mistakes(folder, data)
            with pytest.MonkeyPatch.context() as patch:
                check_compiled(folder, data, patch)
        if distributed.is_main():
            (folder / "done").touch()


if __name__ == "__main__":
    main()
