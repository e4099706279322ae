"""Mixup, CutMix, smoothing and erasing: timm's, from the batch's own random stream, the same after any resumption."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from timm.data import Mixup
from torch import Tensor

from piip.config.experiment import Config
from piip.config.load import config_from_dict
from piip.data.batch import Batch
from piip.data.build import build_loader
from piip.data.transforms.classification.config import ClassificationTransforms
from piip.data.transforms.classification.mixing import MIX_STREAM, Mixing
from piip.data.transforms.sample import drawing_from, generator
from piip.errors import ConfigError
from tests.data.loader_cases import as_rank

CLASSES = 7


def make_mixing(batch_size: int = 6, **settings: Any) -> Mixing:
    config = ClassificationTransforms(size=16, **settings)
    return Mixing(config, num_classes=CLASSES, batch_size=batch_size, seed=4)


def batch(count: int = 6) -> tuple[Tensor, list[dict[str, Tensor]]]:
    images = torch.randn(count, 3, 16, 16, generator=torch.Generator().manual_seed(count))
    return images, [{"label": torch.tensor(label % CLASSES)} for label in range(2, 2 + count)]


def stacked(targets: list[dict[str, Tensor]]) -> Tensor:
    assert all(target.keys() == {"probabilities"} for target in targets)
    return torch.stack([target["probabilities"] for target in targets])


@pytest.mark.parametrize("settings", [{"mixup": 0.8}, {"cutmix": 1.0}, {"mixup": 0.8, "cutmix": 1.0}])
def test_mixing_is_timms_with_the_draws_of_the_batch(settings: dict[str, float]) -> None:
    mixing = make_mixing(label_smoothing=0.1, **settings)
    timm = Mixup(
        mixup_alpha=settings.get("mixup", 0.0),
        cutmix_alpha=settings.get("cutmix", 0.0),
        prob=1.0,
        switch_prob=0.5,
        mode="batch",
        label_smoothing=0.1,
        num_classes=CLASSES,
    )
    for index in range(8):
        images, targets = batch()
        mixed, found = mixing(images.clone(), targets, (3, index))
        with drawing_from(generator(4, MIX_STREAM, 3, index)):
            expected = timm(images.clone(), torch.stack([target["label"] for target in targets]))
        assert torch.equal(mixed, expected[0])
        assert torch.equal(stacked(found), expected[1])
        assert stacked(found).dtype == torch.float32
        torch.testing.assert_close(stacked(found).sum(dim=1), torch.ones(6))


def test_both_kinds_of_mixing_occur_and_keep_labels_in_proportion_to_pixels() -> None:
    """Of images that are constant, the value of a pixel says which image it came from."""
    mixing = make_mixing(batch_size=2, mixup=0.8, cutmix=1.0)
    kinds = set()
    for index in range(12):
        images = torch.stack([torch.zeros(3, 16, 16), torch.ones(3, 16, 16)])
        mixed, targets = mixing(images, [{"label": torch.tensor(0)}, {"label": torch.tensor(1)}], (0, index))
        probabilities = stacked(targets)
        torch.testing.assert_close(probabilities[0, 1], mixed[0].mean())
        torch.testing.assert_close(probabilities[1, 1], mixed[1].mean())
        kinds.add("cutmix" if set(mixed.unique().tolist()) <= {0.0, 1.0} else "mixup")
    assert kinds == {"cutmix", "mixup"}


def test_smoothing_alone_gives_the_loss_of_smoothed_labels() -> None:
    images, targets = batch()
    same, found = make_mixing(label_smoothing=0.2)(images.clone(), targets, (0, 0))
    assert torch.equal(same, images)
    logits = torch.randn(6, CLASSES, generator=torch.Generator().manual_seed(0))
    labels = torch.stack([target["label"] for target in targets])
    smoothed = torch.nn.functional.cross_entropy(logits, labels, label_smoothing=0.2)
    torch.testing.assert_close(torch.nn.functional.cross_entropy(logits, stacked(found)), smoothed)


def test_nothing_to_mix_leaves_images_and_labels_in_one_piece_of_memory() -> None:
    """Loader processes send every piece by a file descriptor of its own; 128 an image would use them up."""
    images, targets = batch()
    same, found = make_mixing()(images.clone(), targets, (0, 0))
    assert torch.equal(same, images)
    assert [target["label"].item() for target in found] == [2, 3, 4, 5, 6, 0]
    assert len({target["label"].untyped_storage().data_ptr() for target in found}) == 1
    _, mixed = make_mixing(mixup=1.0)(images.clone(), targets, (0, 0))
    assert len({target["probabilities"].untyped_storage().data_ptr() for target in mixed}) == 1


def test_erasing_puts_noise_into_one_rectangle_an_image() -> None:
    images = torch.full((4, 3, 16, 16), 50.0)
    erased, targets = make_mixing(batch_size=4, erase=1.0)(images, batch(4)[1], (0, 0))
    assert all(target.keys() == {"label"} for target in targets)
    for image in erased:
        rows, columns = torch.nonzero((image != 50).any(dim=0), as_tuple=True)
        part = image[:, rows.min() : rows.max() + 1, columns.min() : columns.max() + 1]
        assert (part != 50).all()
        assert part.abs().max() < 6
        assert 0 < part[0].numel() < 16 * 16 * 0.4
    untouched, _ = make_mixing(batch_size=4, erase=0.5)(torch.full((4, 3, 16, 16), 50.0), batch(4)[1], (0, 0))
    assert any((image == 50).all() for image in untouched)


def test_an_odd_batch_cannot_be_mixed_but_smoothed() -> None:
    with pytest.raises(ConfigError, match=r"a process has 5 in a batch; choose data\.batch_size so that this is even"):
        make_mixing(batch_size=5, cutmix=1.0)
    images, targets = batch(5)
    assert len(make_mixing(batch_size=5, label_smoothing=0.1)(images, targets, (0, 0))[1]) == 5


def make_config(root: Path, *, workers: int = 0, **changes: Any) -> Config:
    shapes = {"type": "shapes", "form": "crops", "root": str(root), "size": 64}
    transforms = {"type": "classification", "size": 32}
    recipe = {"augment": "rand", "mixup": 0.8, "cutmix": 1.0, "label_smoothing": 0.1, "erase": 0.3}
    branch = {"embed_dim": 32, "depth": 1, "num_heads": 1}
    return config_from_dict(
        {
            "name": "mixing",
            "model": {
                "backbone": {"branches": [branch], "resolutions": [32], "merge": False},
                "neck": {"type": "none"},
                "head": {"type": "classifier", "num_classes": 5},
            },
            "data": {
                "train": {**shapes, "split": "train", "images": 14},
                "val": {**shapes, "split": "val", "images": 3},
                "train_transforms": transforms | recipe | changes,
                "val_transforms": transforms,
                "batch_size": 4,
                "eval_batch_size": 2,
                "workers": workers,
            },
            "schedule": {"epochs": 1},
        }
    )


def epoch(config: Config, number: int, start: int = 0) -> list[Batch]:
    loader = build_loader(config, config.data.train.build(training=True), training=True)
    loader.set_epoch(number)
    loader.set_start(start)
    batches = list(loader)
    loader.close()
    return batches


def assert_same(ours: list[Batch], theirs: list[Batch]) -> None:
    assert len(ours) == len(theirs) > 0
    for a, b in zip(ours, theirs, strict=True):
        assert a.image_ids == b.image_ids
        assert torch.equal(a.images, b.images)
        assert torch.equal(stacked(a.targets), stacked(b.targets))


def test_workers_and_resumption_change_no_bit_of_a_mixed_batch(root: Path) -> None:
    whole = epoch(make_config(root), 2)
    assert len(whole) == 3
    for item in whole:
        assert item.images.shape == (4, 3, 32, 32)
        assert stacked(item.targets).shape == (4, 5)
        assert item.image_sizes == [(32, 32)] * 4
    assert_same(epoch(make_config(root, workers=2), 2), whole)
    assert_same(epoch(make_config(root, workers=1), 2, start=1), whole[1:])
    assert not torch.equal(whole[0].images, epoch(make_config(root), 1)[0].images)


def test_ranks_mix_differently(root: Path) -> None:
    config = make_config(root, augment="none", crop="centre", flip=0.0, erase=0.0, label_smoothing=0.0)
    parts = []
    for rank in range(2):
        with as_rank(rank, world=2):
            parts.append(epoch(config, 0))
    largest = [[stacked(item.targets).max().item() for item in part] for part in parts]
    assert not np.allclose(*largest)


def test_an_odd_share_of_a_rank_is_refused_before_training(root: Path) -> None:
    with as_rank(0, world=4), pytest.raises(ConfigError, match="a process has 1 in a batch"):
        epoch(make_config(root), 0)


def test_evaluation_neither_mixes_nor_has_targets_but_truths(root: Path) -> None:
    config = make_config(root)
    dataset = config.data.val.build(training=False)
    batches = list(build_loader(config, dataset, training=False))
    assert [len(item.images) for item in batches] == [2, 1]
    assert all(item.targets == [] for item in batches)
    assert [truth for item in batches for truth in item.truths] == [dataset.truth(index) for index in range(3)]


def test_a_damaged_image_gives_its_place_to_the_next_as_elsewhere(tmp_path: Path) -> None:
    config = make_config(tmp_path)
    dataset = config.data.train.build(training=True)
    (dataset.source / dataset.image_id(2)).write_bytes(b"no image")
    loader = build_loader(config, dataset, training=True)
    loader.set_epoch(0)
    batches = list(loader)
    assert sum(len(item.images) for item in batches) == 12
    assert sum(len(item.replaced) for item in batches) <= 1
    assert dataset.image_id(2) not in {id_ for item in batches for id_ in item.image_ids}


def test_a_recipe_of_another_task_than_the_head_is_refused(root: Path) -> None:
    settings = make_config(root).model_dump(mode="json")
    settings["data"]["val_transforms"] = {"type": "detection", "resize": [[32, 32]]}
    message = r"data\.val_transforms are for detection, but model\.head classifier is for classification: set"
    with pytest.raises(ConfigError, match=message):
        config_from_dict(settings)
