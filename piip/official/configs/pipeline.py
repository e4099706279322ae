"""The steps of data pipelines in the official configs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

# What every pipeline has, and what no setting of ours is about.
IGNORED = {"LoadImageFromFile", "LoadAnnotations", "Normalize", "DefaultFormatBundle", "ImageToTensor", "Collect"}


def steps(pipeline: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """The transforms in order; those of test-time augmentation unfolded, each with the settings around it."""
    return [
        {**step, **inner}
        for step in pipeline
        for inner in (step["transforms"] if step["type"] == "MultiScaleFlipAug" else [{}])
    ]
