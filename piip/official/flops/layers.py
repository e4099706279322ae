"""What layers cost, in trainable parameters and multiply-accumulates, by the rules of the official counting scripts.

The scripts count through mmcv's hooks: a convolution's bias counts one operation per output, a linear layer's none; a
norm counts two per element, a ReLU one; other activations, softmax, residual sums and resampling count nothing.
"""

from __future__ import annotations

from piip.flops.costs import Cost


def linear(cells: int, inputs: int, outputs: int, *, bias: bool = True) -> Cost:
    """A linear layer on `cells` vectors."""
    return Cost(inputs * outputs + (outputs if bias else 0), cells * inputs * outputs)


def norm(cells: int, width: int) -> Cost:
    """A layer or group norm of `cells` vectors, with gain and bias."""
    return Cost(2 * width, 2 * cells * width)


def relu(cells: int, width: int) -> Cost:
    return Cost(macs=cells * width)


def conv(cells: int, kernel: int, inputs: int, outputs: int, *, bias: bool = True) -> Cost:
    """A square convolution; cells: those of its output. A depthwise one has one input channel per output."""
    weights = kernel * kernel * inputs * outputs + (outputs if bias else 0)
    return Cost(weights, cells * weights)


def upsample(cells: int, width: int) -> Cost:
    """A 2 x 2 transposed convolution of stride 2 that keeps the width; cells: those of its input."""
    return Cost(4 * width**2 + width, cells * 4 * width**2 + 4 * cells * width)


def dense_attention(queries: int, keys: int, width: int) -> Cost:
    """Scores and weighted sums over all heads, without the projections around them."""
    return Cost(macs=2 * queries * keys * width)
