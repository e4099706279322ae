"""What a command writes never takes the place of what it reads, or of what else it writes."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from PIL import Image

from piip.config.load import dump_config, load_config
from piip.engine import predict as predict_module
from piip.load import build_model
from piip.official.checkpoints import convert_back
from piip.weights.files import write_weights
from tests.cli.chain import run, succeed
from tests.engine.tiny import environment, tiny_config

NAMES = ["circle", "rectangle", "triangle", "star", "cross"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A config, its weights, the same as an official file, and an image."""
    root = tmp_path_factory.mktemp("outputs")
    config = tiny_config(root / "data")
    (root / "tiny.yaml").write_text(dump_config(config))
    torch.manual_seed(0)
    state = build_model(config.model).state_dict()
    write_weights(root / "ours.safetensors", state, config=config.model_dump(mode="json"), class_names=NAMES)
    convert_back(root / "ours.safetensors", root / "official.pth", config=config)
    Image.new("RGB", (60, 40), "teal").save(root / "a.jpg")
    return root


@pytest.mark.parametrize(
    ("source", "output", "options", "words"),
    [
        ("official.pth", "official.pth", [], "must end in .safetensors"),
        ("official.pth", "b.pth", [], "must end in .safetensors"),
        ("official.pth", "b", [], "must end in .safetensors"),
        ("ours.safetensors", "b.safetensors", ["--to-official"], "must end in .pth"),
        ("ours.safetensors", "ours.safetensors", [], "would be overwritten"),
        ("ours.safetensors", "link.safetensors", [], "would be overwritten"),
        ("ours.safetensors", "hard.safetensors", [], "would be overwritten"),
        ("linked.pth", "official.pth", ["--to-official"], "would be overwritten"),
    ],
)
def test_a_conversion_never_destroys_its_source_and_its_ending_says_what_is_written(
    folder: Path, tmp_path: Path, source: str, output: str, options: list[str], words: str
) -> None:
    for name in ("official.pth", "ours.safetensors"):
        shutil.copy(folder / name, tmp_path / name)
    (tmp_path / "link.safetensors").symlink_to("ours.safetensors")
    (tmp_path / "hard.safetensors").hardlink_to(tmp_path / "ours.safetensors")
    (tmp_path / "linked.pth").symlink_to("official.pth")
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    done = run("convert-ckpt", tmp_path / source, tmp_path / output, "--config", folder / "tiny.yaml", *options)
    assert done.exit_code == 2, done.stderr
    assert words in done.stderr
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_a_conversion_there_and_back_is_readable_by_everyone(folder: Path, tmp_path: Path) -> None:
    common = ("--config", folder / "tiny.yaml")
    succeed("convert-ckpt", folder / "official.pth", tmp_path / "a.safetensors", *common)
    succeed("convert-ckpt", tmp_path / "a.safetensors", tmp_path / "b.pth", "--to-official", *common)
    mask = os.umask(0)
    os.umask(mask)
    assert {path.stat().st_mode & 0o777 for path in tmp_path.iterdir()} == {0o666 & ~mask}
    back, official = (torch.load(path, weights_only=True) for path in (tmp_path / "b.pth", folder / "official.pth"))
    assert all(torch.equal(back["state_dict"][key], value) for key, value in official["state_dict"].items())


@pytest.mark.parametrize(
    "arguments",
    [
        ("eval", "tiny.yaml", "--weights", "missing.safetensors"),
        ("predict", "tiny.yaml", "a.jpg", "--weights", "missing", "--output", "o"),
        ("predict", "tiny.yaml", "missing.jpg", "--weights", "ours.safetensors", "--output", "o"),
        ("convert-ckpt", "missing.pth", "o.safetensors", "--config", "tiny.yaml"),
        ("train", "tiny.yaml", "--resume", "missing", "--output", "o"),
        ("train", "missing.yaml"),
        ("convert-config", "missing.py"),
    ],
)
def test_paths_that_are_not_there_are_usage_errors(folder: Path, tmp_path: Path, arguments: tuple[str, ...]) -> None:
    def place(word: str) -> str | Path:
        if (folder / word).is_file():
            return folder / word
        return tmp_path / word if "." in word or word in ("missing", "o") else word

    words = [place(word) for word in arguments]
    done = run(*words)
    assert done.exit_code == 2, done.stderr
    assert "missing" in done.stderr
    assert "Traceback" not in done.stderr


