"""Runs are reproducible, and continue bit for bit after whatever ended them."""

from __future__ import annotations

import copy
import json
import math
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file

from piip.config.load import load_config
from piip.engine import train as train_module
from piip.engine.checkpoint import load_trainer_state, read_evaluation
from piip.engine.evaluate import run_evaluation
from piip.engine.train import train
from piip.errors import CheckpointError, ConfigError, DataError, NonFiniteLoss, Stopped
from piip.weights.find import checkpoints, follow, newest_checkpoint
from piip.weights.integrity import read_meta
from tests.engine.test_integrity import without_checksums
from tests.engine.tiny import STEPS_PER_EPOCH, environment, tiny_config, tiny_segmentation_config

TIMES = ("time", "data_time", "memory_mib", "seconds", "waited")


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("shapes")


@pytest.fixture(scope="module")
def reference(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run from the first to the last step."""
    output = tmp_path_factory.mktemp("reference")
    train(tiny_config(data), output=output)
    return output


def without_times(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: without_times(item) for key, item in value.items() if key not in TIMES}
    return [without_times(item) for item in value] if isinstance(value, (list, tuple)) else value


def assert_equal(a: Any, b: Any, where: str = "") -> None:
    """Bitwise equality of nested containers of tensors and plain values."""
    if isinstance(a, torch.Tensor):
        assert torch.equal(a, b), where
    elif isinstance(a, dict):
        assert list(a) == list(b), where
        for key in a:
            assert_equal(a[key], b[key], f"{where}.{key}")
    elif isinstance(a, list):
        assert len(a) == len(b), where
        for index, (x, y) in enumerate(zip(a, b, strict=True)):
            assert_equal(x, y, f"{where}.{index}")
    else:
        assert a == b, where


def assert_same_run(a: Path, b: Path) -> None:
    """The newest checkpoints and all records are equal, apart from times."""
    last, other = follow(a / "checkpoints", "last"), follow(b / "checkpoints", "last")
    assert last is not None
    assert other is not None
    assert last.name == other.name
    for name in ("model", "ema"):
        assert_equal(load_file(last / f"{name}.safetensors"), load_file(other / f"{name}.safetensors"), name)
    assert_equal(without_times(load_trainer_state(last)), without_times(load_trainer_state(other)))
    assert read_evaluation(last) == read_evaluation(other)
    assert records(a) == records(b)


def records(output: Path) -> list[Any]:
    return [without_times(json.loads(line)) for line in (output / "metrics.jsonl").read_text().splitlines()]


def send_at_step(monkeypatch: pytest.MonkeyPatch, number: signal.Signals, at: int) -> None:
    """Lets this process send itself a signal while it takes its step number `at`, counted from 1."""
    original, calls = train_module.optimizer_step, []

    def step(*args: Any, **kwargs: Any) -> Any:
        calls.append(1)
        if len(calls) == at:
            os.kill(os.getpid(), number)
        return original(*args, **kwargs)

    monkeypatch.setattr(train_module, "optimizer_step", step)


def test_a_run_leaves_what_the_design_promises(reference: Path, data: Path) -> None:
    names = {path.name for path in reference.iterdir()}
    assert names == {"config.yaml", "metrics.jsonl", "train.log", "tensorboard", "curves.png", "checkpoints"}
    assert load_config(reference / "config.yaml") == tiny_config(data)
    assert [path.name for path in checkpoints(reference / "checkpoints")] == ["3", "6"]
    last = follow(reference / "checkpoints", "last")
    assert last is not None
    assert last.name == "6"
    assert read_meta(last)["class_names"] == ["circle", "rectangle", "triangle", "star", "cross"]
    kinds = [(record["event"], record["step"]) for record in records(reference)]
    assert kinds == [
        ("train", 1),
        ("train", 2),
        ("train", 3),
        ("eval", 3),
        ("train", 4),
        ("train", 5),
        ("train", 6),
        ("eval", 6),
    ]
    first = records(reference)[0]
    assert first["loss"] == pytest.approx(sum(first["losses"].values()))
    assert first["lr"] == pytest.approx(1e-3 * 0.001)


def test_the_same_seed_gives_the_same_run_bit_for_bit_and_another_one_does_not(
    reference: Path, data: Path, tmp_path: Path
) -> None:
    train(tiny_config(data), output=tmp_path / "again")
    assert_same_run(reference, tmp_path / "again")
    train(tiny_config(data, train__seed=1), output=tmp_path / "other")
    assert records(reference) != records(tmp_path / "other")


@pytest.mark.parametrize(("number", "at"), [(signal.SIGTERM, 2), (signal.SIGINT, 4), (signal.SIGTERM, 5)])
def test_a_stopped_run_continues_bit_for_bit(
    reference: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: signal.Signals, at: int
) -> None:
    kind = Stopped if number == signal.SIGTERM else KeyboardInterrupt
    with monkeypatch.context() as patched:
        send_at_step(patched, number, at)
        with pytest.raises(kind, match="go on with --resume"):
            train(tiny_config(data), output=tmp_path)
    newest = newest_checkpoint(tmp_path / "checkpoints")
    assert newest is not None
    assert newest.name in (str(at), str(at + 1))
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL
    # A few steps at a time, and with a change that does no harm.
    metrics = train(tiny_config(data, train__log_every=1, data__eval_batch_size=2), output=tmp_path, resume="auto")
    unbroken = read_evaluation(reference / "checkpoints" / "6")
    assert unbroken is not None
    assert metrics == unbroken["metrics"]
    assert_same_run(reference, tmp_path)


def test_a_network_with_batch_norms_continues_bit_for_bit(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = tiny_segmentation_config(data)
    train(config, output=tmp_path / "whole")
    with monkeypatch.context() as patch:
        send_at_step(patch, signal.SIGTERM, 4)
        with pytest.raises(Stopped):
            train(config, output=tmp_path / "stopped")
    train(config, output=tmp_path / "stopped", resume="auto")
    assert_same_run(tmp_path / "whole", tmp_path / "stopped")
    last = follow(tmp_path / "whole" / "checkpoints", "last")
    assert last is not None
    weights, average = (load_file(last / f"{name}.safetensors") for name in ("model", "ema"))
    assert weights["head.fuse.1.num_batches_tracked"] == average["head.fuse.1.num_batches_tracked"] == 6
    assert not torch.equal(weights["head.fuse.1.running_mean"], average["head.fuse.1.running_mean"])
    metrics = run_evaluation(config, weights=last).metrics
    assert metrics == read_evaluation(last)["metrics"]


def test_a_run_stopped_in_its_evaluation_repeats_it_and_continues(
    reference: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = train_module.evaluate

    def stop_in_between(*args: Any, **kwargs: Any) -> Any:
        os.kill(os.getpid(), signal.SIGTERM)
        return original(*args, **kwargs)

    with monkeypatch.context() as patched:
        patched.setattr(train_module, "evaluate", stop_in_between)
        with pytest.raises(Stopped):
            train(tiny_config(data), output=tmp_path)
    assert [record["event"] for record in records(tmp_path)] == ["train"] * 3
    train(tiny_config(data), output=tmp_path, resume=str(tmp_path))
    assert_same_run(reference, tmp_path)


def start(config: Path, output: Path, resume: bool) -> subprocess.Popen[bytes]:
    """Trains in a process group of its own, with loader processes, and slowly enough to be interrupted."""
    script = """
import sys
import time
from pathlib import Path
from piip.config.load import load_config
from piip.engine import train as module
from piip.engine.train import train
from piip.errors import PiipError

original = module.optimizer_step

def slow_step(*args, **kwargs):
    time.sleep(0.2)
    return original(*args, **kwargs)

module.optimizer_step = slow_step
try:
    train(load_config(sys.argv[1]), output=Path(sys.argv[2]), resume="auto" if sys.argv[3] == "True" else None)
except PiipError as error:
    sys.exit(error.exit_code)
"""
    return subprocess.Popen(
        [sys.executable, "-c", script, str(config), str(output), str(resume)], env=environment(), start_new_session=True
    )


def wait_for(condition: Callable[[], bool], process: subprocess.Popen[bytes]) -> None:
    end = time.monotonic() + 90
    while not condition():
        assert process.poll() is None, "the run ended too early"
        assert time.monotonic() < end
        time.sleep(0.005)


def test_a_process_killed_and_terminated_with_its_loaders_continues_bit_for_bit(data: Path, tmp_path: Path) -> None:
    changes = {"schedule": {"iterations": 24, "warmup_iterations": 5}, "data__workers": 1, "train__log_every": 3}
    config = tiny_config(data, **changes, train__checkpoint_every=3, train__eval_every=24)
    train(config, output=tmp_path / "whole")
    output = tmp_path / "broken"
    steps = output / "checkpoints"

    process = start(tmp_path / "whole" / "config.yaml", output, resume=False)
    wait_for(lambda: (steps / "3").exists(), process)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    process = start(tmp_path / "whole" / "config.yaml", output, resume=True)
    wait_for(lambda: (steps / "9").exists(), process)
    # To the whole group, as a scheduler does: the loader processes must not die of it.
    os.killpg(process.pid, signal.SIGTERM)
    assert process.wait(timeout=60) == 75
    assert newest_checkpoint(steps) is not None
    train(config, output=output, resume="auto")
    assert_same_run(tmp_path / "whole", output)


def test_the_moving_average_is_what_its_formula_says(data: Path, tmp_path: Path) -> None:
    config = tiny_config(data, schedule={"iterations": 4}, train={"ema": 0.75, "keep_checkpoints": 9, "eval_every": 4})
    train(config, output=tmp_path)
    expected: dict[str, torch.Tensor] = {}
    for step in range(1, 5):
        path = tmp_path / "checkpoints" / str(step)
        model, average = load_file(path / "model.safetensors"), load_file(path / "ema.safetensors")
        # The first step is taken over as it is.
        expected = {name: 0.75 * expected.get(name, value) + 0.25 * value for name, value in model.items()}
        for name, value in average.items():
            torch.testing.assert_close(value, expected[name], rtol=1e-5, atol=1e-7)


def test_the_best_checkpoint_gives_its_metrics_again(reference: Path, data: Path, tmp_path: Path) -> None:
    found = run_evaluation(tiny_config(data), weights=reference, output=tmp_path)
    best = follow(reference / "checkpoints", "best")
    assert best is not None
    stored = read_evaluation(best)
    assert stored is not None
    assert stored["best"]["step"] == int(best.name)
    assert found.metrics == stored["metrics"]
    assert [row["class"] for row in found.tables[0]] == ["circle", "rectangle", "triangle", "star", "cross"]
    assert json.loads((tmp_path / "metrics.json").read_text())["metrics"] == found.metrics


def test_an_iteration_schedule_ends_within_an_epoch_and_a_finished_run_is_not_trained_again(
    data: Path, tmp_path: Path
) -> None:
    config = tiny_config(data, schedule={"iterations": STEPS_PER_EPOCH + 1}, train={"eval_every": 3, "log_every": 2})
    metrics = train(config, output=tmp_path)
    assert [(r["event"], r["step"]) for r in records(tmp_path)] == [
        ("train", 2), ("eval", 3), ("train", 4), ("eval", 4)
    ]  # fmt: skip
    assert train(config, output=tmp_path, resume="auto") == metrics
    assert len(records(tmp_path)) == 4


def test_accumulation_keeps_the_number_of_steps(data: Path, tmp_path: Path) -> None:
    train(tiny_config(data, optim__accumulate=2, schedule={"epochs": 1}), output=tmp_path)
    assert [record["step"] for record in records(tmp_path) if record["event"] == "train"] == [1, 2, 3]


def test_a_diverging_run_stops_before_its_weights_are_spoilt(data: Path, tmp_path: Path) -> None:
    config = tiny_config(
        data, optim={"lr": 1e30}, schedule={"iterations": 9, "warmup_iterations": 0}, train={"checkpoint_every": 1}
    )
    with pytest.raises(NonFiniteLoss, match=r"(?s)not changed by this step.*on the images \d+, \d+"):
        train(config, output=tmp_path)
    newest = newest_checkpoint(tmp_path / "checkpoints")
    assert newest is not None
    assert all(value.isfinite().all() for value in load_file(newest / "model.safetensors").values())
    assert "NonFiniteLoss: the loss is not finite" in (tmp_path / "train.log").read_text()


def test_a_bad_step_between_two_records_changes_nothing_and_gets_into_no_checkpoint(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Step 4 is bad, and read while step 5 is computed."""
    original, states = train_module.optimizer_step, []

    def step(*args: Any, before_update: Any, **kwargs: Any) -> Any:
        state = before_update.__self__
        with pytest.MonkeyPatch.context() as patched:
            if len(states) == 3:
                loss = state.model.loss
                patched.setattr(
                    state.model, "loss", lambda batch: {name: math.nan * value for name, value in loss(batch).items()}
                )
            found = original(*args, before_update=before_update, **kwargs)
        everything = (state.model.state_dict(), state.ema.module.state_dict(), state.optimizer.state_dict()["state"])
        states.append((state, copy.deepcopy(everything)))
        return found

    monkeypatch.setattr(train_module, "optimizer_step", step)
    config = tiny_config(
        data,
        train={"log_every": 10, "checkpoint_every": 2, "eval_every": 6, "ema": 0.9},
        schedule={"iterations": 6, "warmup_iterations": 0},
    )
    with pytest.raises(NonFiniteLoss, match=r"on the images \d+, \d+"):
        train(config, output=tmp_path)
    assert len(states) == 4
    state, (model, average, moments) = states[3]
    assert_equal(model, states[2][1][0], "weights")
    assert_equal(moments, states[2][1][2], "optimizer")
    for name, value in average.items():  # step 3 was read by then
        torch.testing.assert_close(value, states[2][1][1][name].lerp(model[name], 0.1), msg=name)
    assert_equal(state.model.state_dict(), model)
    assert_equal(state.ema.module.state_dict(), average)
    assert_equal(state.optimizer.state_dict()["state"], moments)
    assert [path.name for path in checkpoints(tmp_path / "checkpoints")] == ["2"]


def test_a_directory_with_a_run_is_not_written_to_without_resume(reference: Path, data: Path) -> None:
    with pytest.raises(ConfigError, match="already holds a run; continue it with --resume"):
        train(tiny_config(data), output=reference)


def test_a_changed_config_is_refused_by_its_keys(reference: Path, data: Path) -> None:
    with pytest.raises(ConfigError, match=r"optim\.lr was 0\.001 and is 0\.1; undo this"):
        train(tiny_config(data, optim__lr=0.1), output=reference, resume="auto")


def test_a_run_from_before_a_setting_came_up_continues_with_its_default_alone(
    reference: Path, data: Path, tmp_path: Path
) -> None:
    checkpoint = tmp_path / "checkpoints" / "3"
    shutil.copytree(reference / "checkpoints" / "3", checkpoint)
    shutil.copy(reference / "metrics.jsonl", tmp_path)
    without_checksums(checkpoint)
    # As it was written before train.tf32 and interaction.mixed_precision.
    meta = json.loads((checkpoint / "meta.json").read_text())
    del meta["config"]["train"]["tf32"], meta["config"]["model"]["backbone"]["interaction"]["mixed_precision"]
    (checkpoint / "meta.json").write_text(json.dumps(meta))
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(meta["config"]))

    changed = tiny_config(data, model__backbone__interaction__mixed_precision=False)
    with pytest.raises(ConfigError, match=r"interaction\.mixed_precision was True and is False; undo this"):
        train(changed, output=tmp_path, resume="auto")
    train(load_config(tmp_path / "config.yaml"), output=tmp_path, resume="auto")
    assert_same_run(reference, tmp_path)


