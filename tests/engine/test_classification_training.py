"""The loops on labelled images: mixed batches, accuracy and its picture, and a run continued bit for bit."""

from __future__ import annotations

import json
import signal
from pathlib import Path
from typing import Any

import pytest
import torch

from piip.branches.base import Tokens
from piip.config.experiment import Config
from piip.config.load import config_from_dict
from piip.engine.checkpoint import read_evaluation
from piip.engine.evaluate import run_evaluation
from piip.engine.predict import run_prediction
from piip.engine.train import train
from piip.errors import ConfigError, PiipError, Stopped
from piip.load import build_model
from piip.weights.find import follow
from tests.engine.test_training import assert_same_run, send_at_step

NAMES = ["circle", "cross", "rectangle", "star", "triangle"]


def tiny_classification_config(root: Path, *, train_settings: dict[str, Any] | None = None, **recipe: Any) -> Config:
    branch = {"depth": 2, "num_heads": 2, "class_token": True, "drop_path": 0.1}
    shapes = {"type": "shapes", "form": "crops", "root": str(root), "size": 64}
    transforms = {"type": "classification", "size": 32}
    return config_from_dict(
        {
            "name": "tiny_classification",
            "model": {
                "backbone": {
                    "branches": [{"embed_dim": 32, **branch}, {"embed_dim": 64, **branch}],
                    "resolutions": [32, 16],
                    "interactions": 2,
                    "interaction": {"num_heads": 2},
                    "merge": False,
                },
                "neck": {"type": "none"},
                "head": {"type": "classifier", "num_classes": 5},
            },
            "data": {
                "train": {**shapes, "split": "train", "images": 12},
                "val": {**shapes, "split": "val", "images": 7},
                "train_transforms": transforms | recipe,
                "val_transforms": transforms,
                "batch_size": 4,
                "eval_batch_size": 3,
                "workers": 0,
            },
            "optim": {"lr": 1e-3, "clip_grad_norm": 1.0},
            "schedule": {"epochs": 2, "policy": "cosine", "warmup_iterations": 2},
            "train": {"log_every": 1, "ema": 0.9} | (train_settings or {}),
        }
    )


RECIPE = {"augment": "rand", "mixup": 0.8, "cutmix": 1.0, "label_smoothing": 0.1, "erase": 0.25}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("crops")


@pytest.fixture(scope="module")
def reference(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("reference")
    train(tiny_classification_config(data, **RECIPE), output=output)
    return output


def test_a_run_with_every_augmentation_continues_bit_for_bit(
    reference: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = tiny_classification_config(data, **RECIPE)
    with monkeypatch.context() as patched:
        send_at_step(patched, signal.SIGTERM, 4)
        with pytest.raises(Stopped):
            train(config, output=tmp_path)
    train(config, output=tmp_path, resume="auto")
    assert_same_run(reference, tmp_path)


def test_evaluation_gives_the_accuracy_of_predictions_and_its_picture(
    reference: Path, data: Path, tmp_path: Path
) -> None:
    config = tiny_classification_config(data)
    found = run_evaluation(config, weights=reference, output=tmp_path / "eval")
    best = follow(reference / "checkpoints", "best")
    assert best is not None
    stored = read_evaluation(best)
    assert stored is not None
    assert found.metrics == stored["metrics"]
    confusion = tmp_path / "eval" / "confusion.png"
    assert confusion in found.files
    assert confusion.read_bytes()[:4] == b"\x89PNG"
    assert json.loads((tmp_path / "eval" / "metrics.json").read_text())["classes"] == found.tables[0]

    folders = sorted(path for path in next(data.glob("crops-val-*")).iterdir() if any(path.iterdir()))
    run_prediction(config, folders, weights=reference, output=tmp_path / "predictions", device="cpu")
    images = json.loads((tmp_path / "predictions" / "predictions.json").read_text())["images"]
    right = sum(image["names"][0] == Path(image["file_name"]).parent.name for image in images)
    assert (len(images), found.metrics["top1"]) == (7, pytest.approx(right / 7))
    for image in images:
        assert sorted(image["names"]) == NAMES
        assert image["scores"] == sorted(image["scores"], reverse=True)
        assert sum(image["scores"]) == pytest.approx(1)


def test_two_dozen_steps_learn_a_dozen_images_by_heart(data: Path, tmp_path: Path) -> None:
    config = tiny_classification_config(
        data,
        crop="centre",
        flip=0.0,
        train_settings={"ema": None, "log_every": 8, "eval_every": 24, "checkpoint_every": 24},
    )
    config = config.model_copy(
        update={
            "data": config.data.model_copy(update={"val": config.data.train, "batch_size": 12}),
            "schedule": config.schedule.model_copy(update={"epochs": 24}),
            "optim": config.optim.model_copy(update={"lr": 3e-3}),
        }
    )
    assert train(config, output=tmp_path)["top1"] == 1.0


def test_the_loss_of_a_mixed_batch_is_the_mix_of_the_losses_of_its_labels(data: Path) -> None:
    model = build_model(tiny_classification_config(data).model).train()
    features = [
        Tokens(torch.randn(2, 2, 2, 32), torch.randn(2, 32)),
        Tokens(torch.randn(2, 1, 1, 64), torch.randn(2, 64)),
    ]
    losses = [
        model.head.loss(features, [(32, 32)] * 2, [{"label": torch.tensor(label)}] * 2)["loss_cls"] for label in (1, 4)
    ]
    mixed = {"probabilities": torch.tensor([0.0, 0.3, 0.0, 0.0, 0.7])}
    loss = model.head.loss(features, [(32, 32)] * 2, [mixed] * 2)["loss_cls"]
    torch.testing.assert_close(loss, 0.3 * losses[0] + 0.7 * losses[1])


def test_an_output_folder_that_cannot_be_made_is_told_before_the_evaluation(reference: Path, data: Path) -> None:
    taken = data / "taken"
    taken.write_text("a file")
    with pytest.raises(PiipError, match=r"cannot write to .*taken"):
        run_evaluation(tiny_classification_config(data), weights=reference, output=taken)


def test_a_head_for_other_classes_is_refused(data: Path, tmp_path: Path) -> None:
    config = tiny_classification_config(data)
    head = config.model.head.model_copy(update={"num_classes": 1000})
    config = config.model_copy(update={"model": config.model.model_copy(update={"head": head})})
    with pytest.raises(ConfigError, match=r"num_classes is 1000, but .* has 5 classes"):
        train(config, output=tmp_path)
