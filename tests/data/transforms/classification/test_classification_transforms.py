"""The classification recipes: timm's and torchvision's own operations in the released order, drawn reproducibly."""

from __future__ import annotations

import random
from collections import Counter
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image, ImageFilter, ImageOps
from timm.data import create_transform
from torch import Tensor
from torchvision import transforms as T
from torchvision.transforms.functional import pil_to_tensor

from piip.data.transforms.batch import prepare
from piip.data.transforms.classification.config import ClassificationTransforms
from piip.data.transforms.sample import drawing_from, generator


def picture(height: int, width: int, seed: int = 0) -> Image.Image:
    """Smooth enough that resampling matters, sharp enough that a shift does."""
    rng = np.random.default_rng(seed)
    coarse = Image.fromarray(rng.integers(0, 256, (9, 9, 3), dtype=np.uint8))
    smooth = np.asarray(coarse.resize((width, height), Image.Resampling.BICUBIC), dtype=np.int16)
    return Image.fromarray(np.clip(smooth + rng.integers(-25, 26, smooth.shape), 0, 255).astype(np.uint8))


def as_sample(image: Image.Image) -> dict[str, Any]:
    return {"image": pil_to_tensor(image), "image_id": "a.png", "target": {"label": torch.tensor(3)}}


def changed(image: Image.Image, number: int = 0, **settings: Any) -> Tensor:
    config = ClassificationTransforms(**settings)
    sample = config.apply(as_sample(image), generator(0, 1, 0, number))
    assert sample["target"]["label"] == 3
    assert sample["original_size"] == (image.height, image.width)
    assert sample["image"].dtype == torch.uint8
    assert sample["image"].shape == (3, config.size, config.size)
    return sample["image"]


def reference(operation: Any, image: Image.Image, number: int) -> Tensor:
    """What an operation of another library makes of the image with the same draws."""
    with drawing_from(generator(0, 1, 0, number)):
        result = operation(image)
    return result if isinstance(result, Tensor) else pil_to_tensor(result)


@pytest.mark.parametrize("size", [(60, 90), (90, 60), (20, 200), (48, 48), (33, 34)])
@pytest.mark.parametrize("ratio", [1.0, 0.875])
def test_evaluation_is_the_released_bicubic_resize_and_centre_crop(size: tuple[int, int], ratio: float) -> None:
    image = picture(*size)
    config = ClassificationTransforms(size=48, crop_ratio=ratio)
    released = T.Compose([T.Resize(int(48 / ratio), interpolation=3), T.CenterCrop(48), T.ToTensor()])
    ours = config.apply({"image": pil_to_tensor(image)}, None)["image"]
    assert torch.equal(ours.float() / 255, released(image))
    assert torch.equal(ours, changed(image, size=48, crop_ratio=ratio, crop="centre", flip=0.0))
    batch, sizes = prepare([pil_to_tensor(image)], config)
    assert torch.equal(batch[0], ours)
    assert sizes == [(48, 48)]


@pytest.mark.parametrize(
    ("settings", "arguments"),
    [
        ({"augment": "rand", "color_jitter": 0.3}, {"auto_augment": "rand-m9-mstd0.5-inc1", "color_jitter": 0.3}),
        ({"augment": "rand", "rand_augment": "rand-m7-n3-mstd0.5"}, {"auto_augment": "rand-m7-n3-mstd0.5"}),
        ({"color_jitter": 0.3}, {"color_jitter": 0.3}),
        ({"flip": 0.2, "area": (0.5, 0.9)}, {"hflip": 0.2, "scale": (0.5, 0.9), "color_jitter": None}),
    ],
)
def test_training_is_what_timm_builds_for_the_released_arguments(
    settings: dict[str, Any], arguments: dict[str, Any]
) -> None:
    """With RandAugment timm leaves the colour jitter out, so the released 0.3 has no effect."""
    timm = create_transform(input_size=48, is_training=True, interpolation="bicubic", normalize=False, **arguments)
    image = picture(70, 90)
    for number in range(12):
        assert torch.equal(changed(image, number, size=48, **settings), reference(timm, image, number))


