"""What the tests of configs share."""

from __future__ import annotations

import pytest

from piip.errors import ConfigError

TSB = "detection/mask_rcnn_piip_tsb_1568_1120_672"
CONVNEXT = "detection/mask_rcnn_piip_ct_cs_cb_1024_672_448"
DINO = "detection/dino_piip_sbl_1792_1120_672_3x"
UPERNET = "segmentation/upernet_piip_tsb_512_448_336"
CLASSIFIER = "classification/piip_sbl_384_192_128"
SHAPES = "detection/mask_rcnn_piip_nano_shapes"

# A whole experiment in as few keys as one needs.
MINIMAL = """
model:
  backbone:
    branches: [{size: T}, {size: S}]
    resolutions: [64, 32]
data:
  train: {type: shapes, images: 4}
  val: {type: shapes, images: 2}
  train_transforms: {resize: [[64, 64]]}
  val_transforms: {resize: [[64, 64]]}
schedule: {iterations: 2}
"""


def message(call, *args) -> str:
    with pytest.raises(ConfigError) as caught:
        call(*args)
    assert caught.value.exit_code == 2
    return str(caught.value)
