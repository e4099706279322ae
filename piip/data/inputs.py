"""Images in the forms that users hold them in, brought to uint8 RGB as files are read."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from typing import Any, BinaryIO, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from piip.conventions import MAX_IMAGE_PIXELS
from piip.data.images import convert_pixels, decode_pixels, read_image
from piip.errors import DataError

ImageInput: TypeAlias = "str | os.PathLike[str] | bytes | BinaryIO | Image.Image | NDArray[np.uint8] | Tensor"

_BYTES = (bytes, bytearray, memoryview)
_TAKEN = (
    "images are paths, bytes of files, open binary files, Pillow images, uint8 arrays (H, W, 3) RGB or (H, W) grey, or "
    "uint8 tensors (3, H, W) RGB"
)


def is_image(given: Any) -> bool:
    """Whether this is meant as one image, and not as several."""
    kinds = (str, os.PathLike, *_BYTES, Image.Image, np.ndarray, Tensor)
    return isinstance(given, kinds) or hasattr(given, "read")


def to_pixels(image: Any, name: str = "<image>", max_pixels: int = MAX_IMAGE_PIXELS) -> Tensor:
    """One image in any of the forms of `ImageInput` as uint8 RGB (3, H, W), upright.

    name: what messages call it if it has no path. Open files are read from their start. Raises DataError for anything
    else, and as `read_image` does.
    """
    if isinstance(image, (str, os.PathLike)):
        return read_image(image, max_pixels)
    if isinstance(image, Tensor) and image.dtype == torch.uint8 and image.shape[:-2] == (3,) and image.numel():
        return image.cpu()
    if hasattr(image, "read"):
        image = _contents(image, name)
    if isinstance(image, Image.Image):
        image = convert_pixels(image, name, max_pixels)
    elif isinstance(image, _BYTES):
        image = decode_pixels(bytes(image), name, max_pixels)
    if isinstance(image, np.ndarray) and image.dtype == np.uint8 and image.size:
        pixels = torch.from_numpy(np.array(image))  # a copy, for arrays may be read-only or run backwards
        if image.ndim == 2:
            return pixels.expand(3, -1, -1)
        if image.shape[2:] == (3,):
            return pixels.permute(2, 0, 1)
    raise DataError(f"{name} is {_describe(image)}; {_TAKEN}")


def all_to_pixels(images: Any) -> list[Tensor]:
    """Several images, each as `to_pixels` has it. Raises DataError if this is not several images."""
    if not isinstance(images, Iterable) or isinstance(images, Mapping):
        raise DataError(f"an image, or a list of them, is needed, not {_describe(images)}; {_TAKEN}")
    return [to_pixels(image, f"<images[{index}]>") for index, image in enumerate(images)]


def _contents(file: Any, name: str) -> Any:
    try:
        if file.seekable():
            file.seek(0)
        return file.read()
    except (OSError, ValueError, AttributeError) as error:
        raise DataError(f"cannot read image {name}: {error}") from None


def _describe(value: Any) -> str:
    if isinstance(value, (np.ndarray, Tensor)):
        kind = "tensor" if isinstance(value, Tensor) else "array"
        return f"a {str(value.dtype).removeprefix('torch.')} {kind} of shape {tuple(value.shape)}"
    return f"of type {type(value).__name__}"
