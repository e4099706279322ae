"""Batches: the same images in the same order whatever loads them, each rank its share, and damage told of."""

from __future__ import annotations

import logging
import os
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from piip.config.experiment import Config
from piip.data.batch import Batch, pack_masks, unpack_masks
from piip.data.build import build_loader
from piip.data.sampler import EvalSampler, TrainSampler
from piip.data.sets.instances.dataset import InstanceDataset
from piip.data.transforms.batch import prepare
from piip.errors import ConfigError, DataError
from tests.data.loader_cases import as_rank, epoch, make_config
from tests.engine.tiny import tiny_segmentation_config


def assert_same(ours: list[Batch], theirs: list[Batch]) -> None:
    assert len(ours) == len(theirs) > 0
    for a, b in zip(ours, theirs, strict=True):
        assert a.image_ids == b.image_ids
        assert a.image_sizes == b.image_sizes
        assert torch.equal(a.images, b.images)
        for x, y in zip(a.targets, b.targets, strict=True):
            assert x.keys() == y.keys()
            assert all(torch.equal(x[key], y[key]) for key in x)


def test_a_training_batch_keeps_the_contract(root: Path) -> None:
    config = make_config(root)
    dataset = config.data.train.build(training=True)
    batches = [batch.to("cpu") for batch in epoch(build_loader(config, dataset, training=True), 0)]
    assert len(batches) == 3
    assert sorted(id_ for batch in batches for id_ in batch.image_ids) == list(range(1, 13))
    for batch in batches:
        count, channels, height, width = batch.images.shape
        assert (count, channels, height % 32, width % 32) == (4, 3, 0, 0)
        assert batch.images.dtype == torch.uint8
        assert batch.original_sizes == [(64, 64)] * 4
        assert max(h for h, _ in batch.image_sizes) > height - 32
        for (h, w), target, image in zip(batch.image_sizes, batch.targets, batch.images, strict=True):
            assert h == w  # square images stay square
            assert h in (48, 64, 96)
            assert image[:, h:].sum() == image[:, :, w:].sum() == 0
            n = len(target["labels"])
            assert target["boxes"].shape == (n, 4)
            assert target["boxes"].dtype == torch.float32
            assert target["labels"].dtype == torch.int64
            assert target["masks"].shape == (n, h, w)
            assert target["masks"].dtype == torch.uint8
            assert target["crowd_boxes"].shape == (0, 4)
            assert n >= 2
            assert 0 <= target["labels"].min() <= target["labels"].max() < 5
            for box, mask in zip(target["boxes"], target["masks"], strict=True):
                ys, xs = torch.nonzero(mask, as_tuple=True)
                bounds = torch.stack([xs.min(), ys.min(), xs.max() + 1, ys.max() + 1])
                assert (bounds - box).abs().max() <= 1.5


def test_workers_change_neither_images_nor_order(root: Path) -> None:
    dataset = make_config(root).data.train.build(training=True)
    alone = build_loader(make_config(root), dataset, training=True)
    helped = build_loader(make_config(root, workers=2), dataset, training=True)
    for number in (0, 1):
        assert_same(epoch(helped, number), epoch(alone, number))
    helped.close()


def test_an_epoch_entered_midway_continues_bit_for_bit(root: Path) -> None:
    config = make_config(root)
    dataset = config.data.train.build(training=True)
    whole = epoch(build_loader(config, dataset, training=True), 3)
    resumed = build_loader(make_config(root, workers=1), config.data.train.build(training=True), training=True)
    assert_same(epoch(resumed, 3, start=1), whole[1:])
    assert_same(epoch(resumed, 3, start=2), whole[2:])
    assert epoch(resumed, 3, start=3) == []
    assert len(resumed) == 3
    assert_same(epoch(resumed, 3), whole)
    resumed.close()


def test_epochs_and_seeds_differ_in_order_and_augmentation(root: Path) -> None:
    config = make_config(root)
    dataset = config.data.train.build(training=True)
    loader = build_loader(config, dataset, training=True)
    other = config.model_copy(update={"train": config.train.model_copy(update={"seed": 1})})
    runs = [epoch(loader, 0), epoch(loader, 1), epoch(build_loader(other, dataset, training=True), 0)]
    orders = [[id_ for batch in run for id_ in batch.image_ids] for run in runs]
    sizes = [
        dict(zip(order, (size for batch in run for size in batch.image_sizes))) for order, run in zip(orders, runs)
    ]
    for a, b in ((0, 1), (0, 2)):
        assert orders[a] != orders[b]
        assert sizes[a] != sizes[b]


