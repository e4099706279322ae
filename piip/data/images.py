"""Reading any image file as 8-bit RGB, upright, whole or not at all."""

from __future__ import annotations

import os
import stat
import struct
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError, features

from piip.conventions import MAX_IMAGE_PIXELS
from piip.errors import DataError

if TYPE_CHECKING:
    from torch import Tensor

# The formats that are read, and the endings, in lower case, of their files. Raster formats only: for some others Pillow
# would start external programs.
_ENDINGS = {
    "JPEG": (".jpg", ".jpeg", ".jpe", ".jfif"),
    "PNG": (".png", ".apng"),
    "BMP": (".bmp",),
    "GIF": (".gif",),
    "PPM": (".ppm", ".pgm", ".pbm", ".pnm"),
    "TIFF": (".tif", ".tiff"),
    "WEBP": (".webp",),
    "AVIF": (".avif",),
}
# Builds of Pillow may lack these, and versions before 11.3 do not know the last.
_OPTIONAL = {"WEBP": "webp", "AVIF": "avif"}
_FORMATS = tuple(
    name
    for name in _ENDINGS
    if name not in _OPTIONAL or (_OPTIONAL[name] in features.modules and features.check_module(_OPTIONAL[name]))
)

# The endings of images, as they are looked for in folders.
IMAGE_SUFFIXES = frozenset(ending for name in _FORMATS for ending in _ENDINGS[name])
# The endings of images that are not read; such files are passed over with a warning.
_OTHERS = (
    ".heic", ".heif", ".hif", ".jp2", ".j2k", ".jxl", ".jxr", ".tga", ".psd", ".svg", ".ico", ".eps", ".exr", ".hdr",
    ".pfm", ".dcm", ".pcx", ".dds", ".qoi", ".dng", ".cr2", ".cr3", ".nef", ".arw", ".orf", ".raf",
)  # fmt: skip
UNREAD_SUFFIXES = frozenset(_OTHERS).union(*_ENDINGS.values()) - IMAGE_SUFFIXES

# Pillow's plugins raise all of these on damaged files.
_DECODE_ERRORS = (
    OSError, SyntaxError, ValueError, TypeError, KeyError, IndexError, EOFError, OverflowError, MemoryError,
    AttributeError, NotImplementedError, struct.error, zlib.error,
)  # fmt: skip

# Signature, length and name of the first chunk, width, height, bits per sample, colour type.
_PNG_HEADER = struct.Struct(">8s8sIIBB")
_PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_GREY, _PALETTE = 0, 3

_ORIENTATION_TAG = 0x0112

# What the last bytes of a whole file hold, by format, and how many bytes are looked at.
_LAST = {"JPEG": b"\xff\xd9", "PNG": b"IEND"}
_END = 256
_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


def read_image(path: str | os.PathLike[str], max_pixels: int = MAX_IMAGE_PIXELS) -> Tensor:
    """The image at `path` as uint8 RGB (3, H, W), turned upright by its EXIF orientation.

    16-bit images keep the upper byte of every sample (as OpenCV reads them), grey is repeated, alpha is dropped, and of
    an animation the first frame is read.
    max_pixels: an image whose header announces more is refused before anything is decoded.
    Raises DataError naming the file when it is missing, too large, damaged, cut short, or of an unsupported kind.
    """
    # Torch takes seconds to import, and files are also looked at without it.
    import torch

    return torch.from_numpy(read_pixels(path, max_pixels)).permute(2, 0, 1)


def read_pixels(path: str | os.PathLike[str], max_pixels: int = MAX_IMAGE_PIXELS) -> NDArray[np.uint8]:
    """The image (H, W, 3) as `read_image` has it."""
    with _decoded(path, max_pixels, _FORMATS) as image:
        return _upright(image, os.fspath(path))


def decode_pixels(data: bytes, name: str, max_pixels: int = MAX_IMAGE_PIXELS) -> NDArray[np.uint8]:
    """The image that the bytes of a file hold, as `read_pixels` has it. name: what messages call it."""
    with _errors_about(name, _FORMATS), Image.open(BytesIO(data), formats=_FORMATS) as image:
        return convert_pixels(image, name, max_pixels)


def convert_pixels(image: Image.Image, name: str, max_pixels: int = MAX_IMAGE_PIXELS) -> NDArray[np.uint8]:
    """A Pillow image of any mode, as `read_pixels` has that of a file. name: what messages call it."""
    with _errors_about(name, _FORMATS):
        _check_size(image, name, max_pixels)
        image.load()
        return _upright(image, name)


def read_size(path: str | os.PathLike[str], max_pixels: int = MAX_IMAGE_PIXELS) -> tuple[int, int]:
    """Height and width of an image, upright, from its header; the pixels are read only where the header does not tell.

    Raises DataError as `read_image` does, but of damage it sees no more than that the end of a JPEG or PNG is missing.
    """
    with _decoded(path, max_pixels, _FORMATS, load=False) as image:
        with open(path, "rb") as file:
            file.seek(max(0, os.path.getsize(path) - _END))
            end = file.read()
        # The end may lie before other things, or be missing; of a TIFF Pillow turns the size before the pixels, or not.
        if image.format == "TIFF" or _LAST.get(image.format or "", b"") not in end:
            image.load()
        width, height = image.size
        # Pillow would decode a PNG to look for EXIF behind its pixels, where hardly any program puts it.
        turned = (image.format != "PNG" or "exif" in image.info) and _orientation(image) >= 5
        return (width, height) if turned else (height, width)


