"""Sizes: one setting scales all of them, and those that contradict each other are warned of."""

from __future__ import annotations

import logging

import pytest

from piip.config.load import config_from_dict, dump_config, load_config, shipped_configs
from tests.config.cases import CLASSIFIER, MINIMAL, SHAPES, TSB, UPERNET


def test_scale_changes_every_size_that_the_network_sees_by_one_factor(write) -> None:
    config, half = load_config(TSB), load_config(TSB, ["scale=0.5"])
    assert half.model.backbone.resolutions == (784, 560, 336)
    assert half.data.train_transforms.resize == half.data.val_transforms.resize == ((784, 470),)
    kept = {"model.backbone": {"resolutions"}, "data.train_transforms": {"resize"}, "data.val_transforms": {"resize"}}
    for place, changed in kept.items():
        first, second = place.split(".")
        before, after = (getattr(getattr(c, first), second).model_dump() for c in (config, half))
        assert {key for key in before if before[key] != after[key]} == changed
    zoomed = load_config("detection/mask_rcnn_piip_h6b_1024_512", ["scale=2"]).data.train_transforms
    assert (zoomed.crop, zoomed.zoom.crop, zoomed.zoom.resize[0]) == (2048, (768, 1200), (2666, 800))
    assert load_config(UPERNET, ["scale=1.5"]).data.val_transforms.resize == (None, 768)
    head = load_config(UPERNET, ["scale=1.5"]).model.head
    assert (head.window, head.stride) == (768, 512)
    assert load_config(CLASSIFIER, ["scale=0.5"]).data.train_transforms.size == 192


def test_a_scaled_config_is_written_as_what_it_is_and_not_scaled_again(write) -> None:
    scaled = load_config(write(f"base: {TSB}\nscale: 0.25"))
    assert load_config(write(dump_config(scaled), "dumped.yaml")) == scaled
    assert "scale" not in scaled.model_dump()
    assert config_from_dict(scaled.model_dump(mode="json")) == scaled


@pytest.mark.parametrize(
    ("overrides", "sizes"),
    [
        (["model.backbone.resolutions=[1024,768,512]"], (128, 1024)),
        (["data.train_transforms.resize=[[256,256]]"], (256, 128)),
        (["data.train_transforms.crop=96"], (96, 128)),
        (["model.backbone.resolutions=[4,3,2]"], (128, 4)),
        (["scale=2"], None),
        (["scale=2", "data.batch_size=2"], None),
        (["model.backbone.resolutions=[256,96,64]", "data.train_transforms.resize=[[256,256]]"], None),
        (["optim.lr=1"], None),
    ],
)
def test_resolutions_that_are_not_those_of_the_images_are_warned_of(
    caplog: pytest.LogCaptureFixture, overrides: list[str], sizes: tuple[int, int] | None
) -> None:
    with caplog.at_level(logging.WARNING):
        load_config(SHAPES, overrides)
    lines = [record.getMessage() for record in caplog.records]
    if sizes is None:
        assert lines == []
    else:
        (line,) = lines
        assert f"images are resized to {sizes[0]} pixels" in line
        assert f"configured for {sizes[1]} " in line


def test_a_file_of_the_users_is_warned_of_and_no_shipped_one(write, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        for name in shipped_configs():
            load_config(name)
            load_config(write(f"base: {name}\ntrain: {{seed: 3}}"))
        assert caplog.records == []
        load_config(write(MINIMAL.replace("resolutions: [64, 32]", "resolutions: [640, 320]")))
    assert len(caplog.records) == 1