def test_loading_leaves_the_global_random_state_alone(root: Path) -> None:
    config = make_config(root)
    loader = build_loader(config, config.data.train.build(training=True), training=True)
    torch.manual_seed(5)
    np.random.seed(5)  # noqa: NPY002
    before = torch.get_rng_state(), np.random.get_state()[1].copy()  # noqa: NPY002
    epoch(loader, 0)
    assert torch.equal(torch.get_rng_state(), before[0])
    assert np.array_equal(np.random.get_state()[1], before[1])  # noqa: NPY002


def keys(images: int, batch_size: int, world: int, accumulate: int, epoch: int = 0) -> list[list[list[int]]]:
    """Image indices by rank and batch."""
    ratios = np.linspace(0.5, 2, images)
    samplers = [
        TrainSampler(aspect_ratios=ratios, batch_size=batch_size, accumulate=accumulate, seed=7, rank=rank, world=world)
        for rank in range(world)
    ]
    for sampler in samplers:
        sampler.set_epoch(epoch)
        assert len(list(sampler)) == len(sampler)
    return [[[index for _, index in batch] for batch in sampler] for sampler in samplers]


@pytest.mark.parametrize(("world", "accumulate"), [(1, 1), (2, 1), (1, 2), (3, 2), (4, 3)])
def test_every_step_trains_on_the_same_images_however_it_is_divided(world: int, accumulate: int) -> None:
    reference = [set(step) for step in keys(53, 12, 1, 1)[0]]
    assert [len(step) for step in reference] == [12] * 4
    assert sum(map(len, reference)) == len(set().union(*reference))
    ranks = keys(53, 12, world, accumulate)
    assert {len(batches) for batches in ranks} == {4 * accumulate}
    assert {len(batch) for batches in ranks for batch in batches} == {12 // (world * accumulate)}
    for number, step in enumerate(reference):
        parts = [batch for batches in ranks for batch in batches[number * accumulate : (number + 1) * accumulate]]
        assert sorted(index for part in parts for index in part) == sorted(step)


def test_all_images_are_used_over_the_epochs_and_shapes_are_grouped() -> None:
    assert {index for n in range(20) for batch in keys(17, 4, 1, 1, n)[0] for index in batch} == set(range(17))
    for step in zip(*keys(40, 8, 4, 1), strict=True):
        flat = [index for batch in step for index in batch]
        assert flat == sorted(flat)  # aspect ratios ascend with the index here


def test_batch_sizes_that_do_not_divide_are_a_config_error(root: Path) -> None:
    config = make_config(root, accumulate=3)
    dataset = config.data.train.build(training=True)
    message = (
        "data.batch_size 4 is not divisible by 2 processes x optim.accumulate 3; set data.batch_size to a multiple of 6"
    )
    with as_rank(0, world=2), pytest.raises(ConfigError, match=message):
        build_loader(config, dataset, training=True)


def test_too_few_images_for_one_step_are_a_config_error(root: Path) -> None:
    config = make_config(root, batch_size=13)
    dataset = config.data.train.build(training=True)
    with pytest.raises(ConfigError, match=r"has 12 images, fewer than data\.batch_size 13; set data\.batch_size to 12"):
        build_loader(config, dataset, training=True)


def test_starting_beyond_the_epoch_is_refused(root: Path) -> None:
    config = make_config(root)
    loader = build_loader(config, config.data.train.build(training=True), training=True)
    with pytest.raises(ValueError, match="has 3 batches, cannot start at 4"):
        loader.set_start(4)


@pytest.mark.parametrize("world", [1, 2, 3, 20])
def test_evaluation_sees_each_image_exactly_once_over_the_ranks(root: Path, world: int) -> None:
    config = make_config(root)
    dataset = config.data.val.build(training=False)
    seen = []
    for rank in range(world):
        with as_rank(rank, world):
            loader = build_loader(config, dataset, training=False)
        batches = list(loader)
        assert len(batches) == len(loader)
        assert all(batch.targets == [] for batch in batches)
        assert all(len(batch.truths) == len(batch.image_ids) for batch in batches)
        seen += [id_ for batch in batches for id_ in batch.image_ids]
    assert sorted(seen) == list(range(1, 13))
    assert [len(EvalSampler(images=5, batch_size=2, rank=rank, world=2)) for rank in range(2)] == [2, 1]


def test_evaluation_prepares_images_like_prediction(root: Path) -> None:
    config = make_config(root)
    dataset = config.data.val.build(training=False)
    for number, batch in enumerate(build_loader(config, dataset, training=False)):
        raw = [dataset.image(2 * number + offset) for offset in range(2)]
        pixels, sizes = prepare(raw, config.data.val_transforms)
        assert batch.images.dtype == torch.uint8
        assert torch.equal(batch.images, pixels)
        assert batch.image_sizes == sizes == [(72, 72)] * 2
        assert batch.original_sizes == [(64, 64)] * 2


@pytest.fixture
def damaged(tmp_path: Path) -> tuple[Config, Path]:
    """Twelve generated images of which number 3 is cut short."""
    config = make_config(tmp_path)
    dataset = config.data.train.build(training=True)
    path = dataset.folder / dataset.record(2).file_name
    path.write_bytes(path.read_bytes()[:700])
    return config, path


@pytest.mark.parametrize("workers", [0, 2])
def test_a_damaged_image_is_named_once_counted_and_replaced_by_the_next(
    damaged: tuple[Config, Path], caplog: pytest.LogCaptureFixture, workers: int
) -> None:
    config, path = damaged
    config = make_config(path.parents[2], workers=workers)
    dataset = config.data.train.build(training=True)
    before = path.read_bytes()
    loader = build_loader(config, dataset, training=True)
    with caplog.at_level(logging.WARNING):
        runs = [epoch(loader, number) for number in (0, 1)]
    loader.close()
    for run in runs:
        ids = sorted(id_ for batch in run for id_ in batch.image_ids)
        assert ids == [1, 2, 4, 4, 5, 6, 7, 8, 9, 10, 11, 12]
        assert all(len(batch.images) == 4 for batch in run)
    lines = [record.getMessage() for record in caplog.records]
    assert len(lines) == 1
    assert re.search(rf"undecodable image replaced by the next one in training: cannot decode image {path}: ", lines[0])
    assert dataset.report.counts == {"undecodable image replaced by the next one in training": 1}
    assert path.read_bytes() == before
    again = build_loader(config, config.data.train.build(training=True), training=True)
    assert_same(epoch(again, 1), runs[1])
    again.close()


@pytest.mark.parametrize(("workers", "size"), [(0, 2), (2, 2), (1, 1)])
def test_evaluation_tells_a_damaged_image_with_its_truth_and_goes_on(
    damaged: tuple[Config, Path], workers: int, size: int
) -> None:
    config, path = damaged
    val = config.data.train.model_dump(mode="json")
    config = make_config(path.parents[2], workers=workers, val=val, eval_batch_size=size)
    dataset = config.data.val.build(training=False)
    loader = build_loader(config, dataset, training=False)
    batches = list(loader)
    loader.close()
    assert [id_ for batch in batches for id_ in batch.image_ids] == [1, 2, *range(4, 13)]
    assert all(len(batch.images) == len(batch.truths) == len(batch.image_ids) for batch in batches)
    assert [len(batch.to("cpu").images) for batch in batches] == [len(batch.images) for batch in batches]
    (unread,) = (image for batch in batches for image in batch.unread)
    assert unread.image_id == 3
    assert unread.reason.startswith(f"cannot decode image {path}: ")
    expected = dataset.truth(2)
    assert all(np.array_equal(unread.truth[name], expected[name]) for name in ("xywh", "labels", "areas", "crowd"))
    assert unread.truth["rles"] == expected["rles"]


@pytest.mark.parametrize("workers", [0, 1])
def test_a_truth_that_cannot_be_read_ends_an_evaluation_and_is_named(tmp_path: Path, workers: int) -> None:
    config = tiny_segmentation_config(tmp_path, data__workers=workers)
    dataset = config.data.val.build(training=False)
    path = sorted(dataset.labels.iterdir())[1]
    path.write_bytes(path.read_bytes()[:100])
    loader = build_loader(config, dataset, training=False)
    with pytest.raises(DataError) as error:
        list(loader)
    loader.close()
    assert str(error.value).startswith(f"cannot decode image {path}: ")
    assert "Traceback" not in str(error.value)


def test_training_gives_up_when_no_image_can_be_read(tmp_path: Path) -> None:
    config = make_config(tmp_path)
    dataset = config.data.train.build(training=True)
    for index in range(len(dataset)):
        (dataset.folder / dataset.record(index).file_name).write_bytes(b"gone")
    with pytest.raises(DataError, match=r"12 images in a row cannot be read; the first: .*\.jpg is not an image"):
        epoch(build_loader(config, dataset, training=True), 0)


def test_a_batch_moves_to_a_device_as_a_whole(root: Path) -> None:
    config = make_config(root)
    batch = epoch(build_loader(config, config.data.train.build(training=True), training=True), 0)[0]
    moved = batch.to("meta", non_blocking=True)
    assert moved.images.device.type == "meta"
    assert {value.device.type for target in moved.targets for value in target.values()} == {"meta"}
    assert batch.images.device.type == "cpu"
    assert (moved.image_ids, moved.image_sizes) == (batch.image_ids, batch.image_sizes)


@pytest.mark.parametrize("width", [1, 7, 8, 9, 64, 941])
@pytest.mark.parametrize("count", [0, 3])
def test_masks_packed_into_bits_come_out_as_they_were(count: int, width: int) -> None:
    masks = torch.randint(2, (count, 5, width), dtype=torch.uint8, generator=torch.Generator().manual_seed(width))
    bits = pack_masks(masks)
    assert bits.shape == (count, 5, -(-width // 8))
    assert torch.equal(unpack_masks(bits, width), masks)


def test_masks_travel_in_an_eighth_of_their_bytes(root: Path) -> None:
    config = make_config(root)
    for batch in epoch(build_loader(config, config.data.train.build(training=True), training=True), 0):
        for sent, target in zip(batch.targets, batch.to("cpu").targets, strict=True):
            assert "masks" not in sent
            assert sent["mask_bits"].numel() * 8 == target["masks"].numel()  # whose width is a multiple of 8 here


def test_a_batch_in_one_piece_of_memory_is_the_same_batch(root: Path) -> None:
    config = make_config(root)
    batch = epoch(build_loader(config, config.data.train.build(training=True), training=True), 0)[0]
    batch.targets[1] = {"label": torch.tensor(3), "boxes": torch.zeros(0, 4), "probabilities": torch.rand(7)}
    shared = batch.share_memory()
    assert_same([shared], [batch])
    assert_same([shared.to("cpu")], [batch.to("cpu")])
    tensors = [shared.images, *(value for target in shared.targets for value in target.values())]
    assert len({tensor.untyped_storage().data_ptr() for tensor in tensors}) == 1
    assert all(tensor.is_shared() for tensor in tensors)
    assert shared.memory is not None
    assert shared.memory.nbytes == batch.nbytes < sum(tensor.nbytes for tensor in tensors) + 64 * len(tensors)


def test_a_batch_from_a_loader_process_takes_one_open_file(root: Path) -> None:
    config = make_config(root, workers=1)
    loader = build_loader(config, config.data.train.build(training=True), training=True)
    batches, held = iter(loader), []
    held.append(next(batches))
    before = len(os.listdir("/proc/self/fd"))
    held += batches
    assert len(held) == 3
    assert len(os.listdir("/proc/self/fd")) == before + 2
    loader.close()


def test_coco_config_reaches_the_dataset(tmp_path: Path) -> None:
    generated = make_config(tmp_path).data.train.build(training=True)
    Image.new("RGB", (64, 64)).save(generated.folder / "000001.jpg")
    coco = {"type": "coco", "images": str(generated.folder), "annotations": str(generated.source)}

    def build(**changes: object) -> InstanceDataset:
        return make_config(tmp_path, train=coco | changes).data.train.build(training=True)

    assert len(build()) == 12
    with pytest.raises(DataError, match="side below 65 pixels"):
        build(min_side=65)
    with pytest.raises(DataError, match="64 x 64 pixels, more than the limit of 4,095"):
        build(max_image_pixels=4095).image(0)
