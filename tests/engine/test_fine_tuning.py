"""Training that starts from other weights, trains parts of a model, goes on for longer, and finds data that moved."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from piip.config.experiment import Config
from piip.data.batch import Batch
from piip.engine.evaluate import run_evaluation
from piip.engine.fine_tuning import start_from
from piip.engine.optim import learning_rate
from piip.engine.train import train
from piip.errors import CheckpointError, ConfigError, DataError
from piip.load import build_model
from piip.model import Model
from piip.weights.files import write_weights
from piip.weights.find import find_weights
from tests.engine.test_classification_training import tiny_classification_config
from tests.engine.test_training import assert_equal, assert_same_run, records
from tests.engine.tiny import STEPS_PER_EPOCH, tiny_config, tiny_segmentation_config
from tests.heads.test_dino_training import dino_config

NAMES = ["circle", "rectangle", "triangle", "star", "cross"]
OTHERS = ["star", "moon", "circle", "cross", "rectangle", "triangle"]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("shapes")


@pytest.fixture(scope="module")
def old_run(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("old")
    train(tiny_config(data, schedule={"epochs": 1}), output=output)
    return output


TWO: dict[str, Any] = {"epochs": 2, "policy": "step", "milestones": [1], "warmup_iterations": 2}


@pytest.fixture(scope="module")
def unbroken(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of two epochs whose learning rate does not depend on its length."""
    output = tmp_path_factory.mktemp("unbroken")
    train(tiny_config(data, schedule=TWO), output=output)
    return output


def last_weights(run: Path, name: str = "model") -> dict[str, Tensor]:
    return load_file(run / "checkpoints" / "last" / f"{name}.safetensors")


def coco_config(data: Path, folder: Path, names: list[str], **changes: Any) -> Config:
    """The tiny experiment on the same images with other classes: instances of each class keep their class by name."""
    parts = {}
    for split in ("train", "val"):
        (images,) = data.glob(f"{split}-*")
        document = json.loads((images / "annotations.json").read_text())
        categories = {category["id"]: category["name"] for category in document["categories"]}
        for entry in document["annotations"]:
            entry["category_id"] = names.index(categories[entry["category_id"]])
        document["categories"] = [{"id": label, "name": name} for label, name in enumerate(names)]
        file = folder / f"{split}.json"
        file.write_text(json.dumps(document))
        parts[f"data__{split}"] = {"type": "coco", "images": str(images / "images"), "annotations": str(file)}
    return tiny_config(data, **parts, model__head__num_classes=len(names), **changes)


# --- weights of another run ------------------------------------------------------------------------------------------


def test_a_run_on_reordered_classes_begins_with_the_loss_that_the_old_one_goes_on_with(
    data: Path, old_run: Path, tmp_path: Path
) -> None:
    one_step: dict[str, Any] = {"schedule": {"iterations": 1}, "train": {"ema": 0.9}}
    reordered = [NAMES[label] for label in (3, 0, 4, 2, 1)]
    train(tiny_config(data, **one_step), output=tmp_path / "same", weights=old_run)
    train(coco_config(data, tmp_path, reordered, **one_step), output=tmp_path / "other", weights=old_run)
    train(coco_config(data, tmp_path, reordered, **one_step), output=tmp_path / "anew")
    same, other, anew = (records(tmp_path / name)[0]["losses"] for name in ("same", "other", "anew"))
    assert other == pytest.approx(same, rel=1e-5)
    assert anew != pytest.approx(same, rel=1e-2)


def test_the_log_names_the_classes_that_start_anew_and_those_that_do_not(
    data: Path, old_run: Path, tmp_path: Path
) -> None:
    config = coco_config(data, tmp_path, OTHERS, schedule={"iterations": 1}, optim={"lr": 1e-12})
    train(config, output=tmp_path / "run", weights=old_run)
    log = (tmp_path / "run" / "train.log").read_text()
    assert f"training starts from the weights of {find_weights(old_run)} (step 3)" in log
    assert "that keep their weights: star, circle, cross, rectangle, triangle; that start anew: moon;" in log
    assert "head.box.cls.weight" in log
    # The moving average, which is what evaluation takes of a run.
    before, after = load_file(find_weights(old_run)), last_weights(tmp_path / "run")
    for label, name in enumerate(OTHERS):
        for parameter, rows in {"head.box.cls.weight": 1, "head.box.reg.bias": 4, "head.mask.logits.weight": 1}.items():
            mine = after[parameter][label * rows : (label + 1) * rows]
            if name == "moon":
                assert not any(torch.equal(mine, part) for part in before[parameter].split(rows))
            else:
                old = NAMES.index(name) * rows
                torch.testing.assert_close(mine, before[parameter][old : old + rows])
    torch.testing.assert_close(after["head.box.cls.weight"][-1], before["head.box.cls.weight"][-1])  # the background