def read_sized_image(path: Path, *, size: tuple[int, int], source: Path, max_pixels: int = MAX_IMAGE_PIXELS) -> Tensor:
    """The image at `path`, as `read_image` has it, which must have the `size` (h, w) that `source` says.

    source: the annotation file or label map. Raises DataError as `read_image` does, and for an image of another size.
    """
    image = read_image(path, max_pixels)
    height, width = image.shape[1:]
    if (height, width) != size:
        raise DataError(size_fault(path, (height, width), size, source))
    return image


def size_fault(path: Path, found: tuple[int, int], wanted: tuple[int, int], source: Path) -> str:
    """What is said of an image whose (h, w) is not what a source says."""
    hint = "; was that made without the image's EXIF rotation?" if found == wanted[::-1] else ""
    annotated = f"by {source} it should have {wanted[1]} x {wanted[0]}"
    return f"image {path} has {found[1]} x {found[0]} pixels, but {annotated}{hint}"


def read_indices(path: str | os.PathLike[str], max_pixels: int = MAX_IMAGE_PIXELS) -> NDArray[np.int32]:
    """The numbers (H, W) that a grey or palette PNG of 1 to 16 bits stores, neither looked up nor scaled.

    Raises DataError as `read_image` does, and for a PNG that stores colours.
    """
    _, _, bits = read_index_header(path)
    with _decoded(path, max_pixels, ("PNG",)) as image:
        # Pillow spreads greys of two and four bits over 0 to 255.
        step = {2: 85, 4: 17}.get(bits, 1) if image.mode == "L" else 1
        return np.asarray(image).astype(np.int32) // step


def read_index_header(path: str | os.PathLike[str]) -> tuple[int, int, int]:
    """Height, width and bits per pixel of a PNG that `read_indices` can read, from the first bytes of the file.

    Raises DataError naming the file when it is missing, no PNG, or one that stores colours.
    """
    name = os.fspath(path)
    try:
        with open(path, "rb") as file:
            start = file.read(_PNG_HEADER.size)
    except OSError as error:
        raise DataError(f"cannot read {name}: {error.strerror}") from None
    if len(start) < _PNG_HEADER.size or not start.startswith(_PNG_SIGNATURE):
        raise DataError(f"{name} is not a PNG file, or it is cut short")
    _, _, width, height, bits, colour_type = _PNG_HEADER.unpack(start)
    if colour_type not in (_GREY, _PALETTE):
        raise DataError(f"{name} stores colours, not one number per pixel; save it as a grey or palette PNG")
    return height, width, bits


@contextmanager
def _decoded(
    path: str | os.PathLike[str], max_pixels: int, formats: tuple[str, ...], *, load: bool = True
) -> Iterator[Image.Image]:
    """Opens and decodes a file; what goes wrong then, and in the block, is a DataError that names it."""
    name = os.fspath(path)
    with _errors_about(name, formats):
        if not stat.S_ISREG(os.stat(name).st_mode):
            raise DataError(f"cannot decode image {name}: it is no regular file")
        with Image.open(name, formats=formats) as image:
            _check_size(image, name, max_pixels)
            if load:
                image.load()
            yield image


def _check_size(image: Image.Image, name: str, max_pixels: int) -> None:
    """Raises DataError for an image whose header announces too many pixels."""
    width, height = image.size
    if width * height > max_pixels:
        raise DataError(
            f"image {name} has {width} x {height} pixels, more than the limit of {max_pixels:,}; "
            "shrink it or raise max_image_pixels"
        )


@contextmanager
def _errors_about(name: str, formats: tuple[str, ...]) -> Iterator[None]:
    """Whatever goes wrong with an image in the block is a DataError that names it."""
    try:
        yield
    except Image.DecompressionBombError:
        raise DataError(f"image {name} has more pixels than Pillow decodes safely; shrink it") from None
    except FileNotFoundError:
        raise DataError(f"image not found: {name}") from None
    except UnidentifiedImageError:
        raise DataError(f"{name} is not an image of a supported format ({', '.join(formats)})") from None
    except _DECODE_ERRORS as error:
        raise DataError(f"cannot decode image {name}: {error or type(error).__name__}") from None


def _upright(image: Image.Image, name: str) -> NDArray[np.uint8]:
    """A decoded image as RGB (H, W, 3), turned by its EXIF orientation."""
    orientation = _orientation(image)
    rgb = _to_rgb(image, name)
    if orientation in _UPRIGHT:
        rgb = rgb.transpose(_UPRIGHT[orientation])
    return np.array(rgb)


def _orientation(image: Image.Image) -> int:
    """The EXIF orientation, 1 to 8; an unreadable EXIF block is no reason to refuse the pixels."""
    try:
        return int(image.getexif().get(_ORIENTATION_TAG, 1))
    except _DECODE_ERRORS:
        return 1


def _to_rgb(image: Image.Image, name: str) -> Image.Image:
    if image.mode == "F":
        raise DataError(f"image {name} holds 32-bit float pixels; convert it to 8 or 16 bits per sample")
    if image.mode.startswith("I"):
        # Pillow's own conversion clips at 255, which turns 16-bit images almost white.
        pixels = np.asarray(image)
        if pixels.size and (pixels.min() < 0 or pixels.max() > 0xFFFF):
            raise DataError(f"image {name} holds 32-bit integer pixels; convert it to 8 or 16 bits per sample")
        return Image.fromarray((pixels >> 8).astype(np.uint8)).convert("RGB")
    if image.mode == "P":
        # A palette may carry its transparency per entry; RGBA resolves it, and the next conversion drops it.
        image = image.convert("RGBA")
    return image.convert("RGB")