def test_weights_are_looked_for_before_torch_is_imported(folder: Path) -> None:
    script = f"""
import sys
from piip.cli.main import app
for words in (["eval"], ["predict", "a.jpg", "--output", "o"]):
    try:
        app([words[0], {str(folder / "tiny.yaml")!r}, *words[1:], "--weights", "missing.safetensors"])
    except SystemExit as end:
        assert end.code == 2
    assert "torch" not in sys.modules
"""
    subprocess.run([sys.executable, "-c", script], env=environment(), check=True, capture_output=True)


def test_overlays_get_names_of_their_own_whatever_the_images_are_called(folder: Path, tmp_path: Path) -> None:
    images = []
    for name in ("1/a.jpg", "2/a.jpg", "3/a_2.jpg", "4/a.png", "5/A_3.jpg", "6/a_2.png"):
        (tmp_path / name).parent.mkdir()
        Image.new("RGB", (60, 40), "teal").save(tmp_path / name)
        images.append(tmp_path / name)
    output = tmp_path / "o"
    succeed("predict", folder / "tiny.yaml", *images, "--weights", folder / "ours.safetensors", "--output", output)
    overlays = sorted(path.name for path in output.glob("*.jpg"))
    assert overlays == ["A_3.jpg", "a.jpg", "a_2.jpg", "a_2_2.jpg", "a_4.jpg", "a_5.jpg"]
    assert len(json.loads((output / "predictions.json").read_text())["images"]) == 6


@pytest.mark.parametrize("name", ["predictions.json", "a.jpg", "a.png", "linked.jpg"])
def test_an_image_in_the_folder_of_the_results_is_never_overwritten(folder: Path, tmp_path: Path, name: str) -> None:
    image = tmp_path / ("a.jpg" if name == "linked.jpg" else name)
    Image.new("RGB", (60, 40), "teal").save(image, "JPEG")
    given = image
    if name == "linked.jpg":
        (tmp_path / "images").mkdir()
        given = tmp_path / "images" / "a.gif"
        given.symlink_to(image)
    before = image.read_bytes()
    done = run("predict", folder / "tiny.yaml", given, "--weights", folder / "ours.safetensors", "--output", tmp_path)
    assert done.exit_code == 2
    assert "would be overwritten" in done.stderr
    assert image.read_bytes() == before


def test_the_annotations_of_the_data_are_not_overwritten_by_metrics(folder: Path, tmp_path: Path) -> None:
    done = run("eval", folder / "tiny.yaml", "--weights", folder / "ours.safetensors", "--output", tmp_path / "first")
    assert done.exit_code == 0, done.stderr
    data = next((folder / "data").glob("val-*"))
    annotations = tmp_path / "metrics.json"
    shutil.copy(data / "annotations.json", annotations)
    val = f"data.val={{type: coco, images: {data / 'images'}, annotations: {annotations}}}"
    before = annotations.read_bytes()
    done = run("eval", folder / "tiny.yaml", val, "--weights", folder / "ours.safetensors", "--output", tmp_path)
    assert done.exit_code == 2
    assert "metrics.json would be overwritten" in done.stderr
    assert annotations.read_bytes() == before
    done = run("eval", folder / "tiny.yaml", val, "--weights", folder / "ours.safetensors", "--output", data / "images")
    assert done.exit_code == 2
    assert "holds the images of the data set" in done.stderr
    shutil.copytree(data / "images", tmp_path / "third" / "worst")
    val = f"data.val={{type: coco, images: {tmp_path / 'third' / 'worst'}, annotations: {annotations}}}"
    words = [
        "eval",
        folder / "tiny.yaml",
        val,
        "--weights",
        folder / "ours.safetensors",
        "--output",
        tmp_path / "third",
    ]
    assert "holds the images of the data set" in run(*words).stderr