def test_three_augment_draws_one_of_grey_solarised_and_blurred() -> None:
    image = picture(48, 48)
    grey, solarised = (pil_to_tensor(op(image)) for op in (T.Grayscale(3), ImageOps.solarize))
    blurs = [pil_to_tensor(image.filter(ImageFilter.GaussianBlur(r))) for r in np.linspace(0.1, 2.0, 39).tolist()]
    found: Counter[str] = Counter()
    for number in range(90):
        result = changed(image, number, size=48, crop="centre", flip=0.0, augment="three")
        if torch.equal(result, grey):
            found["grey"] += 1
        elif torch.equal(result, solarised):
            found["solarised"] += 1
        else:
            distance = min((result.int() - blur.int()).abs().float().mean().item() for blur in blurs)
            assert distance < 0.6
            found["blurred"] += 1
    assert set(found) == {"grey", "solarised", "blurred"}
    assert min(found.values()) >= 15


def test_three_augment_keeps_the_colour_jitter() -> None:
    settings = {"size": 48, "crop": "centre", "flip": 0.0, "augment": "three"}
    pairs = [
        (changed(picture(48, 48), n, **settings), changed(picture(48, 48), n, **settings, color_jitter=0.3))
        for n in range(4)
    ]
    assert all(not torch.equal(plain, jittered) for plain, jittered in pairs)


def test_the_simple_crop_moves_the_whole_image_by_up_to_four_pixels_and_mirrors_its_border() -> None:
    image = picture(48, 48)
    padded = np.pad(np.asarray(image), ((4, 4), (4, 4), (0, 0)), mode="reflect")
    windows = {(y, x): padded[y : y + 48, x : x + 48] for y in range(9) for x in range(9)}
    places = set()
    for number in range(40):
        result = changed(image, number, size=48, crop="simple", flip=0.0).permute(1, 2, 0).numpy()
        places.add(next(place for place, window in windows.items() if np.array_equal(window, result)))
    assert len(places) > 20
    flipped = changed(image, 0, size=48, crop="simple", flip=1.0)
    assert torch.equal(flipped.flip(-1), changed(image, 0, size=48, crop="simple", flip=0.0))


@pytest.mark.parametrize("augment", ["none", "rand", "three"])
def test_a_sample_depends_on_its_generator_alone_and_leaves_the_global_ones_alone(augment: str) -> None:
    image = picture(70, 90)
    settings = {"size": 48, "augment": augment, "color_jitter": 0.3}

    def seed(value: int) -> None:
        random.seed(value)
        np.random.seed(value)  # noqa: NPY002
        torch.manual_seed(value)

    seed(1)
    first = changed(image, 5, **settings)
    seed(2)
    before = random.getstate(), np.random.get_state()[1].copy(), torch.get_rng_state()  # noqa: NPY002
    assert torch.equal(changed(image, 5, **settings), first)
    assert random.getstate() == before[0]
    assert np.array_equal(np.random.get_state()[1], before[1])  # noqa: NPY002
    assert torch.equal(torch.get_rng_state(), before[2])
    assert not torch.equal(changed(image, 6, **settings), first)


def test_the_global_generators_come_back_after_an_error() -> None:
    random.seed(3)
    before = random.getstate()

    def fail() -> None:
        with drawing_from(generator(0, 1)):
            random.random()
            raise KeyError

    with pytest.raises(KeyError):
        fail()
    assert random.getstate() == before


@pytest.mark.parametrize("policy", ["rand-m9-mstd0.5-inc1", "rand", "rand-m7-n3-p0.4-mmax12-inc0", "rand-m9-tweights"])
def test_policies_that_timm_knows_are_accepted(policy: str) -> None:
    changed(picture(50, 50), size=32, augment="rand", rand_augment=policy)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"rand_augment": "rand-m9-q5"}, "'rand-m9-q5' is no RandAugment policy; it is 'rand' and any of -m"),
        ({"rand_augment": "v0"}, "'v0' is no RandAugment policy"),
        ({"area": [0.9, 0.5]}, r"area: give the least share, then the greatest, both up to 1, got \[0.9, 0.5\]"),
        ({"size": 0}, "greater than 0"),
        ({"crop_ratio": 1.2}, "less than or equal to 1"),
    ],
)
def test_settings_that_cannot_be_are_refused_when_they_are_read(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ClassificationTransforms(**settings)