def test_an_older_checkpoint_goes_on_in_a_directory_of_its_own(reference: Path, data: Path, tmp_path: Path) -> None:
    older = reference / "checkpoints" / "3"
    with pytest.raises(CheckpointError, match=r"already holds a later checkpoint \(6\)"):
        train(tiny_config(data), output=reference, resume=str(older))
    train(tiny_config(data), output=tmp_path, resume=str(older))
    assert_equal(
        load_file(tmp_path / "checkpoints" / "6" / "model.safetensors"),
        load_file(reference / "checkpoints" / "6" / "model.safetensors"),
    )
    with pytest.raises(CheckpointError, match="already holds another run"):
        train(tiny_config(data), output=tmp_path, resume=str(older))


def test_resuming_from_what_is_not_there_says_so(data: Path, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"no checkpoint to resume from: .*nowhere"):
        train(tiny_config(data), output=tmp_path, resume=str(tmp_path / "nowhere"))


@pytest.mark.parametrize("name", ["model.safetensors", "meta.json", "evaluation.json"])
def test_damage_in_the_newest_checkpoint_costs_no_more_than_what_it_hit(
    reference: Path,
    data: Path,
    tmp_path: Path,
    name: str,
    capsys: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
) -> None:
    """An older checkpoint is gone on from, or the evaluation is repeated; either way the run ends the same."""
    subprocess.run(["cp", "-r", str(reference), str(tmp_path / "run")], check=True)
    file = tmp_path / "run" / "checkpoints" / "6" / name
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)
    train(tiny_config(data), output=tmp_path / "run", resume="auto")
    told = "counts as not evaluated" if name == "evaluation.json" else "trying an earlier one"
    assert told in caplog.text + capsys.readouterr().err
    assert_same_run(reference, tmp_path / "run")


