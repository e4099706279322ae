"""The released recipe: sizes as mmdetection computes them, pixels as OpenCV does, boxes and masks that follow."""

from __future__ import annotations

import hashlib

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from piip.data.transforms.batch import normalise_and_pad, prepare
from piip.data.transforms.detection.config import DetectionTransforms, ZoomConfig
from piip.data.transforms.resize import resize_image, resize_masks, resized_size
from piip.data.transforms.sample import generator
from piip.errors import DataError

MEAN, STD = (123.675, 116.28, 103.53), (58.395, 57.12, 57.375)


def picture(height: int, width: int) -> torch.Tensor:
    """A detailed image (3, H, W) that the recorded OpenCV outputs were made from."""
    i, j, c = np.ogrid[:height, :width, :3]
    return torch.from_numpy(((i * 73 + j * 151 + c * 37 + i * j * 11) % 256).astype(np.uint8)).permute(2, 0, 1)


def digest(array: torch.Tensor) -> str:
    return hashlib.sha256(np.ascontiguousarray(array.numpy()).tobytes()).hexdigest()[:16]


# scale (long, short), (h, w) -> (h, w): the sizes in mmdetection's logs and by hand from int(side * factor + 0.5).
SIZES = [
    ((1333, 800), (480, 640), (800, 1067)),
    ((1333, 800), (427, 640), (800, 1199)),
    ((1333, 800), (640, 427), (1199, 800)),
    ((1333, 800), (240, 640), (500, 1333)),
    ((800, 1333), (480, 640), (800, 1067)),
    ((1568, 941), (480, 640), (941, 1255)),
    ((1120, 672), (375, 500), (672, 896)),
    ((64, 64), (1, 1000), (1, 64)),
]


@pytest.mark.parametrize(("scale", "size", "expected"), SIZES)
def test_keep_ratio_sizes_are_those_of_mmdetection(
    scale: tuple[int, int], size: tuple[int, int], expected: tuple[int, int]
) -> None:
    assert resized_size(*size, scale) == expected


def test_resize_equals_opencv_on_a_small_image() -> None:
    # First channel of cv2.resize(picture(3, 4), (7, 5), interpolation=cv2.INTER_LINEAR), OpenCV 5.0.0 (4.10.0 agrees).
    expected = [
        [0, 54, 140, 98, 57, 143, 197],
        [29, 85, 173, 134, 88, 118, 137],
        [73, 131, 223, 188, 134, 81, 47],
        [117, 122, 131, 165, 192, 142, 111],
        [146, 116, 69, 149, 230, 183, 153],
    ]
    assert resize_image(picture(3, 4), (5, 7))[0].tolist() == expected


# Size, new size, and SHA-256 (first 16 digits) of cv2.resize's bytes (h, w, 3) with INTER_LINEAR, and of
# cv2.resize(picture(...)[:, :, 0] > 127) with INTER_NEAREST; OpenCV 5.0.0 (4.10.0 agrees).
RECORDED = [
    ((37, 53), (61, 87), "52be34b35b5c5ffd", "8a45d16bef3092c0"),
    ((48, 64), (94, 125), "8a21289166978ff9", "21919a4fdef660ba"),
    ((64, 43), (24, 16), "379c95e74c829d32", "18506d7e848df74d"),
    ((40, 60), (20, 30), "ab9f649f2b0897aa", "5eb8badca25feef3"),
    ((9, 200), (50, 31), "69f7e2e3b9f808c3", "7beaedaebe867b72"),
]


@pytest.mark.parametrize(("size", "new", "image_digest", "mask_digest"), RECORDED)
def test_resize_equals_opencv_byte_for_byte(
    size: tuple[int, int], new: tuple[int, int], image_digest: str, mask_digest: str
) -> None:
    image = picture(*size)
    assert digest(resize_image(image, new).permute(1, 2, 0)) == image_digest
    assert digest(resize_image(image.contiguous(), new).permute(1, 2, 0)) == image_digest
    assert digest(resize_masks((image[:1] > 127).to(torch.uint8), new)[0]) == mask_digest


@pytest.mark.parametrize(("size", "new"), [(size, new) for size, new, _, _ in RECORDED])
def test_resize_is_bilinear_to_one_grey_level(size: tuple[int, int], new: tuple[int, int]) -> None:
    exact = F.interpolate(picture(*size)[None].double(), size=new, mode="bilinear", align_corners=False)[0]
    difference = resize_image(picture(*size), new) - exact
    assert difference.abs().max() < 1.1
    assert difference.abs().mean() < 0.35


def test_resize_to_the_same_size_changes_nothing() -> None:
    assert torch.equal(resize_image(picture(13, 8), (13, 8)), picture(13, 8))


