"""UperNet's losses, views and results; its arithmetic is held against recordings in tests/golden."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from piip.errors import ConfigError
from piip.features import FeatureSpec
from piip.heads.upernet.head import ConvNorm, UperNet

STRIDES = (4, 8, 16, 32)
SPECS = [FeatureSpec(8, stride) for stride in STRIDES]


def build(**settings) -> UperNet:
    torch.manual_seed(0)
    return UperNet(specs=SPECS, **{"num_classes": 5, "channels": 8, "dropout": 0.0} | settings)


def features(batch: int, height: int = 64, width: int = 96) -> list[Tensor]:
    generator = torch.Generator().manual_seed(1)
    return [torch.randn(batch, 8, height // s, width // s, generator=generator) for s in STRIDES]


def targets() -> list[dict[str, Tensor]]:
    generator = torch.Generator().manual_seed(2)
    maps = [torch.randint(0, 5, size, generator=generator, dtype=torch.uint8) for size in ((64, 96), (50, 70))]
    maps[0][:10] = 255
    return [{"label_map": label_map} for label_map in maps]


SIZES = [(64, 96), (50, 70)]


def test_losses_are_means_over_all_pixels_of_the_batch_labelled_or_not() -> None:
    head, maps = build().eval(), features(2)
    losses = head.loss(maps, SIZES, targets())
    assert losses.keys() == {"loss_seg", "loss_auxiliary"}
    for name, logits, weight in (
        ("loss_seg", head(maps), 1.0),
        ("loss_auxiliary", head.auxiliary(maps[2]), 0.4),
    ):
        likelihood = F.interpolate(logits, size=(64, 96), mode="bilinear", align_corners=False).log_softmax(1)
        total = 0.0
        for image, target in zip(likelihood, targets(), strict=True):
            height, width = target["label_map"].shape
            for label in range(5):
                total -= image[label, :height, :width][target["label_map"] == label].sum()
        torch.testing.assert_close(losses[name], weight * total / (2 * 64 * 96))


def test_every_parameter_learns_and_without_labels_the_loss_is_zero() -> None:
    head = build()
    sum(head.loss(features(2), SIZES, targets()).values()).backward()
    assert all(parameter.grad is not None and parameter.grad.any() for parameter in head.parameters())
    head.zero_grad()
    nothing = [{"label_map": torch.full(size, 255, dtype=torch.uint8)} for size in SIZES]
    losses = head.loss(features(2), SIZES, nothing)
    sum(losses.values()).backward()
    assert [loss.item() for loss in losses.values()] == [0.0, 0.0]
    assert all(parameter.grad is not None and not parameter.grad.any() for parameter in head.parameters())


def test_the_auxiliary_head_can_be_left_out_and_needs_its_map() -> None:
    head = build(auxiliary_level=None)
    assert head.loss(features(2), SIZES, targets()).keys() == {"loss_seg"}
    with pytest.raises(ConfigError, match="there are maps 0 to 3, got 4"):
        build(auxiliary_level=4)


def test_a_single_image_is_refused_where_batch_norm_would_see_one_value() -> None:
    with pytest.raises(ConfigError, match=r"raise data\.batch_size"):
        build().loss(features(1), SIZES[:1], targets()[:1])
    assert build(pool_scales=(2, 3)).loss(features(1), SIZES[:1], targets()[:1])


def test_convolutions_are_normed_and_initialised_like_those_of_mmcv() -> None:
    head = build(channels=256)
    assert sum(isinstance(module, ConvNorm) for module in head.modules()) == 4 + 1 + 3 + 3 + 1 + 1
    conv, norm, _ = head.fuse
    assert conv.bias is None
    assert conv.weight.detach().std().item() == pytest.approx((2 / (9 * 256)) ** 0.5, rel=0.01)  # fan out
    assert (norm.eps, norm.momentum) == (1e-5, 0.1)
    assert head.classifier[1].weight.detach().std().item() == pytest.approx(0.01, rel=0.1)


# --- views -----------------------------------------------------------------------------------------------------------


def detect(images: Tensor, sizes: list[tuple[int, int]]) -> Tensor:
    """A network of five classes that tells left from right, with logits at a quarter of the resolution."""
    weight = torch.randn(5, 3, 4, 4, generator=torch.Generator().manual_seed(3))
    assert sizes == [tuple(images.shape[2:])] * len(images)
    return F.conv2d(images, weight, stride=4)


def upsampled(images: Tensor) -> Tensor:
    logits = detect(images, [tuple(images.shape[2:])] * len(images))
    return F.interpolate(logits, size=images.shape[2:], mode="bilinear", align_corners=False)


def test_one_window_over_the_image_is_the_whole_image() -> None:
    images = torch.randn(2, 3, 64, 96)
    whole = build(window=None).view(detect, images, SIZES)
    assert torch.equal(whole, upsampled(images))
    assert torch.equal(build(window=96, stride=64).view(detect, images, SIZES), whole)
    assert not torch.equal(build(window=64, stride=32).view(detect, images, SIZES), whole)


def test_a_flipped_view_is_averaged_as_probabilities_inside_the_valid_part() -> None:
    images = torch.randn(2, 3, 64, 96)
    found = build(window=None, test_flip=True).view(detect, images, SIZES).softmax(1)
    for index, (height, width) in enumerate(SIZES):
        mirrored = images[index : index + 1].clone()
        mirrored[..., :height, :width] = mirrored[..., :height, :width].flip(-1)
        back = upsampled(mirrored)
        back[..., :height, :width] = back[..., :height, :width].flip(-1)
        expected = (upsampled(images[index : index + 1]).softmax(1) + back.softmax(1)) / 2
        torch.testing.assert_close(found[index : index + 1], expected)


def test_scaled_views_are_averaged_at_the_size_of_the_batch() -> None:
    images = torch.randn(1, 3, 64, 96)
    found = build(window=None, test_scales=(1.0, 1.5)).view(detect, images, [(64, 96)])
    larger = upsampled(F.interpolate(images, size=(96, 128), mode="bilinear", align_corners=False))  # 144 to whole 32s
    again = F.interpolate(larger, size=(64, 96), mode="bilinear", align_corners=False)
    torch.testing.assert_close(found.softmax(1), (upsampled(images).softmax(1) + again.softmax(1)) / 2)


def test_results_have_the_original_sizes_and_types() -> None:
    logits = torch.randn(2, 5, 64, 96)
    results = build().restore(logits, SIZES, [(128, 192), (33, 21)])
    assert [tuple(result["labels"].shape) for result in results] == [(128, 192), (33, 21)]
    assert {result["labels"].dtype for result in results} == {torch.uint8}
    assert {result["scores"].dtype for result in results} == {torch.float32}
    many = UperNet(specs=SPECS, num_classes=300, channels=8)
    assert many.restore(torch.randn(1, 300, 8, 8), [(8, 8)], [(8, 8)])[0]["labels"].dtype == torch.int64


def test_synchronised_batch_norm_has_the_same_keys() -> None:
    """So that a checkpoint of several GPUs loads in one process and back."""
    head = build()
    synchronised = nn.SyncBatchNorm.convert_sync_batchnorm(build())
    assert not any(isinstance(module, nn.BatchNorm2d) for module in synchronised.modules())
    synchronised.load_state_dict(head.state_dict())
    head.load_state_dict(synchronised.state_dict())