def test_a_class_count_that_does_not_fit_is_an_error_before_the_first_step(data: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"model\.head\.num_classes is 4, .* has 5 classes"):
        train(tiny_config(data, model__head__num_classes=4), output=tmp_path)
    assert checkpoints(tmp_path / "checkpoints") == []
    # It was no run yet: the corrected one may have the directory.
    train(tiny_config(data, schedule={"iterations": 1}), output=tmp_path)


def test_changed_data_cannot_be_resumed(reference: Path, data: Path, tmp_path: Path) -> None:
    subprocess.run(["cp", "-r", str(reference), str(tmp_path / "run")], check=True)
    images = next(data.glob("train-*"))
    moved = data / "moved"
    images.rename(moved)
    try:
        subprocess.run(["cp", "-r", str(moved), str(images)], check=True)
        annotations = json.loads((images / "annotations.json").read_text())
        annotations["images"] = annotations["images"][:4]
        kept = {image["id"] for image in annotations["images"]}
        annotations["annotations"] = [a for a in annotations["annotations"] if a["image_id"] in kept]
        (images / "annotations.json").write_text(json.dumps(annotations))
        with pytest.raises(DataError, match=r"the training data changed: .*3 steps per epoch, now it is 5 and 2"):
            train(tiny_config(data), output=tmp_path / "run", resume="auto")
    finally:
        subprocess.run(["rm", "-r", str(images)], check=True)
        moved.rename(images)
