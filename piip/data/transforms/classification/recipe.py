"""The image recipes of classification, on Pillow images by torchvision and timm, as the released models have them."""

from __future__ import annotations

import random
from collections.abc import Callable
from functools import lru_cache
from typing import Any

import numpy as np
from PIL import Image, ImageFilter, ImageOps
from timm.data.auto_augment import RandAugment, posterize, rand_augment_transform
from timm.data.constants import IMAGENET_DEFAULT_MEAN
from timm.data.transforms import RandomResizedCropAndInterpolation
from torchvision.transforms import (
    CenterCrop,
    ColorJitter,
    Compose,
    Grayscale,
    InterpolationMode,
    RandomChoice,
    RandomCrop,
    RandomHorizontalFlip,
    Resize,
)
from torchvision.transforms.functional import pil_to_tensor

from piip.data.transforms.classification.config import ClassificationTransforms
from piip.data.transforms.sample import Sample, drawing_from

# An operation on Pillow images.
Operation = Callable[[Any], Any]

# Beyond the image's edge RandAugment shows ImageNet's mean colour.
_FILL = tuple(round(255 * mean) for mean in IMAGENET_DEFAULT_MEAN)


def transform_labelled(sample: Sample, config: ClassificationTransforms, rng: np.random.Generator | None) -> Sample:
    """Brings an image to (3, size, size); its label stays. See `TransformsConfig.apply`.

    Without rng the image is resized to size / crop_ratio and its centre taken.
    """
    image = Image.fromarray(sample["image"].permute(1, 2, 0).cpu().numpy())
    if rng is None:
        image = _evaluation(config)(image)
    else:
        with drawing_from(rng):
            image = _training(config)(image)
    return sample | {"image": pil_to_tensor(image).to(sample["image"].device)}


@lru_cache(maxsize=8)
def _evaluation(config: ClassificationTransforms) -> Operation:
    resized = int(config.size / config.crop_ratio)
    return Compose([Resize(resized, InterpolationMode.BICUBIC), CenterCrop(config.size)])


@lru_cache(maxsize=8)
def _training(config: ClassificationTransforms) -> Operation:
    """Crop, flip, and RandAugment or 3-Augment, in timm's order, with its colour jitter where RandAugment is off."""
    steps = [_crop(config), RandomHorizontalFlip(config.flip)]
    if config.augment == "rand":
        settings = {
            "translate_const": int(config.size * 0.45),
            "img_mean": _FILL,
            "interpolation": Image.Resampling.BICUBIC,
        }
        return Compose([*steps, _rand_augment(config.rand_augment, settings)])
    if config.augment == "three":
        steps.append(RandomChoice([Grayscale(3), ImageOps.solarize, _blur]))
    if config.color_jitter:
        steps.append(ColorJitter(config.color_jitter, config.color_jitter, config.color_jitter))
    return Compose(steps)


def _rand_augment(policy: str, settings: dict[str, Any]) -> RandAugment:
    """timm's, at whose strongest magnitude posterising keeps no bit, which recent versions of Pillow refuse to do."""
    augment = rand_augment_transform(policy, settings)
    for operation in augment.ops:
        if operation.aug_fn is posterize:
            operation.aug_fn = _posterize
    return augment


def _posterize(image: Image.Image, bits: int, **settings: Any) -> Image.Image:
    return posterize(image, bits, **settings) if bits else Image.new(image.mode, image.size)


def _crop(config: ClassificationTransforms) -> Operation:
    if config.crop == "centre":
        return _evaluation(config)
    if config.crop == "simple":
        resize = Resize(config.size, InterpolationMode.BICUBIC)
        return Compose([resize, RandomCrop(config.size, padding=4, padding_mode="reflect")])
    return RandomResizedCropAndInterpolation(config.size, scale=config.area, interpolation="bicubic")


def _blur(image: Image.Image) -> Image.Image:
    return image.filter(ImageFilter.GaussianBlur(random.uniform(0.1, 2.0)))
