"""Config and weights become the same model wherever they are put together."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

import piip
from piip.config.experiment import ModelConfig
from piip.config.load import load_config
from piip.errors import ConfigError
from piip.load import Uninitialised, build_model, load_model
from piip.precision import prepare
from piip.weights.files import LoadedWeights, load_weights, write_weights

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


def test_weights_are_read_into_the_precision_that_they_are_wanted_in(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Never whole in float32 beside it, and with the values of a model that was read in float32 and then prepared."""
    config = load_config("detection/mask_rcnn_piip_nano")
    source = build_model(config.model)
    write_weights(tmp_path / "weights.safetensors", source.state_dict())
    dtypes: set[torch.dtype] = set()

    def load(model: nn.Module, path: str | Path) -> LoadedWeights:
        blocks = (module for module in model.backbone.branches.modules() if isinstance(module, nn.Linear))
        dtypes.update(parameter.dtype for block in blocks for parameter in block.parameters())
        return load_weights(model, path)

    monkeypatch.setattr("piip.load.load_weights", load)
    weights, cpu = tmp_path / "weights.safetensors", torch.device("cpu")
    found = load_model(config, weights, device=cpu, precision="bf16")
    assert dtypes == {torch.bfloat16}
    expected = prepare(source, torch.bfloat16)
    assert list(found.state_dict()) == list(expected.state_dict())
    for (name, a), b in zip(found.state_dict().items(), expected.state_dict().values(), strict=True):
        assert a.dtype == b.dtype, name
        assert a.equal(b), name
    images = torch.randn(1, 3, 64, 64)
    with torch.inference_mode():
        for a, b in zip(found.features(images), expected.features(images), strict=True):
            assert a.equal(b)


def test_a_model_that_gets_weights_is_not_initialised_first(tmp_path: Path) -> None:
    """Its parameters are allocated and not touched; what is no parameter has its values all the same."""
    with Uninitialised():
        linear, norm = nn.Linear(2, 3), nn.BatchNorm2d(3)
        values = torch.zeros(3).add_(1)
    assert values.tolist() == [1, 1, 1]
    assert norm.running_var.tolist() == [1, 1, 1]
    assert linear.weight.shape == (3, 2)
