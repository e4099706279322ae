"""Experiments as data: typed, strict models, and the YAML files they are read from.

A config is YAML read with a safe loader. `base:` names what to inherit from: a file, relative to the one that says so,
or a shipped config or building block (`base/coco_1x`); mappings merge key by key, everything else replaces.
`key.sub=value` overrides come last, with the value read as YAML and list items addressed by number
(`model.backbone.branches.0.drop_path=0.1`). An unknown key or a wrong value is a `ConfigError` that names the file, the
key and the nearest valid one.
"""

from __future__ import annotations

from piip.config.base import Strict
from piip.config.data import CocoData, DataConfig, DatasetConfig, ImageFolderData, LabelMapData, ShapesData
from piip.config.load import config_dir, config_from_dict, dump_config, find_config, load_config, shipped_configs
from piip.config.network import (
    VIT_SIZES,
    BackboneConfig,
    BranchConfig,
    ChannelMapperConfig,
    ClassifierConfig,
    ConvNeXtConfig,
    DINOConfig,
    FPNConfig,
    HeadConfig,
    InteractionConfig,
    MaskRCNNConfig,
    ModelConfig,
    NeckConfig,
    NoNeckConfig,
    UperNetConfig,
    ViTConfig,
)
from piip.config.training import Config, OptimConfig, Published, ScheduleConfig, TrainConfig
from piip.config.transforms import (
    ClassificationTransforms,
    DetectionTransforms,
    SegmentationTransforms,
    TransformConfig,
    ZoomConfig,
)

__all__ = [
    "VIT_SIZES",
    "BackboneConfig",
    "BranchConfig",
    "ChannelMapperConfig",
    "ClassificationTransforms",
    "ClassifierConfig",
    "CocoData",
    "Config",
    "ConvNeXtConfig",
    "DINOConfig",
    "DataConfig",
    "DatasetConfig",
    "DetectionTransforms",
    "FPNConfig",
    "HeadConfig",
    "ImageFolderData",
    "InteractionConfig",
    "LabelMapData",
    "MaskRCNNConfig",
    "ModelConfig",
    "NeckConfig",
    "NoNeckConfig",
    "OptimConfig",
    "Published",
    "ScheduleConfig",
    "SegmentationTransforms",
    "ShapesData",
    "Strict",
    "TrainConfig",
    "TransformConfig",
    "UperNetConfig",
    "ViTConfig",
    "ZoomConfig",
    "config_dir",
    "config_from_dict",
    "dump_config",
    "find_config",
    "load_config",
    "shipped_configs",
]
