"""The released segmentation recipe: sizes, crops and colours as mmsegmentation and OpenCV make them."""

from __future__ import annotations

import cv2
import numpy as np
import pytest
import torch

from piip.data.transforms.sample import generator
from piip.data.transforms.segmentation.config import SegmentationTransforms
from piip.data.transforms.segmentation.photometric import distort, hsv_to_rgb, rgb_to_hsv

# OpenCV treats the last pixels of a row that do not fill a vector register another way; none are left over here.
PHOTO = np.random.default_rng(1).integers(0, 256, (30, 64, 3), dtype=np.uint8)
# Blocks of 5 pixels, so that a nearest-neighbour resize is not noise.
LABELS = np.random.default_rng(2).choice([0, 1, 2, 255], (6, 13)).repeat(5, 0).repeat(5, 1)[:, :64].astype(np.uint8)


def sample(image: np.ndarray = PHOTO, labels: np.ndarray = LABELS) -> dict[str, object]:
    pixels = torch.from_numpy(image).permute(2, 0, 1)
    return {"image": pixels, "image_id": "a.jpg", "target": {"label_map": torch.from_numpy(labels)}}


def settings(**changes: object) -> SegmentationTransforms:
    return SegmentationTransforms(**({"resize": (60, 40)} | changes))


def official_eval_size(height: int, width: int, crop: int = 512) -> tuple[int, int]:
    """mmsegmentation's SETR_Resize with setr_multi_scale at (2048, 512), and mmcv's rescale_size, step by step."""
    short = max(min(2048, 512), crop)
    scale = (short * height / width, short) if height > width else (short, short * width / height)
    factor = min(max(scale) / max(height, width), min(scale) / min(height, width))
    return int(height * factor + 0.5), int(width * factor + 0.5)


@pytest.mark.parametrize("size", [(512, 683), (683, 512), (300, 300), (90, 500), (201, 127), (1000, 1), (33, 1021)])
def test_evaluation_sizes_are_those_of_the_released_resize(size: tuple[int, int]) -> None:
    image = torch.zeros(3, *size, dtype=torch.uint8)
    if official_eval_size(*size)[0] > 20_000:
        image = image[:, :20]
    changed = SegmentationTransforms(resize=(None, 512)).apply({"image": image}, None)
    assert tuple(changed["image"].shape[1:]) == official_eval_size(*image.shape[1:])
    assert changed["original_size"] == tuple(image.shape[1:])
    assert "target" not in changed


def test_training_resizes_images_and_labels_as_opencv_does_by_a_factor_from_the_range() -> None:
    config = settings(ratio_range=(0.5, 2.0))
    shapes = set()
    for number in range(40):
        changed = config.apply(sample(), generator(number))
        height, width = changed["image"].shape[1:]
        shapes.add(width)
        factor = generator(number).uniform(0.5, 2.0)
        scale = min(int(60 * factor) / 64, int(40 * factor) / 30)
        assert (height, width) == (int(30 * scale + 0.5), int(64 * scale + 0.5))
        resized = cv2.resize(PHOTO, (width, height), interpolation=cv2.INTER_LINEAR)
        assert np.array_equal(changed["image"].permute(1, 2, 0), resized)
        labels = cv2.resize(LABELS, (width, height), interpolation=cv2.INTER_NEAREST)
        assert np.array_equal(changed["target"]["label_map"], labels)
    assert min(shapes) < 36
    assert max(shapes) > 110


def test_a_flip_mirrors_image_and_labels() -> None:
    plain, flipped = (settings(flip=share).apply(sample(), generator(0)) for share in (0.0, 1.0))
    assert torch.equal(flipped["image"], plain["image"].flip(2))
    assert torch.equal(flipped["target"]["label_map"], plain["target"]["label_map"].flip(1))


def located() -> dict[str, object]:
    """A picture whose red and green say where a pixel comes from, and a map with one class at the left and one else."""
    rows, columns = np.mgrid[:60, :80].astype(np.uint8)
    labels = np.zeros((60, 80), dtype=np.uint8)
    labels[:, :15] = 1
    labels[:, 60:] = 255
    return sample(np.stack([rows, columns, rows], axis=2), labels)


def test_crops_take_the_same_part_of_both_from_anywhere_in_the_image() -> None:
    whole = located()
    corners = set()
    for number in range(300):
        changed = settings(resize=(80, 60), crop=40).apply(whole, generator(number))
        top, left = changed["image"][:2, 0, 0].tolist()
        corners.add((top, left))
        assert torch.equal(changed["image"], whole["image"][:, top : top + 40, left : left + 40])
        assert torch.equal(
            changed["target"]["label_map"], whole["target"]["label_map"][top : top + 40, left : left + 40]
        )
        assert changed["target"]["label_map"].is_contiguous()
    tops, lefts = zip(*corners)
    assert (min(tops), max(tops), min(lefts), max(lefts)) == (0, 20, 0, 40)


def test_a_crop_larger_than_the_image_is_the_image() -> None:
    changed = settings(resize=(80, 60), crop=70).apply(located(), generator(0))
    assert changed["image"].shape[1:] == changed["target"]["label_map"].shape == (60, 70)


