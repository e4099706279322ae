"""All levels of an image pyramid from one read of the images, and the op's registration with PyTorch.

`torch.onnx.export` traces the definition in `piip.ops.reference`: a Resize operator for every level.

Nothing here waits for the device, forward or backward, so a CUDA graph can capture it. The capture keeps all that is
not a tensor: sizes and factors, mean and std, and `valid_sizes`. So replay it for images of the same valid sizes only,
or capture what comes after the pyramid.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from numbers import Real
from typing import Any, NamedTuple

import torch
from torch import Tensor

from piip.ops import reference
from piip.ops._checks import (
    FLOATS,
    MAX_CHANNELS,
    MAX_LEVELS,
    MAX_SIDE,
    MODES,
    check_pyramid,
    check_pyramid_gradients,
    host_list,
    host_shapes,
)
from piip.ops._extension import DTYPE_TAGS, extension, has_kernels, launch, pointer, runs_definition
from piip.ops._registration import definition_gradients, refuse_forward_mode, register_gradient, register_op


def pyramid_resize(
    images: Tensor,
    sizes: Sequence[tuple[int, int]] | None = None,
    scale_factors: Sequence[float | tuple[float, float]] | None = None,
    *,
    mode: str = "bilinear",
    antialias: bool = False,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    dtype: torch.dtype | None = None,
    valid_sizes: Sequence[tuple[int, int]] | None = None,
) -> list[Tensor]:
    """Resizes a batch to every level of a pyramid, normalising on the way; equals `F.interpolate` level by level.

    images: float (B, C, H, W), or uint8 (B, 3, H, W) or (B, H, W, 3).
    sizes: (H_i, W_i) per level, sampled at steps of in / out. Or
    scale_factors: one number or (y, x) per level; size floor(in * factor), sampled at steps of 1 / factor.
    mode: "bilinear" or "bicubic". antialias: as in `F.interpolate`, always with align_corners=False.
    mean, std: per channel, in the units of images; (x - mean) / std comes before everything else.
    dtype: of the levels; that of the images by default, float32 for uint8. All arithmetic is in float32 (in float64
    for float64 images).
    valid_sizes: (h, w) per image; beyond it the normalised image is zero, as if it had been padded after normalisation.
    Returns one (B, C, H_i, W_i) tensor per level. A level of the input's own size is not resampled, and is the input
    tensor itself where nothing needs converting. Differentiable once, by backward, for float images.
    A pixel that is not finite makes those that the filter takes from it NaN or infinite, and others up to two beyond.
    Raises ValueError or TypeError naming the argument.
    """
    channels_last, (batch, channels, height, width) = _check_images(images)
    dtype = dtype or (torch.float32 if images.dtype == torch.uint8 else images.dtype)
    if dtype not in FLOATS:
        raise TypeError(f"dtype must be float32, float16, bfloat16 or float64, got {dtype}")
    if not isinstance(mode, str) or mode not in MODES:
        raise ValueError(f"mode must be one of {', '.join(MODES)}, got {mode!r}")
    if not isinstance(antialias, bool):
        raise TypeError(f"antialias must be True or False, got {antialias!r}")
    shapes, factors = _levels(height, width, sizes, scale_factors)
    mean, std = _statistics("mean", mean, channels), _statistics("std", std, channels)
    if valid_sizes is not None:
        given = host_list("valid_sizes", valid_sizes, "a sequence of (h, w), one per image")
        valid_sizes = host_shapes("valid_sizes", given) if given else []
        if len(valid_sizes) == batch and all(size == (height, width) for size in valid_sizes):
            valid_sizes = None

    # The input serves as its own level; an op may not return its input, so the others only are asked of it.
    converted = images.dtype != dtype or mean is not None or valid_sizes is not None
    rest = [
        i
        for i, (shape, factor) in enumerate(zip(shapes, factors))
        if converted or shape != (height, width) or factor not in (None, (1.0, 1.0))
    ]
    levels: list[Tensor] = [images] * len(shapes)
    if not rest:
        return levels
    resize = _definition if runs_definition(images) else _PYRAMID_RESIZE
    resized = resize(
        images,
        channels_last,
        [side for i in rest for side in shapes[i]],
        [side for i in rest for side in factors[i] or (0.0, 0.0)],
        mode,
        antialias,
        mean,
        std,
        dtype,
        None if valid_sizes is None else [side for size in valid_sizes for side in size],
    )
    for i, level in zip(rest, resized):
        levels[i] = level
    return levels


def _check_images(images: Tensor) -> tuple[bool, tuple[int, int, int, int]]:
    """Whether the channels come last, which uint8 images may have, and (B, C, H, W)."""
    if not isinstance(images, Tensor):
        raise TypeError(f"images must be a tensor, got {type(images).__name__}")
    if images.layout != torch.strided:
        raise TypeError(f"images must be a dense tensor, got layout {images.layout}; call to_dense() first")
    dtype, shape = images.dtype, images.shape
    if dtype != torch.uint8 and dtype not in FLOATS:
        raise TypeError(f"images must be uint8 or a float dtype, got {dtype}")
    if len(shape) != 4:
        raise ValueError(f"images must have four dimensions (B, C, H, W), got shape {tuple(shape)}")
    batch, channels, height, width = shape
    channels_last = dtype == torch.uint8 and channels != 3 and width == 3
    if channels_last:
        channels, height, width = width, channels, height
    if height < 1 or width < 1 or not 1 <= channels <= MAX_CHANNELS:
        raise ValueError(f"images must have pixels and 1 to {MAX_CHANNELS} channels, got shape {tuple(shape)}")
    return channels_last, (batch, channels, height, width)


def _levels(
    height: int,
    width: int,
    sizes: Sequence[tuple[int, int]] | None,
    scale_factors: Sequence[float | tuple[float, float]] | None,
) -> tuple[list[tuple[int, int]], list[tuple[float, float] | None]]:
    """Sizes of the levels, and their factors where they were given by factor."""
    if (sizes is None) == (scale_factors is None):
        raise ValueError("give exactly one of sizes and scale_factors")
    factors: list[tuple[float, float] | None]
    if sizes is not None:
        shapes = host_shapes("sizes", sizes)
        factors = [None] * len(shapes)
    else:
        assert scale_factors is not None
        factors, shapes = [], []
        for factor in host_list("scale_factors", scale_factors, "a sequence of factors"):
            fy, fx = _factor_pair(factor)
            if not (0 < fy < math.inf and 0 < fx < math.inf):
                raise ValueError(f"scale_factors must be positive finite numbers, got {scale_factors}")
            h, w = math.floor(height * fy), math.floor(width * fx)
            if h < 1 or w < 1:
                raise ValueError(f"scale_factors {scale_factors} leave no pixels of a {height} x {width} image")
            if h > MAX_SIDE or w > MAX_SIDE:
                raise ValueError(f"scale_factors {scale_factors} give levels of more than 2**31 rows or columns")
            factors.append((fy, fx))
            shapes.append((h, w))
        if not factors:
            raise ValueError(f"scale_factors must be positive finite numbers, got {scale_factors}")
    if len(shapes) > MAX_LEVELS:
        name = "sizes" if sizes is not None else "scale_factors"
        raise ValueError(f"{name} must hold at most {MAX_LEVELS} levels, got {len(shapes)}")
    return shapes, factors


def _factor_pair(factor: float | tuple[float, float]) -> tuple[float, float]:
    if isinstance(factor, float):  # nearly always, and the tests for anything else take longer
        return factor, factor
    try:
        y, x = factor if isinstance(factor, Sequence) else (factor, factor)
        if not all(isinstance(side, (Real, torch.SymFloat)) for side in (y, x)):
            raise TypeError
        return 1.0 * y, 1.0 * x
    except (TypeError, ValueError):
        raise TypeError(f"scale_factors must hold numbers or pairs of numbers, got {factor!r}") from None


def _statistics(name: str, values: Sequence[float] | Tensor | None, channels: int) -> list[float] | None:
    if values is None:
        return None
    meaning = f"{channels} finite numbers, one per channel"
    given = host_list(name, values, f"a sequence of {meaning}")
    try:
        numbers = list(map(float, given))
    except (TypeError, ValueError):
        raise TypeError(f"{name} must hold {meaning}, got {values!r}") from None
    if len(numbers) != channels or not all(map(math.isfinite, numbers)):
        raise ValueError(f"{name} must hold {meaning}, got {values!r}")
    return numbers


# --- kernels --------------------------------------------------------------------------------------------------------


class _Settings(NamedTuple):
    """What both ops are told beside their tensors, in the order of their schemas."""

    sizes: list[int]
    factors: list[float]
    mode: str
    antialias: bool
    mean: list[float] | None
    std: list[float] | None
    dtype: torch.dtype
    valid: list[int] | None

    def new_levels(self, like: Tensor, batch: int, channels: int) -> list[Tensor]:
        """Tensors (B, C, H_i, W_i) to write the levels into."""
        return [like.new_empty(batch, channels, h, w, dtype=self.dtype) for h, w in _pairs(self.sizes)]


def _pairs(numbers: Sequence[Any]) -> list[tuple[Any, Any]]:
    return list(zip(numbers[::2], numbers[1::2]))


def _definition(images: Tensor, channels_last: bool, *settings: Any) -> list[Tensor]:
    check_pyramid(images, channels_last, *settings)
    sizes, factors, mode, antialias, mean, std, dtype, valid = settings
    return reference.pyramid_resize(
        images.permute(0, 3, 1, 2) if channels_last else images,
        _pairs(sizes),
        [(y, x) if y else None for y, x in _pairs(factors)],
        mode,
        antialias,
        mean,
        std,
        dtype,
        None if valid is None else _pairs(valid),
    )


def _problem(
    images: Tensor, shape: Sequence[int], channels_last: bool, levels: list[Tensor], settings: _Settings
) -> Any:
    """A call of a kernel, which reads images and writes levels or, in the backward, the gradients the other way."""
    batch, channels, height, width = shape
    return extension().PyramidResize(
        images=pointer(images),
        batch=batch,
        channels=channels,
        height=height,
        width=width,
        channels_last=channels_last,
        image_dtype=DTYPE_TAGS[images.dtype],
        levels=[pointer(level) for level in levels],
        sizes=settings.sizes,
        factors=settings.factors,
        level_dtype=DTYPE_TAGS[levels[0].dtype],
        filter=MODES[settings.mode],
        antialias=settings.antialias,
        mean=settings.mean or [],
        scale=[1.0 / x for x in settings.std or []],
        valid_sizes=settings.valid or [],
    )


def _forward(images: Tensor, channels_last: bool, *given: Any) -> list[Tensor]:
    refuse_forward_mode("pyramid_resize", images)
    settings = _Settings(*given)
    shape = check_pyramid(images, channels_last, *settings)
    if not has_kernels(images):
        # An op may not return its input.
        return [level.clone() for level in _definition(images, channels_last, *settings)]
    images = images.contiguous()
    levels = settings.new_levels(images, *shape[:2])
    if shape[0]:
        launch("pyramid_resize_forward", images, _problem(images, shape, channels_last, levels, settings))
    return levels


def _backward(grads: list[Tensor], shape: list[int], *given: Any) -> Tensor:
    refuse_forward_mode("pyramid_resize", *grads)
    settings = _Settings(*given)
    check_pyramid_gradients(grads, shape, *settings)
    if not has_kernels(grads[0]):
        zeros = grads[0].new_zeros(shape, dtype=settings.dtype)  # the op is linear but for a constant
        forward = settings._replace(dtype=grads[0].dtype)
        return definition_gradients(lambda x: _definition(x, False, *forward), [zeros], grads)[0]
    grads = [grad.contiguous() for grad in grads]
    out = grads[0].new_empty(shape, dtype=settings.dtype)
    if shape[0]:
        if settings.std:
            settings = settings._replace(mean=[0.0] * len(settings.std))
        launch("pyramid_resize_backward", out, _problem(out, shape, False, grads, settings))
    return out


# --- without data ---------------------------------------------------------------------------------------------------


def _fake(images: Tensor, channels_last: bool, *settings: Any) -> list[Tensor]:
    shape = check_pyramid(images, channels_last, *settings)
    return _Settings(*settings).new_levels(images, *shape[:2])


def _backward_fake(grads: list[Tensor], shape: list[int], *settings: Any) -> Tensor:
    check_pyramid_gradients(grads, shape, *settings)
    return grads[0].new_empty(shape, dtype=settings[-2])


def _flops(images: Sequence[int], channels_last: bool, *settings: Any, **_: Any) -> int:
    """A multiply-add for every pixel that an output pixel takes from, as torch's own resampling is counted.

    The published figures leave the resizing of images out.
    """
    height, width = images[1:3] if channels_last else images[2:4]
    return _flops_of_planes(images[0] * (3 if channels_last else images[1]), height, width, *settings)


def _backward_flops(grads: Any, shape: Sequence[int], *settings: Any, **_: Any) -> int:
    batch, channels, height, width = shape
    return _flops_of_planes(batch * channels, height, width, *settings)


def _flops_of_planes(planes: int, height: int, width: int, *given: Any) -> int:
    settings = _Settings(*given)
    bilinear, antialias = settings.mode == "bilinear", settings.antialias

    def taps(before: int, after: int, factor: float) -> int:
        """Pixels of an axis that an output pixel takes from: one where they are copied; of filters the longest."""
        if before == after and (factor in (0.0, 1.0) or bilinear or antialias):
            return 1
        count = 2 if bilinear else 4
        return math.ceil(count * max(1.0, 1 / factor if factor else before / after)) if antialias else count

    flops = 0
    for (h, w), (fy, fx) in zip(_pairs(settings.sizes), _pairs(settings.factors)):
        flops += 2 * planes * h * w * taps(height, h, fy) * taps(width, w, fx)
    return flops


# --- registration ---------------------------------------------------------------------------------------------------

_LEVELS = "SymInt[] sizes, float[] factors, str mode, bool antialias"
_SETTINGS = f"{_LEVELS}, float[]? mean, float[]? std, ScalarType dtype, SymInt[]? valid"
register_op(f"pyramid_resize(Tensor images, bool channels_last, {_SETTINGS}) -> Tensor[]", _forward, _fake, _flops)
_PYRAMID_RESIZE_BACKWARD = register_op(
    f"pyramid_resize_backward(Tensor[] grads, SymInt[] shape, {_SETTINGS}) -> Tensor",
    _backward,
    _backward_fake,
    _backward_flops,
)


def _save(ctx: Any, inputs: tuple[Any, ...], output: list[Tensor]) -> None:
    images, _, *ctx.settings, _, ctx.valid = inputs
    ctx.shape, ctx.dtype = images.shape, images.dtype


def _differentiate(ctx: Any, grads: list[Tensor]) -> tuple[Tensor | None, ...]:
    # Images that get a gradient are float, and float images have their channels first.
    grad = _PYRAMID_RESIZE_BACKWARD(grads, ctx.shape, *ctx.settings, ctx.dtype, ctx.valid)
    return grad, *[None] * 9


_PYRAMID_RESIZE = register_gradient("pyramid_resize", _save, _differentiate)
