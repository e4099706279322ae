"""The model as users hold it: create_model, infer, predict."""

from __future__ import annotations

import copy
import json
import subprocess
import sys
import weakref
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from pycocotools import mask as mask_utils
from torch import Tensor

import piip
from piip.config.load import load_config
from piip.data.batch import Batch
from piip.data.transforms.batch import normalise_and_pad, pad, prepare
from piip.errors import CheckpointError, ConfigError, DataError
from piip.load import build_model
from piip.model import Model
from piip.precision import prepare as prepare_model
from piip.results.drawing import draw_detections
from piip.weights.files import write_weights

NANO = "detection/mask_rcnn_piip_nano_shapes"


@pytest.fixture(scope="module")
def nano() -> Model:
    torch.manual_seed(0)
    return piip.create_model(NANO, **{"model.head.score_threshold": 0.0})


def picture(height: int, width: int) -> Tensor:
    return torch.from_numpy(np.random.default_rng(0).integers(0, 256, (3, height, width), dtype=np.uint8))


def test_overrides_reach_the_network() -> None:
    model = piip.create_model(NANO, **{"model.head.num_classes": 7, "model.backbone.resolutions": [128, 64, 32]})
    assert model.head.box.cls.out_features == 8
    assert model.backbone.resolutions == (128, 64, 32)
    assert not model.training


