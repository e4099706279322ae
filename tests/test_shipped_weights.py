"""The weights that come with the package: what their files say, what they reach, and how they are named."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors import safe_open
from torchvision.ops import box_iou

import piip
from piip.config.load import config_from_dict, find_config, load_config, shipped_configs, shipped_weights
from piip.data.sets.shapes.config import ShapesData
from piip.engine.evaluate import run_evaluation
from piip.errors import ConfigError
from tests.cli.chain import run, succeed

CLASS_NAMES = ["circle", "rectangle", "triangle", "star", "cross"]
SHIPPED = {name: path for name in shipped_configs() if (path := shipped_weights(load_config(name)))}


@pytest.mark.parametrize("name", SHIPPED)
def test_a_file_says_its_classes_and_config_and_is_small(name: str) -> None:
    with safe_open(SHIPPED[name], "pt") as file:
        known = file.metadata()
        assert {file.get_tensor(key).dtype for key in file.keys()} == {torch.float16}  # noqa: SIM118
    assert json.loads(known["class_names"]) == CLASS_NAMES
    assert config_from_dict(json.loads(known["config"])).model == load_config(name).model
    assert SHIPPED[name].stat().st_size < 5_000_000


def test_every_file_belongs_to_a_config() -> None:
    assert {path.name for path in SHIPPED.values()} == {
        path.name for path in next(iter(SHIPPED.values())).parent.iterdir()
    }


@pytest.mark.parametrize("name", SHIPPED)
def test_a_model_has_them_in_float32_where_they_are_asked_for(name: str) -> None:
    model, fresh = (piip.create_model(load_config(name).alias or name, weights=w) for w in ("shipped", None))
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}
    assert (model.class_names, fresh.class_names) == (CLASS_NAMES, [])
    differ = [not a.equal(b) for a, b in zip(model.parameters(), fresh.parameters(), strict=True)]
    assert sum(differ) > 0.9 * len(differ)


def test_a_config_without_weights_says_so() -> None:
    with pytest.raises(ConfigError, match="no weights come with the package for detection/mask_rcnn_piip_nano_shapes"):
        piip.create_model("mask_rcnn_piip_nano_shapes", weights="shipped")


def test_names_and_weights_of_a_shipped_config_are_not_inherited(tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text("base: detection/mask_rcnn_piip_nano\nmodel: {head: {num_classes: 3}}\n")
    config = load_config(tmp_path / "mine.yaml")
    assert (config.name, config.alias, config.weights) == ("mine", None, None)
    assert find_config("nano") == find_config("detection/mask_rcnn_piip_nano")
    done = run("eval", tmp_path / "mine.yaml")
    assert done.exit_code == 2
    assert "--weights is needed" in done.stderr


@pytest.mark.slow
@pytest.mark.parametrize("name", SHIPPED)
def test_they_find_the_shapes(name: str, tmp_path: Path) -> None:
    overrides = [f"data.val.root={tmp_path}", "data.val.images=30", "data.workers=0"]
    found = run_evaluation(load_config(name, overrides), weights=SHIPPED[name], device="cpu")
    assert (found.metrics["box_ap50"] or 0) > 0.9


def test_predict_needs_no_more_than_a_name_and_an_image(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    dataset = ShapesData(root=tmp_path, split="val", images=1).build(training=False)
    Image.fromarray(dataset.image(0).permute(1, 2, 0).numpy()).save("photo.png")
    done = succeed("predict", "nano", "photo.png")
    assert Path("predictions/photo.jpg").is_file()
    result = piip.create_model("nano", weights="shipped").predict("photo.png", threshold=0.3)
    assert all(f"{count} {name}" in done.stdout for name, count in Counter(result.class_names).items())
    truth = dataset.target(0)
    overlaps = box_iou(truth["boxes"], result["boxes"]) * (truth["labels"][:, None] == result["labels"])
    assert (overlaps.amax(dim=1) > 0.75).float().mean() >= 0.75
