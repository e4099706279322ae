"""The settings of an official config, of whatever task, by our keys."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from piip.errors import ConfigError
from piip.official.configs.backbone import backbone_settings
from piip.official.configs.classification import classification_settings
from piip.official.configs.detection import detection_transforms, detector_settings, neck_settings
from piip.official.configs.pipeline import steps
from piip.official.configs.schedule import optimizer_settings, schedule_settings
from piip.official.configs.segmentation import segmentation_transforms, upernet_settings, with_crop_grids


def our_settings(official: Mapping[str, Any], path: Path, unmapped: list[str]) -> dict[str, Any]:
    """The settings of an official config by our keys; what has no counterpart is added to unmapped.

    path: the file they were read from. Raises ConfigError where they are those of no PIIP network.
    """
    model = official.get("model")
    # Those of the classification code name no class to build.
    classifies = isinstance(model, Mapping) and "type" not in model and "backbone" in model
    try:
        settings = (classification_settings if classifies else _dense_settings)(official, unmapped)
    except (KeyError, TypeError, AttributeError, IndexError, StopIteration, ValueError) as error:
        what = "classifier" if classifies else "detector or UperNet"
        raise ConfigError(f"{path} is not the config of an official PIIP {what}: {error!r}") from None
    batch = re.search(r"_bs(\d+)", path.stem)
    if batch and not classifies:  # the files give images per GPU; images per step stand in their names only
        settings["data"]["batch_size"] = int(batch[1])
    return settings


def _dense_settings(official: Mapping[str, Any], unmapped: list[str]) -> dict[str, Any]:
    model, data = official["model"], official["data"]
    segments = model["type"] == "EncoderDecoder"
    backbone = with_crop_grids(model["backbone"]) if segments else model["backbone"]
    transforms = segmentation_transforms if segments else detection_transforms
    train, val = (transforms(data[part]["pipeline"], unmapped) for part in ("train", "val"))
    normalize = next(step for step in steps(data["val"]["pipeline"]) if step["type"] == "Normalize")
    finest = train.get("crop") or max(size[0] for size in train["resize"])
    return {
        "model": {
            "backbone": backbone_settings(backbone, unmapped, finest),
            "neck": {"type": "none"} if segments else neck_settings(model["neck"], unmapped),
            "head": upernet_settings(model, unmapped) if segments else detector_settings(model),
            "mean": list(normalize["mean"]),
            "std": list(normalize["std"]),
        },
        "data": {"train_transforms": train, "val_transforms": val},
        "optim": optimizer_settings(official, unmapped),
        "schedule": schedule_settings(official, unmapped),
    }