def upernet(root: Path) -> Config:
    return tiny_segmentation_config(root)


def detection_batch(labels: list[int]) -> Batch:
    boxes = torch.tensor([[4.0, 6, 30, 40], [36, 20, 60, 58], [10, 30, 50, 60]])
    masks = torch.zeros(3, 64, 64, dtype=torch.uint8)
    for mask, (x1, y1, x2, y2) in zip(masks, boxes.int().tolist()):
        mask[y1:y2, x1:x2] = 1
    target = {"boxes": boxes, "labels": torch.tensor(labels[:3]), "masks": masks}
    return Batch(torch.linspace(-1, 1, 3 * 64 * 64).reshape(1, 3, 64, 64), [(64, 64)], [(64, 64)], [0], [target])


def segmentation_batch(labels: list[int]) -> Batch:
    maps = [torch.tensor(labels[i : i + 3]).repeat_interleave(22)[:64].expand(64, 64).byte() for i in range(2)]
    images = torch.linspace(-1, 1, 2 * 3 * 64 * 64).reshape(2, 3, 64, 64)
    return Batch(images, [(64, 64)] * 2, [(64, 64)] * 2, [0, 1], [{"label_map": labels} for labels in maps])


def classification_batch(labels: list[int]) -> Batch:
    images = torch.linspace(-1, 1, 2 * 3 * 32 * 32).reshape(2, 3, 32, 32)
    return Batch(images, [(32, 32)] * 2, [(32, 32)] * 2, [0, 1], [{"label": torch.tensor(x)} for x in labels[:2]])


def loss(model: Model, batch: Batch) -> dict[str, float]:
    torch.manual_seed(0)
    return {name: value.item() for name, value in model.train().loss(batch).items()}


@pytest.mark.parametrize(
    ("make_config", "make_batch"),
    [
        (tiny_config, detection_batch),
        (lambda root: dino_config(root, label_noise=0.0), detection_batch),
        (upernet, segmentation_batch),
        (tiny_classification_config, classification_batch),
    ],
    ids=["mask_rcnn", "dino", "upernet", "classifier"],
)
def test_every_head_finds_its_classes_again_in_any_order(make_config: Any, make_batch: Any, tmp_path: Path) -> None:
    config = make_config(tmp_path)
    count = config.model.head.num_classes
    order = [*range(1, count), 0]
    names = [f"class {label}" for label in range(count)]
    old, new = build_model(config.model), build_model(config.model)
    with torch.no_grad():
        for name in old.class_rows():  # some of them are initialised with zeros
            nn.init.normal_(old.get_parameter(name), std=0.5)
    write_weights(tmp_path / "old.safetensors", old.state_dict(), class_names=names)
    start_from(new, tmp_path / "old.safetensors", [names[label] for label in order])
    labels = list(range(count))
    expected = loss(old, make_batch([order[label] for label in labels]))
    assert loss(new, make_batch(labels)) == pytest.approx(expected, rel=1e-4)
    assert loss(new, make_batch([order[label] for label in labels])) != pytest.approx(expected, rel=1e-3)