def test_backbone_returns_one_map_a_stride(nano: Model) -> None:
    maps = nano.backbone(torch.randn(2, 3, 128, 96))
    assert [tuple(x.shape) for x in maps] == [(2, spec.channels, 128 // spec.stride, 96 // spec.stride)
                                              for spec in nano.backbone.specs]  # fmt: skip


def test_infer_gives_results_in_batch_pixels(nano: Model) -> None:
    sizes = [(128, 96), (90, 128)]
    results = nano.infer(torch.randn(2, 3, 128, 128), sizes)
    for result, (height, width) in zip(results, sizes, strict=True):
        assert result["boxes"].dtype == torch.float32
        assert result["labels"].dtype == torch.int64
        assert result["masks"].dtype == torch.bool
        assert result["masks"].shape == (len(result["boxes"]), height, width)
        assert (result["boxes"][:, 2::2] <= width).all()
        assert (result["boxes"][:, 3::2] <= height).all()
        assert (result["scores"].diff() <= 0).all()


def test_predict_prepares_infers_and_scales_back(nano: Model, tmp_path: Path) -> None:
    image = picture(200, 300)
    Image.fromarray(image.permute(1, 2, 0).numpy()).save(tmp_path / "image.png")
    from_tensor, from_file = nano.predict([image, tmp_path / "image.png"])
    for name, value in from_tensor.items():
        torch.testing.assert_close(value, from_file[name], msg=name)
    assert from_tensor["masks"].shape[1:] == (200, 300)

    pixels, sizes = prepare([image], nano.transforms)
    height, width = sizes[0]
    images = normalise_and_pad([pixels[0, :, :height, :width]], nano.config.mean, nano.config.std, 32)
    (in_batch,) = nano.infer(images, sizes)
    scale = torch.tensor([300 / width, 200 / height] * 2)
    torch.testing.assert_close(from_tensor["boxes"], in_batch["boxes"] * scale, rtol=1e-4, atol=1e-3)
    torch.testing.assert_close(from_tensor["scores"], in_batch["scores"])


def test_a_batch_of_an_evaluation_is_found_as_predicted_with_masks_as_run_lengths(nano: Model) -> None:
    images = [picture(200, 300), picture(90, 70)]
    pixels, sizes = prepare(images, nano.transforms)
    originals = [(200, 300), (90, 70)]
    for predicted, found in zip(nano.predict(images), nano.infer_batch(Batch(pixels, sizes, originals, [1, 2], []))):
        assert len(found["rles"]) > 0
        assert found.keys() == predicted.keys() - {"masks"} | {"rles"}
        assert all(torch.equal(found[name], predicted[name]) for name in ("boxes", "scores", "labels"))
        decoded = torch.from_numpy(mask_utils.decode(found["rles"]))
        assert torch.equal(decoded.permute(2, 0, 1).bool(), predicted["masks"])


def test_an_image_is_found_alike_alone_and_in_a_batch(nano: Model) -> None:
    images = torch.randn(2, 3, 128, 128)
    sizes = [(128, 128), (128, 128)]
    together = nano.infer(images, sizes)
    for index in range(2):
        (alone,) = nano.infer(images[index : index + 1], sizes[:1])
        torch.testing.assert_close(alone["boxes"], together[index]["boxes"], rtol=1e-3, atol=1e-2)


def test_predict_says_which_file_it_cannot_read(nano: Model, tmp_path: Path) -> None:
    (tmp_path / "broken.jpg").write_bytes(b"\xff\xd8\xff\xe0 no more")
    with pytest.raises(DataError, match=r"broken.jpg"):
        nano.predict([tmp_path / "broken.jpg"])
    with pytest.raises(DataError, match=r"gone.jpg"):
        nano.predict([tmp_path / "gone.jpg"])


def test_a_model_without_transforms_says_how_to_get_them() -> None:
    with pytest.raises(ConfigError, match="create_model"):
        build_model(load_config(NANO).model).predict([picture(10, 10)])


def test_weights_alone_are_enough_and_bring_their_class_names(nano: Model, tmp_path: Path) -> None:
    write_weights(tmp_path / "w.safetensors", nano.state_dict(), class_names=["a", "b", "c", "d", "e"])
    # The branch's own pretrained file does not exist, and is not asked for.
    overrides = {"model.backbone.branches.0.init": "no/such/file.pth"}
    loaded = piip.create_model(NANO, tmp_path / "w.safetensors", **overrides)
    assert loaded.class_names == ["a", "b", "c", "d", "e"]
    for (name, a), b in zip(nano.state_dict().items(), loaded.state_dict().values(), strict=True):
        assert a.equal(b), name


def test_weights_of_another_network_are_refused(nano: Model, tmp_path: Path) -> None:
    write_weights(tmp_path / "w.safetensors", nano.state_dict())
    with pytest.raises(CheckpointError, match="another network"):
        piip.create_model(NANO, tmp_path / "w.safetensors", **{"model.head.num_classes": 3})


def test_training_loss_is_the_sum_of_finite_scalars(nano: Model) -> None:
    mask = torch.zeros(1, 128, 128, dtype=torch.uint8)
    mask[0, 30:80, 20:90] = 1
    target = {"boxes": torch.tensor([[20.0, 30.0, 90.0, 80.0]]), "labels": torch.tensor([2]), "masks": mask}
    empty = {"boxes": torch.zeros(0, 4), "labels": torch.zeros(0, dtype=torch.int64), "masks": mask[:0]}
    for targets in ([target, empty], [empty, empty]):
        losses = nano.loss(Batch(torch.randn(2, 3, 128, 128), [(128, 128)] * 2, [(128, 128)] * 2, [1, 2], targets))
        assert all(loss.ndim == 0 and torch.isfinite(loss) for loss in losses.values())
        assert sum(losses.values()).requires_grad


def test_padded_pixels_train_as_normalised_images_do(nano: Model) -> None:
    sizes = [(128, 96), (100, 128)]
    valid = [picture(*size) for size in sizes]
    targets = [
        {
            "boxes": torch.tensor([[20.0, 30.0, 90.0, 80.0]]),
            "labels": torch.tensor([2]),
            "masks": (torch.arange(width) < 60).expand(1, height, width).byte(),
        }
        for height, width in sizes
    ]
    found = []
    for images in (pad(valid, 128), normalise_and_pad(valid, nano.config.mean, nano.config.std, 128)):
        torch.manual_seed(0)
        nano.zero_grad()
        losses = nano.loss(Batch(images, sizes, sizes, [1, 2], targets))
        torch.stack(list(losses.values())).sum().backward()
        gradient = next(nano.backbone.parameters()).grad
        assert gradient is not None
        found.append([*losses.values(), gradient.clone()])
    torch.testing.assert_close(*found, rtol=1e-4, atol=1e-5)
    nano.zero_grad()


def test_importing_the_package_does_not_import_torch() -> None:
    code = "import piip, piip.config.load, sys, json; print(json.dumps([piip.__version__, 'torch' in sys.modules]))"
    output = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert json.loads(output) == [piip.__version__, False]


def test_under_autocast_only_the_backbone_leaves_float32(nano: Model) -> None:
    dtypes: dict[str, set[torch.dtype]] = {"backbone": set(), "neck": set(), "head": set()}
    hooks = [
        module.register_forward_hook(lambda _, __, out, part=part: dtypes[part].add(out.dtype))
        for part in dtypes
        for module in getattr(nano, part).modules()
        if isinstance(module, torch.nn.Linear | torch.nn.Conv2d)
    ]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        nano.infer(torch.randn(1, 3, 64, 64), [(64, 64)])
    for hook in hooks:
        hook.remove()
    assert torch.bfloat16 in dtypes["backbone"]
    assert dtypes["neck"] == dtypes["head"] == {torch.float32}


@pytest.mark.parametrize("name", ["segmentation/upernet_piip_nano_shapes", "classification/piip_nano_shapes"])
def test_pixels_give_what_normalised_images_give(name: str) -> None:
    torch.manual_seed(0)
    model = piip.create_model(name)
    pixels, sizes = torch.zeros(2, 3, 96, 96, dtype=torch.uint8), [(96, 64), (80, 96)]
    for image, (height, width) in zip(pixels, sizes, strict=True):
        image[:, :height, :width] = picture(height, width)
    valid = [image[:, :height, :width] for image, (height, width) in zip(pixels, sizes, strict=True)]
    images = normalise_and_pad(valid, model.config.mean, model.config.std, 96)
    torch.testing.assert_close(model.infer(pixels, sizes), model.infer(images, sizes), rtol=1e-4, atol=1e-4)


def test_one_image_gives_one_result_and_several_give_a_list(nano: Model, tmp_path: Path) -> None:
    image = picture(90, 70)
    Image.fromarray(image.permute(1, 2, 0).numpy()).save(tmp_path / "image.png")
    (expected,) = nano.predict([image])
    forms = [str(tmp_path / "image.png"), Image.open(tmp_path / "image.png"), image.permute(1, 2, 0).numpy()]
    for result in (*map(nano.predict, forms), *nano.predict(forms), *nano.predict(tuple(forms[:1]))):
        assert result.keys() == expected.keys()
        assert all(torch.allclose(result[name], expected[name], atol=1e-3) for name in result)


def test_the_threshold_and_classes_leave_out_the_other_objects(nano: Model) -> None:
    nano.class_names = ["a", "b", "c", "d", "e"]
    image = picture(90, 70)
    every = nano.predict(image)
    assert every.class_names == every["class_names"] == ["abcde"[label] for label in every["labels"].tolist()]
    assert "class_names" not in every
    threshold = every["scores"].median().item()
    kept = (every["scores"] >= threshold) & (every["labels"] == every["labels"][0])
    chosen = nano.predict(image, threshold=threshold, classes=every.class_names[0])
    assert 0 < len(chosen["scores"]) < len(every["scores"])
    assert set(chosen.class_names) == {every.class_names[0]}
    assert all(torch.equal(chosen[name], every[name][kept]) for name in every)
    with pytest.raises(ConfigError, match="no class 'f'; there are a, b, c, d, e"):
        nano.predict(image, classes=["a", "f"])
    with pytest.raises(ConfigError, match="no class '2'"):
        nano.predict(image, classes=[2])
    with pytest.raises(KeyError, match="class_name"):
        every["class_name"]


def test_the_maps_of_a_view_are_gone_before_the_next_one_is_run(monkeypatch: pytest.MonkeyPatch) -> None:
    model = piip.create_model("segmentation/upernet_piip_nano_shapes", **{"model.head.test_flip": True})
    features, maps = model.features, []

    def watched(*arguments: Any) -> list[Tensor]:
        assert not [x for x in maps if x() is not None]
        found = features(*arguments)
        maps.extend(weakref.ref(x) for x in found)
        return found

    monkeypatch.setattr(model, "features", watched)
    model.predict(picture(90, 70))
    assert len(maps) == 2 * len(model.head.specs)


def test_results_are_drawn_on_their_image(nano: Model, tmp_path: Path) -> None:
    image = picture(300, 200)
    Image.fromarray(image.permute(1, 2, 0).numpy()).save(tmp_path / "image.png")
    result = nano.predict(image, threshold=0.2)
    expected = draw_detections(image, result, nano.names)
    for drawn in (piip.draw(tmp_path / "image.png", result), nano.draw(image, dict(result))):
        assert np.array_equal(drawn, expected)
    with pytest.raises(DataError, match=r"draw takes the result of one image.* not list"):
        piip.draw(image, [result])


@pytest.mark.parametrize("name", ["segmentation/upernet_piip_nano_shapes", "classification/piip_nano_shapes"])
def test_other_tasks_have_names_and_pictures_too_and_no_objects_to_choose_among(name: str) -> None:
    model = piip.create_model(name)
    image = picture(90, 70)
    result = model.predict(image, threshold=2.0)
    assert "class 0" in result.class_names
    assert piip.draw(image, result).size[0] >= 70
    with pytest.raises(ConfigError, match="among detected objects"):
        model.predict(image, classes=["class 0"])


def test_calls_that_other_toolkits_take_say_what_to_use_instead(nano: Model) -> None:
    with pytest.raises(DataError, match=r"not with Tensor; for results use model\.predict"):
        nano(torch.zeros(1, 3, 128, 128))
    for change in (Model.half, Model.double, Model.bfloat16):
        with pytest.raises(ConfigError, match=r"model\.float\(\) undoes that"):
            change(copy.deepcopy(nano)).predict(picture(90, 70))
    prepare_model(copy.deepcopy(nano), torch.bfloat16).predict(picture(90, 70))