def sample() -> dict[str, object]:
    masks = torch.zeros(2, 40, 60, dtype=torch.uint8)
    masks[0, 4:20, 6:30] = 1
    masks[1, 30:40, 50:60] = 1
    target = {
        "boxes": torch.tensor([[6.0, 4, 30, 20], [50, 30, 60, 40]]),
        "labels": torch.tensor([1, 0]),
        "masks": masks,
        "crowd_boxes": torch.tensor([[0.0, 0, 10, 40]]),
    }
    return {"image": picture(40, 60), "image_id": 5, "target": target}


def test_boxes_and_masks_follow_the_image() -> None:
    config = DetectionTransforms(resize=((120, 120),))
    changed = config.apply(sample(), None)
    assert changed["original_size"] == (40, 60)
    assert changed["image_id"] == 5
    assert changed["image"].shape == (3, 80, 120)
    target = changed["target"]
    assert target["boxes"].tolist() == [[12, 8, 60, 40], [100, 60, 120, 80]]
    assert target["crowd_boxes"].tolist() == [[0, 0, 20, 80]]
    assert target["masks"].shape == (2, 80, 120)
    for box, mask in zip(target["boxes"].int().tolist(), target["masks"], strict=True):
        filled = torch.zeros(80, 120, dtype=torch.uint8)
        filled[box[1] : box[3], box[0] : box[2]] = 1
        assert torch.equal(mask, filled)


def test_flip_mirrors_image_boxes_and_masks() -> None:
    rng = generator(0)
    plain = DetectionTransforms(resize=((90, 70),)).apply(sample(), None)
    flipped = DetectionTransforms(resize=((90, 70),), flip=1.0).apply(sample(), rng)
    assert torch.equal(flipped["image"], plain["image"].flip(2))
    assert torch.equal(flipped["target"]["masks"], plain["target"]["masks"].flip(2))
    x1, y1, x2, y2 = plain["target"]["boxes"].unbind(1)
    assert torch.equal(flipped["target"]["boxes"], torch.stack([90 - x2, y1, 90 - x1, y2], dim=1))
    assert flipped["target"]["crowd_boxes"].tolist() == [[75, 0, 90, 60]]
    assert torch.equal(flipped["target"]["labels"], plain["target"]["labels"])


def test_an_image_without_objects_keeps_empty_targets() -> None:
    empty = sample()
    empty["target"] = {
        "boxes": torch.zeros(0, 4),
        "labels": torch.zeros(0, dtype=torch.int64),
        "masks": torch.zeros(0, 40, 60, dtype=torch.uint8),
        "crowd_boxes": torch.zeros(0, 4),
    }
    target = DetectionTransforms(resize=((120, 120),), flip=1.0).apply(empty, generator(1))["target"]
    assert {key: tuple(value.shape) for key, value in target.items()} == {
        "boxes": (0, 4),
        "labels": (0,),
        "masks": (0, 80, 120),
        "crowd_boxes": (0, 4),
    }


def test_multi_scale_training_draws_every_scale_and_about_the_given_share_of_flips() -> None:
    config = DetectionTransforms(resize=((60, 60), (90, 90), (120, 120)), flip=0.25)
    plain = {scale: DetectionTransforms(resize=(scale,)).apply(sample(), None)["image"] for scale in config.resize}
    widths, flips = [], 0
    for index in range(300):
        image = config.apply(sample(), generator(3, index))["image"]
        widths.append(image.shape[2])
        flips += not torch.equal(image, plain[(image.shape[2],) * 2])
    counts = [widths.count(width) for width in (60, 90, 120)]
    assert sum(counts) == 300
    assert min(counts) > 70
    assert 50 < flips < 100


def objects(height: int, width: int) -> dict:
    """An image whose red channel numbers its rows and green its columns, and two objects that fill their boxes."""
    i, j = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    boxes = torch.tensor([[10, 20, 40, 50], [60, 5, 90, 70]], dtype=torch.float32)
    inside = [(i >= y1) & (i < y2) & (j >= x1) & (j < x2) for x1, y1, x2, y2 in boxes]
    crowd = torch.tensor([[0.0, 0.0, 5.0, 5.0]])
    return {
        "image": torch.stack((i, j, i + j)).to(torch.uint8),
        "target": {
            "boxes": boxes, "labels": torch.tensor([3, 7]), "crowd_boxes": crowd,
            "masks": torch.stack(inside).to(torch.uint8),
        },
    }  # fmt: skip