def test_a_crop_with_too_much_of_one_class_is_drawn_anew_ten_times_at_most() -> None:
    def mixed(changed: dict) -> bool:
        labels = changed["target"]["label_map"]
        counts = torch.bincount(labels[labels != 255].flatten())
        return bool(counts.max() < 0.75 * counts.sum())

    shares = {}
    for cap in (1.0, 0.75):
        config = settings(resize=(80, 60), crop=30, crop_max_share=cap)
        shares[cap] = np.mean([mixed(config.apply(located(), generator(number))) for number in range(300)])
    # Of the 51 places from left to right the first 8 hold more than a quarter of the class at the left.
    assert shares[1.0] == pytest.approx(8 / 51, abs=0.06)
    assert shares[0.75] == pytest.approx(1 - (1 - 8 / 51) ** 11, abs=0.06)

    uniform = located()
    uniform["target"]["label_map"].fill_(0)
    rng = generator(5)
    settings(resize=(80, 60), crop=30, crop_max_share=0.75).apply(uniform, rng)
    other = generator(5)
    other.uniform(1, 1)
    for _ in range(11):
        other.integers(60 - 30 + 1), other.integers(80 - 30 + 1)
    other.random()
    assert rng.random() == other.random()


def every_colour() -> np.ndarray:
    """A third of all 8-bit triples (h, w, 3), each value of each channel among them."""
    values = np.stack(np.meshgrid(np.arange(0, 256, 5), np.arange(256), np.arange(0, 256, 3), indexing="ij"), axis=-1)
    return values.astype(np.uint8).reshape(52, -1, 3)


def test_hsv_is_that_of_opencv() -> None:
    colours = every_colour()
    hsv = cv2.cvtColor(colours, cv2.COLOR_RGB2HSV)
    assert np.array_equal(rgb_to_hsv(torch.from_numpy(colours).permute(2, 0, 1)).permute(1, 2, 0), hsv)


def test_rgb_from_hsv_is_that_of_opencv_but_for_a_grey_level_in_few_pixels() -> None:
    hsv = every_colour()
    hsv = hsv[hsv[:, 0, 0] < 180]
    ours = hsv_to_rgb(torch.from_numpy(hsv).permute(2, 0, 1)).permute(1, 2, 0).numpy().astype(int)
    difference = np.abs(ours - cv2.cvtColor(hsv, cv2.COLOR_HSV2RGB))
    assert difference.max() <= 1
    assert difference.mean() < 0.005


def official_distortion(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """mmsegmentation's PhotoMetricDistortion on RGB with OpenCV, drawing from `rng` in its order."""

    def convert(values: np.ndarray, alpha: float = 1, beta: float = 0) -> np.ndarray:
        return np.clip(values.astype(np.float32) * np.float32(alpha) + np.float32(beta), 0, 255).astype(np.uint8)

    def contrast(values: np.ndarray) -> np.ndarray:
        return convert(values, alpha=rng.uniform(0.5, 1.5)) if rng.integers(2) else values

    if rng.integers(2):
        image = convert(image, beta=rng.uniform(-32, 32))
    mode = rng.integers(2)
    if mode == 1:
        image = contrast(image)
    if rng.integers(2):
        hsv = cv2.cvtColor(image, cv2.COLOR_RGB2HSV)
        hsv[..., 1] = convert(hsv[..., 1], alpha=rng.uniform(0.5, 1.5))
        image = cv2.cvtColor(hsv, cv2.COLOR_HSV2RGB)
    if rng.integers(2):
        hsv = cv2.cvtColor(image, cv2.COLOR_RGB2HSV)
        hsv[..., 0] = (hsv[..., 0].astype(int) + rng.integers(-18, 18)) % 180
        image = cv2.cvtColor(hsv, cv2.COLOR_HSV2RGB)
    return image if mode == 1 else contrast(image)


def test_photometric_distortion_is_the_official_one() -> None:
    image = torch.from_numpy(PHOTO).permute(2, 0, 1)
    results = set()
    for number in range(200):
        rng, same = generator(9, number), generator(9, number)
        changed = distort(image, rng)
        results.add(changed.numpy().tobytes())
        difference = np.abs(changed.permute(1, 2, 0).numpy().astype(int) - official_distortion(PHOTO, same))
        # Next to grey, a level lost in one step may turn the hue in the next.
        assert (difference > 1).mean() < 0.005
        assert difference.mean() < 0.02
        assert rng.random() == same.random()
    assert len(results) > 150
    assert torch.equal(image, torch.from_numpy(PHOTO).permute(2, 0, 1))


def test_only_a_config_that_says_so_distorts_and_labels_keep_theirs() -> None:
    plain, distorted = (
        [settings(photometric=wanted).apply(sample(), generator(number)) for number in range(20)]
        for wanted in (False, True)
    )
    assert all(torch.equal(a["image"], plain[0]["image"]) for a in plain)
    assert sum(not torch.equal(a["image"], b["image"]) for a, b in zip(plain, distorted, strict=True)) > 10
    assert all(torch.equal(a["target"]["label_map"], plain[0]["target"]["label_map"]) for a in distorted)


def test_a_range_of_factors_must_rise_from_above_zero() -> None:
    for factors in ((0.0, 1.0), (2.0, 0.5)):
        with pytest.raises(ValueError, match="give the smallest factor, then the largest"):
            settings(ratio_range=factors)