def test_a_config_written_by_hand_is_not_replaced_by_the_resolved_one(folder: Path, tmp_path: Path) -> None:
    config = tmp_path / "config.yaml"
    config.write_text(f"base: {folder / 'tiny.yaml'}  # mine\nschedule: {{epochs: 1}}\n")
    done = run("train", config, "--output", tmp_path)
    assert done.exit_code == 2
    assert "config.yaml would be overwritten" in done.stderr
    assert "# mine" in config.read_text()
    # The resolved config of a run is no such file.
    config.write_text(dump_config(load_config(config)))
    succeed("train", config, "--output", tmp_path)
    # Nor is one of an older version, which did not know all of today's keys.
    config.write_text(config.read_text().replace("  ema_warmup: false\n", ""))
    assert "ema_warmup" not in config.read_text()
    succeed("train", config, "--output", tmp_path, "--resume")
    assert "ema_warmup" in config.read_text()


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 75), (signal.SIGINT, 130)])
def test_prediction_that_is_stopped_writes_what_it_has_and_says_how_far_it_came(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: signal.Signals, code: int
) -> None:
    reads = []
    original = predict_module.read_image

    def read(file: Path, limit: int) -> torch.Tensor:
        reads.append(file)
        if len(reads) == 2:
            os.kill(os.getpid(), number)
        return original(file, limit)

    monkeypatch.setattr(predict_module, "read_image", read)
    images = []
    for index in range(4):
        images.append(tmp_path / f"{index}.jpg")
        shutil.copy(folder / "a.jpg", images[-1])
    output = tmp_path / "o"
    done = run("predict", folder / "tiny.yaml", *images, "--weights", folder / "ours.safetensors", "--output", output)
    assert done.exit_code == code
    assert f"stopped after 2 of 4 images; results are in {output}" in done.stderr
    assert len(json.loads((output / "predictions.json").read_text())["images"]) == 2
    assert sorted(path.name for path in output.iterdir()) == ["0.jpg", "1.jpg", "predictions.json"]


def test_a_full_disk_ends_prediction_and_conversion_with_the_results_so_far_and_the_old_file(
    folder: Path, tmp_path: Path
) -> None:
    # A limit on file sizes stands in for the end of the disk.
    Image.effect_noise((900, 900), 90).convert("RGB").save(tmp_path / "large.png")
    (tmp_path / "o.safetensors").write_bytes(b"old")
    common = ["--config", folder / "tiny.yaml"]
    weights = ["--weights", folder / "ours.safetensors"]
    commands = {
        f"cannot write to {tmp_path / 'o'}: File too large; stopped after 1 of 2 images; results are in": [
            *("predict", folder / "tiny.yaml", folder / "a.jpg", tmp_path / "large.png"),
            *(*weights, "--output", tmp_path / "o"),
        ],
        f"cannot write {tmp_path / 'o.safetensors'}: File too large (": [
            *("convert-ckpt", folder / "official.pth", tmp_path / "o.safetensors", *common)
        ],
        f"cannot write {tmp_path / 'o.pth'}: File too large (": [
            *("convert-ckpt", folder / "ours.safetensors", tmp_path / "o.pth", "--to-official", *common)
        ],
    }
    script = f"""
import resource, signal
from piip.cli.main import app
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
for words in {[list(map(str, words)) for words in commands.values()]!r}:
    try:
        app(words)
    except SystemExit as end:
        assert end.code == 1, words
"""
    done = subprocess.run([sys.executable, "-c", script], env=environment(), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert all(message in done.stderr for message in commands), done.stderr
    assert "Traceback" not in done.stderr
    assert len(json.loads((tmp_path / "o" / "predictions.json").read_text())["images"]) >= 1
    assert (tmp_path / "o.safetensors").read_bytes() == b"old"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["large.png", "o", "o.safetensors"]