def test_a_file_without_names_has_the_classes_of_the_data_if_it_has_as_many(
    data: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    old, file = build_model(tiny_config(data).model), tmp_path / "w.safetensors"
    write_weights(file, old.state_dict())
    same, more = build_model(tiny_config(data).model), build_model(tiny_config(data, model__head__num_classes=6).model)
    start_from(same, file, NAMES)
    assert_equal(dict(same.state_dict()), dict(old.state_dict()))
    assert "the file does not name its 5 classes, which are taken to be those of the data" in caplog.text
    fresh = more.head.box.cls.weight.clone()
    start_from(more, file, OTHERS)
    assert torch.equal(more.head.box.cls.weight[:6], fresh[:6])
    assert torch.equal(more.head.box.fc1.weight, old.head.box.fc1.weight)
    assert "keep their weights: none; that start anew: star, moon, circle, cross, rectangle, triangle;" in caplog.text


def test_weights_of_another_network_are_refused_by_name_unless_told(
    data: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    file = tmp_path / "w.safetensors"
    state = build_model(tiny_config(data).model).state_dict()
    state["extra.weight"] = torch.ones(1)
    state["backbone.merge.0.weight"] = torch.ones(2)
    del state["head.rpn.conv.weight"]
    write_weights(file, state, class_names=NAMES)
    model = build_model(tiny_config(data).model)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with pytest.raises(CheckpointError, match=r"(?s)1 missing: head\.rpn\.conv\.weight.*unexpected.*--weights-partial"):
        start_from(model, file, NAMES)
    assert_equal(dict(model.state_dict()), before)
    start_from(model, file, NAMES, partial=True)
    assert torch.equal(model.head.rpn.conv.weight, before["head.rpn.conv.weight"])
    assert torch.equal(model.head.box.fc1.weight, state["head.box.fc1.weight"])
    assert "parameters that start anew: head.rpn.conv.weight" in caplog.text
    assert "parameters of the file that are left out: " in caplog.text
    write_weights(file, {"a": torch.ones(1)})
    with pytest.raises(CheckpointError, match="nothing of it fits"):
        start_from(model, file, NAMES, partial=True)


# --- parts that do not train -----------------------------------------------------------------------------------------


def test_frozen_parts_keep_every_bit_and_the_others_train(data: Path, tmp_path: Path) -> None:
    old = tmp_path / "old"
    train(tiny_segmentation_config(data, schedule={"iterations": 1}), output=old)
    frozen = ("backbone.branches.0", "head.fuse", "head.lateral.*.0", "head.classifier.1.bias")
    settings = {"ema": 0.5, "freeze": list(frozen), "eval_every": 3}
    config = tiny_segmentation_config(data, schedule={"iterations": 3}, train=settings)
    train(config, output=tmp_path / "run", weights=old)
    start = load_file(find_weights(old))
    for name in ("model", "ema"):
        end = last_weights(tmp_path / "run", name)
        kept = {key for key in start if key.startswith(("backbone.branches.0.", "head.fuse.", "head.lateral.0.0."))}
        kept |= {"head.classifier.1.bias"}
        changed = {key for key in start if not torch.equal(start[key], end[key])}
        assert "head.fuse.1.running_mean" in kept
        assert not kept & changed
        assert {"backbone.branches.1.patch_embed.proj.weight", "head.classifier.1.weight"} <= changed
    state = torch.load(tmp_path / "run" / "checkpoints" / "last" / "trainer.pt", weights_only=True)["optimizer"]
    trained = {name for group in state["param_groups"] for name in group["param_names"]}
    assert not trained & kept
    assert "12 % of them are frozen" in (tmp_path / "run" / "train.log").read_text()


def test_frozen_parts_run_as_in_evaluation(data: Path, tmp_path: Path) -> None:
    """Without dropout and with fixed batch norms: what they say of an image does not depend on the other images."""
    from piip.engine.state import RunState

    config = tiny_segmentation_config(data, train={"freeze": ["backbone", "head.pooling"]})
    state = RunState(
        config, device=torch.device("cpu"), root=tmp_path, class_names=[], epoch_length=1, data={"train": "", "val": ""}
    )
    state.train_mode()
    modes = {name: module.training for name, module in state.model.named_modules()}
    assert not any(training for name, training in modes.items() if name.startswith(("backbone", "head.pooling")))
    assert modes["head"]
    assert modes["head.fuse.1"]


def test_a_part_that_is_not_there_is_told_with_the_nearest_and_something_must_train(data: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"'backbone\.branch\.0' names no part.*did you mean 'backbone\.branches\.0"):
        train(tiny_config(data, train={"freeze": ["backbone.branch.0"]}), output=tmp_path / "a")
    with pytest.raises(ConfigError, match="leaves no parameter to train"):
        train(tiny_config(data, train={"freeze": ["backbone", "neck", "head"]}), output=tmp_path / "b")


# --- longer runs -----------------------------------------------------------------------------------------------------


def test_a_run_that_goes_on_for_longer_equals_one_that_was_planned_so(
    data: Path, unbroken: Path, tmp_path: Path
) -> None:
    train(tiny_config(data, schedule=TWO | {"epochs": 1}), output=tmp_path)
    train(tiny_config(data, schedule=TWO), output=tmp_path, resume="auto")
    assert_same_run(unbroken, tmp_path)
    log = (tmp_path / "train.log").read_text()
    assert "the run goes on to 2 epochs instead of 1; the milestones [1] stay, the learning rate is 0.0001" in log


def test_a_schedule_that_depends_on_the_length_is_stretched_and_says_so(data: Path, tmp_path: Path) -> None:
    schedule = {"policy": "cosine", "warmup_iterations": 0}
    settings = {"log_every": 1, "eval_every": 9}
    train(tiny_config(data, schedule={"iterations": 4, **schedule}, train=settings), output=tmp_path)
    longer = tiny_config(data, schedule={"iterations": 6, **schedule}, train=settings)
    train(longer, output=tmp_path, resume="auto")
    rates = {record["step"]: record["lr"] for record in records(tmp_path) if record["event"] == "train"}
    for step in (5, 6):
        assert rates[step] == learning_rate(1e-3, step - 1, longer.schedule, STEPS_PER_EPOCH)
    said = "goes on to 6 iterations instead of 4; the cosine schedule is stretched over all of them"
    assert f"{said}, so that the learning rate goes on at 0.00025 instead of 0" in (tmp_path / "train.log").read_text()
    with pytest.raises(ConfigError, match=r"schedule\.iterations was 6 and is 5; undo this, or start a new run"):
        train(tiny_config(data, schedule={"iterations": 5, **schedule}, train=settings), output=tmp_path, resume="auto")


# --- data that moved -------------------------------------------------------------------------------------------------


def test_a_run_goes_on_with_data_that_moved_and_not_with_other_data(data: Path, unbroken: Path, tmp_path: Path) -> None:
    run, moved = tmp_path / "run", tmp_path / "elsewhere" / "shapes"
    train(tiny_config(data, schedule=TWO | {"epochs": 1}), output=run)
    shutil.copytree(data, moved)
    other = tmp_path / "other"
    shutil.copytree(moved, other)
    (file,) = other.glob("train-*/annotations.json")
    document = json.loads(file.read_text())
    document["annotations"][0]["bbox"][0] += 0.5  # as many images, ids and classes
    file.write_text(json.dumps(document))
    with pytest.raises(DataError, match="the training data changed: images, annotations or classes are not those"):
        train(tiny_config(other, schedule=TWO), output=run, resume="auto")
    train(tiny_config(moved, schedule=TWO), output=run, resume="auto")
    assert_same_run(unbroken, run)


def test_a_checkpoint_from_before_fingerprints_is_held_to_the_paths_of_its_data(
    data: Path, old_run: Path, tmp_path: Path
) -> None:
    from tests.engine.test_integrity import without_checksums

    checkpoint = tmp_path / "run" / "checkpoints" / "3"
    shutil.copytree(old_run / "checkpoints" / "3", checkpoint)
    without_checksums(checkpoint)
    meta = json.loads((checkpoint / "meta.json").read_text())
    del meta["data"]
    (checkpoint / "meta.json").write_text(json.dumps(meta))
    two: dict[str, Any] = {"epochs": 2}
    with pytest.raises(ConfigError, match=r"data\.train\.root was .* and is "):
        train(tiny_config(tmp_path / "elsewhere", schedule=two), output=tmp_path / "run", resume="auto")
    assert train(tiny_config(data, schedule=two), output=tmp_path / "run", resume="auto")


def test_a_resumed_run_keeps_its_own_weights(data: Path, old_run: Path, tmp_path: Path) -> None:
    """A job script may always give both."""
    config = tiny_config(data, schedule={"iterations": 2}, train={"eval_every": 2, "checkpoint_every": 1})
    train(config, output=tmp_path / "run", resume="auto", weights=old_run)
    before = last_weights(tmp_path / "run")
    train(config, output=tmp_path / "run", resume="auto", weights=old_run)
    assert_equal(last_weights(tmp_path / "run"), before)
    assert f"{old_run} is not read: the run is resumed" in (tmp_path / "run" / "train.log").read_text()
    assert run_evaluation(config, weights=tmp_path / "run").metrics
