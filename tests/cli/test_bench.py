"""`piip bench`: figures that hang together, of inference and of training, of one network and of two in turns."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import Any

import pytest
import torch

from piip.bench.measure import times
from piip.bench.operators import Operators
from piip.config.load import load_config
from piip.flops.actual import actual_count
from piip.load import build_model
from piip.precision import prepare
from tests.cli.chain import figures, run, succeed

NANO = "detection/mask_rcnn_piip_nano_shapes"
TASKS = [
    NANO,
    "detection/dino_piip_nano_shapes",
    "segmentation/upernet_piip_nano_shapes",
    "classification/piip_nano_shapes",
]


def measured(*arguments: object) -> list[dict[str, Any]]:
    document = json.loads(succeed("bench", *arguments, "--device", "cpu", "--repeats", 1, "--json").stdout)
    assert document["machine"]["torch"] == torch.__version__
    return document["networks"]


@pytest.mark.parametrize("train", [False, True])
@pytest.mark.parametrize("name", TASKS)
def test_every_task_is_measured(name: str, train: bool) -> None:
    (found,) = measured(name, "--size", 64, "--batch", 2, *(["--train"] if train else []))
    assert (found["batch"], found["size"]) == (2, 64)
    assert found["median"] > 0
    assert found["images_per_second"] == pytest.approx(2000 / found["median"])
    assert 0 < found["share_of_products"] < 2
    count = actual_count(load_config(name).model, (64, 64))
    assert found["macs"] == 2 * count.total.macs == sum(part["macs"] for part in found["parts"])


def test_launches_are_those_of_one_pass_and_add_up() -> None:
    """Against a count of the whole that knows no parts."""
    (found,) = measured(NANO, "--size", 96)
    torch.manual_seed(0)
    model = prepare(build_model(load_config(NANO).model), torch.float32)
    images = torch.randint(0, 256, (1, 3, 96, 96), dtype=torch.uint8)
    model.infer(images, [(96, 96)])
    with Operators() as operators:
        model.infer(images, [(96, 96)])
    parts = {part["name"]: part["launches"] for part in found["parts"]}
    backbone = ["48 128", "64 96", "96 64", "interactions", "merge", "pyramid", "neck"]
    assert sum(parts.values()) == pytest.approx(operators.total, abs=40)  # what follows the boxes depends on them
    with Operators() as operators, torch.inference_mode():
        model.features(images, [(96, 96)])
    resizing = 12
    assert operators.total - resizing <= sum(parts[name] for name in backbone) <= operators.total


def test_two_networks_are_measured_in_turns_with_their_ratio() -> None:
    text = succeed("bench", NANO, "--against", TASKS[3], "--size", 64, "--repeats", 2, "--device", "cpu").stdout
    rows = figures(text)
    assert float(rows["launches"][2]) == pytest.approx(int(rows["launches"][1]) / int(rows["launches"][0]), abs=0.01)
    assert "█" in text
    calls: list[str] = []
    found = times([lambda: calls.append("a"), lambda: calls.append("b")], torch.device("cpu"), 2)
    assert calls == ["a", "b"] * 5
    assert [len(one) for one in found] == [2, 2]


def test_the_peak_is_what_a_call_holds() -> None:
    # In a process of its own, as the command runs: what earlier tests leave may be given back within the call.
    code = (
        "import torch; from piip.bench.measure import peak_bytes; "
        "print(peak_bytes(lambda: torch.ones(2**26).add(1), torch.device('cpu')))"
    )
    printed = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip()
    assert printed == "None" or 400 * 2**20 < int(printed) < 700 * 2**20


def test_a_graph_is_for_inference_on_a_gpu() -> None:
    refused = run("bench", NANO, "--graph", "--device", "cpu")
    assert refused.exit_code == 2
    assert "choose --device cuda" in refused.stderr


def test_settings_and_compilation_are_measured_too(monkeypatch: pytest.MonkeyPatch) -> None:
    compiled = []
    monkeypatch.setattr("piip.bench.network.compile_regions", compiled.append)
    (small,) = measured(NANO, "model.neck.out_channels=16", "--size", 64, "--compile")
    (large,) = measured(NANO, "--size", 64)
    assert small["macs"] < large["macs"]
    assert len(compiled) == 1
