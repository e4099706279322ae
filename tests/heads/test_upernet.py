"""UperNet's losses; its arithmetic is held against recordings in tests/golden."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from piip.errors import ConfigError
from piip.features import FeatureSpec
from piip.heads.upernet.config import UperNetConfig
from piip.heads.upernet.head import ConvNorm, UperNet

STRIDES = (4, 8, 16, 32)
SPECS = [FeatureSpec(8, stride) for stride in STRIDES]


def build(**settings) -> UperNet:
    torch.manual_seed(0)
    return UperNet(UperNetConfig(**{"num_classes": 5, "channels": 8, "dropout": 0.0} | settings), SPECS)


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


def test_synchronised_batch_norm_has_the_same_keys() -> None:
    """So that a checkpoint of several GPUs loads in one process and back."""
    head = build()
    synchronised = nn.SyncBatchNorm.convert_sync_batchnorm(build())
    assert not any(isinstance(module, nn.BatchNorm2d) for module in synchronised.modules())
    synchronised.load_state_dict(head.state_dict())
    head.load_state_dict(synchronised.state_dict())
