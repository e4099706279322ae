"""Config and weights become the same model wherever they are put together."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

import piip
from piip.config.experiment import ModelConfig
from piip.config.load import load_config
from piip.errors import ConfigError
from piip.load import build_model, load_model
from piip.weights.files import write_weights

NANO = "detection/mask_rcnn_piip_nano_shapes"


@pytest.fixture
def weights(tmp_path: Path) -> Path:
    file = tmp_path / "w.safetensors"
    write_weights(file, build_model(load_config(NANO).model).state_dict(), class_names=["a", "b", "c"])
    return file


def test_a_loaded_model_predicts_what_a_created_one_does_and_knows_its_classes(weights: Path) -> None:
    config, image = load_config(NANO), torch.randint(256, (3, 60, 80), dtype=torch.uint8)
    loaded = load_model(config, weights, device=torch.device("cpu"), precision="fp32")
    created = piip.create_model(NANO, weights)
    for model in (loaded, created):
        assert not model.training
        assert model.class_names == ["a", "b", "c"]
        assert model.transforms == config.data.val_transforms
    for name, value in created.predict([image])[0].items():
        torch.testing.assert_close(loaded.predict([image])[0][name], value)


def test_a_loaded_model_has_the_precision_that_is_asked_for(weights: Path) -> None:
    for precision, dtype in (("fp32", torch.float32), ("bf16", torch.bfloat16), ("auto", torch.float32)):
        model = load_model(load_config(NANO), weights, device=torch.device("cpu"), precision=precision)
        assert model.backbone.branches[0].blocks[0].mlp.fc1.weight.dtype == dtype


def test_an_override_that_no_file_could_say_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"^data\.val\.images: a config holds .*, not PosixPath$"):
        piip.create_model(NANO, **{"data.val.images": Path("images")})


def test_branches_without_init_are_left_as_they_are_and_others_are_loaded_with_their_head(tmp_path: Path) -> None:
    branch = {"embed_dim": 32, "depth": 1, "num_heads": 1, "pretrain_size": 32, "class_token": True}
    source = tmp_path / "branch.pth"
    settings = {
        "backbone": {
            "branches": [branch, branch | {"init": str(source)}],
            "resolutions": [64, 32],
            "interactions": 1,
            "interaction": {"num_heads": 2},
            "merge": False,
        },
        "neck": {"type": "none"},
        "head": {"type": "classifier", "num_classes": 3},
    }
    model = build_model(ModelConfig.model_validate(settings))
    first, second = model.backbone.branches
    state = {key: torch.randn_like(value) for key, value in second.state_dict().items()}
    torch.save(state | {"norm.weight": torch.full((32,), 3.0), "norm.bias": torch.zeros(32)}, source)
    before = {key: value.clone() for key, value in first.state_dict().items()}
    model.load_pretrained()
    assert all(torch.equal(value, before[key]) for key, value in first.state_dict().items())
    assert all(torch.equal(value, state[key]) for key, value in second.state_dict().items())
    norms = [norm.weight[0].item() for norm in model.head.norms]
    assert norms == [1.0, 3.0]
