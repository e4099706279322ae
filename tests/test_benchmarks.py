"""The benchmarks run: what they import and call is not there for the package alone."""

from __future__ import annotations

import torch

from benchmarks import network


def test_a_network_is_measured_in_inference_and_in_training() -> None:
    (row,) = network.measure("detection/mask_rcnn_piip_nano_shapes", torch.device("cpu"), [1], 1)
    assert row["batch"] == 1
    assert all(row[name] > 0 for name in ("gmacs", "infer_ms", "features_ms", "step_ms"))
