"""Precision and gradients as the engine sets them up."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from piip.backbone.interaction import ConvFFN
from piip.engine.device import autocast, tf32
from piip.engine.distributed import align_gradients
from piip.precision import compute_dtype

CPU = torch.device("cpu")


def test_the_dtype_of_a_precision_is_that_of_its_autocast() -> None:
    layer, x = nn.Linear(2, 2), torch.ones(1, 2)
    for precision, dtype in (("auto", torch.float32), ("fp32", torch.float32), ("bf16", torch.bfloat16)):
        assert compute_dtype(CPU, precision) == dtype
        with autocast(CPU, precision):
            assert layer(x).dtype == dtype


@pytest.mark.parametrize("wanted", [None, True, False])
def test_tf32_switches_products_and_convolutions_and_back_and_leaves_the_cpu_alone(wanted: bool | None) -> None:
    backends = (torch.backends.cuda.matmul, torch.backends.cudnn)
    before = [backend.allow_tf32 for backend in backends]
    x = torch.randn(64, 64)
    with tf32(wanted):
        assert [backend.allow_tf32 for backend in backends] == (before if wanted is None else [wanted] * 2)
        inside = x @ x
    assert [backend.allow_tf32 for backend in backends] == before
    assert inside.equal(x @ x)


def test_gradients_of_depthwise_weights_have_the_strides_of_their_parameters() -> None:
    """DistributedDataParallel warns of others, and copies them."""
    torch.manual_seed(0)
    ffn, x = ConvFFN(dim=8, hidden=16), torch.randn(2, 5, 5, 8)
    ffn(x).square().sum().backward()
    expected = ffn.dwconv.weight.grad
    ffn.zero_grad()
    align_gradients(ffn)
    ffn(x).square().sum().backward()
    assert ffn.dwconv.weight.grad.equal(expected)
    for name, parameter in ffn.named_parameters():
        assert parameter.grad.stride() == parameter.stride(), name
