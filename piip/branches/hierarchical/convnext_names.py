"""What other publishers of ConvNeXts call the parameters, and timm's names."""

from __future__ import annotations

from piip.weights.names import Names

# transformers' names, behind that of the network, and ours.
HUB = [
    ("embeddings.patch_embeddings.{rest}", "stem.0.{rest}"),
    ("embeddings.layernorm.{rest}", "stem.1.{rest}"),
    ("encoder.stages.{i}.downsampling_layer.{rest}", "stages.{i}.downsample.{rest}"),
    ("encoder.stages.{i}.layers.{j}.layer_scale_parameter", "stages.{i}.blocks.{j}.gamma"),
    ("encoder.stages.{i}.layers.{j}.dwconv.{rest}", "stages.{i}.blocks.{j}.conv_dw.{rest}"),
    ("encoder.stages.{i}.layers.{j}.layernorm.{rest}", "stages.{i}.blocks.{j}.norm.{rest}"),
    ("encoder.stages.{i}.layers.{j}.pwconv{k}.{rest}", "stages.{i}.blocks.{j}.mlp.fc{k}.{rest}"),
]

# The names of its authors.
_FACEBOOK = [
    ("downsample_layers.0.{rest}", "stem.{rest}"),
    ("downsample_layers.{i}.{rest}", "stages.{i}.downsample.{rest}"),
    ("stages.{i}.{j}.dwconv.{rest}", "stages.{i}.blocks.{j}.conv_dw.{rest}"),
    ("stages.{i}.{j}.pwconv{k}.{rest}", "stages.{i}.blocks.{j}.mlp.fc{k}.{rest}"),
    ("stages.{i}.{j}.{rest}", "stages.{i}.blocks.{j}.{rest}"),
]
_HEADS = [("layernorm.{rest}", "norm.{rest}")]
NAMES = Names(
    [
        *((f"{network}.{theirs}", ours) for network in ("convnext", "convnext_model") for theirs, ours in HUB + _HEADS),
        ("classifier.{rest}", "head.{rest}"),
        *_FACEBOOK,
    ]
)