def test_a_crop_is_a_part_of_the_image_with_the_objects_that_reach_into_it() -> None:
    config = DetectionTransforms(resize=((100, 80),), crop=25)
    seen = set()
    for index in range(200):
        result = config.apply(objects(80, 100), generator(5, index))
        image, target = result["image"], result["target"]
        height, width = image.shape[1:]
        top, left = image[0, 0, 0].item(), image[1, 0, 0].item()
        assert (height, width) == (25, 25)
        assert torch.equal(image, objects(80, 100)["image"][:, top : top + height, left : left + width])
        assert result["original_size"] == (80, 100)
        kept = []
        for box, label in zip(objects(80, 100)["target"]["boxes"].tolist(), (3, 7), strict=True):
            x1, x2 = (min(max(x - left, 0), width) for x in box[::2])
            y1, y2 = (min(max(y - top, 0), height) for y in box[1::2])
            if x2 > x1 and y2 > y1:
                kept.append((label, [x1, y1, x2, y2]))
        assert list(zip(target["labels"].tolist(), target["boxes"].tolist(), strict=True)) == kept
        assert target["masks"].shape == (len(kept), height, width)
        for mask, (_, (x1, y1, x2, y2)) in zip(target["masks"], kept, strict=True):
            assert mask.sum() == mask[int(y1) : int(y2), int(x1) : int(x2)].sum() == (x2 - x1) * (y2 - y1)
        assert len(target["crowd_boxes"]) == (top < 5 and left < 5)
        seen.add(len(kept))
    assert seen == {0, 1, 2}  # as in the released recipe, a part without objects is allowed


def test_a_crop_is_never_larger_than_the_image() -> None:
    config = DetectionTransforms(resize=((100, 80),), crop=1024)
    assert torch.equal(config.apply(objects(80, 100), generator(0))["image"], objects(80, 100)["image"])


def test_a_zoom_cuts_before_it_resizes_in_the_given_share_of_cases() -> None:
    zoom = ZoomConfig(probability=0.3, resize=((50, 40),), crop=(20, 20))
    config = DetectionTransforms(zoom=zoom, resize=((100, 80),))
    whole = DetectionTransforms(resize=((100, 80),)).apply(objects(80, 100), generator(0))["image"]
    sizes = [tuple(config.apply(objects(80, 100), generator(1, index))["image"].shape[1:]) for index in range(300)]
    assert set(sizes) == {(80, 100), (80, 80)}  # a square part of a wide image
    assert 60 < sizes.count((80, 80)) < 120
    assert torch.equal(config.apply(objects(80, 100), None)["image"], whole)
    zoom = ZoomConfig(probability=1.0, resize=((100, 80),), crop=(20, 60))
    config = DetectionTransforms(zoom=zoom, resize=((200, 200),))
    sizes = [tuple(config.apply(objects(80, 100), generator(1, index))["image"].shape[1:]) for index in range(300)]
    assert all(max(size) == 200 and min(size) >= 200 * 20 / 60 for size in sizes)  # height and width drawn apart
    assert min(min(size) for size in sizes) < 90
    assert len({size[0] > size[1] for size in sizes}) == 2


def test_random_streams_depend_on_seed_and_key_alone() -> None:
    draws = {
        key: generator(*key).random() for key in [(0,), (1,), (0, 0), (0, 1), (0, 0, 0), (0, 1, 0), (2**40, 0), (-3, 1)]
    }
    assert len(set(draws.values())) == len(draws)
    assert draws == {key: generator(*key).random() for key in reversed(draws)}


def test_normalise_then_pad_with_zeros_to_a_common_multiple() -> None:
    images = [picture(20, 45), picture(33, 10)]
    batch = normalise_and_pad(images, MEAN, STD, 32)
    assert batch.shape == (2, 3, 64, 64)
    assert batch.dtype == torch.float32
    for image, padded in zip(images, batch, strict=True):
        height, width = image.shape[1:]
        for c in range(3):
            expected = (image[c].double() - MEAN[c]) / STD[c]
            torch.testing.assert_close(padded[c, :height, :width].double(), expected, rtol=1e-6, atol=1e-6)
        assert padded[:, height:].abs().sum() == 0
        assert padded[:, :, width:].abs().sum() == 0


def test_prepare_gives_the_valid_sizes_of_a_padded_batch() -> None:
    config = DetectionTransforms(resize=((48, 40), (200, 200)), flip=1.0, pad_divisor=16)
    batch, sizes = prepare([picture(20, 30), picture(30, 20), picture(48, 12)], config)
    assert sizes == [(32, 48), (48, 32), (48, 12)]
    assert batch.shape == (3, 3, 48, 48)
    assert torch.equal(batch[0], F.pad(resize_image(picture(20, 30), (32, 48)), (0, 0, 0, 16)))


@pytest.mark.parametrize(
    ("image", "kind"),
    [
        (torch.zeros(3, 4, 4), r"float32 \(3, 4, 4\)"),
        (torch.zeros(4, 4, 3, dtype=torch.uint8), r"uint8 \(4, 4, 3\)"),
        (torch.zeros(1, 3, 4, 4, dtype=torch.uint8), r"uint8 \(1, 3, 4, 4\)"),
        (torch.zeros(3, 0, 4, dtype=torch.uint8), r"uint8 \(3, 0, 4\)"),
    ],
)
def test_prepare_refuses_other_tensors(image: torch.Tensor, kind: str) -> None:
    with pytest.raises(DataError, match=rf"uint8 RGB tensors of shape \(3, H, W\), got {kind}"):
        prepare([image], DetectionTransforms(resize=((48, 40),)))
    with pytest.raises(DataError, match="no images"):
        prepare([], DetectionTransforms(resize=((48, 40),)))
