"""Every kind of image file becomes the same 8-bit RGB, or an error that names it."""

from __future__ import annotations

import io
import os
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from piip.data.images import _FORMATS, IMAGE_SUFFIXES, UNREAD_SUFFIXES, read_image
from piip.errors import DataError

RNG = np.random.default_rng(5)
RGB = RNG.integers(0, 256, (11, 7, 3), dtype=np.uint8)
GREY = RGB[:, :, 0]


def pixels(path: Path) -> np.ndarray:
    image = read_image(path)
    assert image.dtype.is_floating_point is False
    assert image.shape[0] == 3
    return image.permute(1, 2, 0).numpy()


def write_png(
    path: Path, samples: np.ndarray, colour_type: int, depth: int, size: tuple[int, int] | None = None
) -> None:
    """A PNG by its specification, for what Pillow cannot write: 16-bit colour, and headers that lie."""
    height, width = size or samples.shape[:2]
    rows = [b"\0" + row.astype(">u2" if depth == 16 else "u1").tobytes() for row in samples]

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, depth, colour_type, 0, 0, 0)
    body = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"".join(rows))) + chunk(b"IEND", b"")
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + body)


@pytest.mark.parametrize("suffix", ["png", "bmp", "tiff", "ppm", "webp"])
def test_lossless_rgb_files_are_read_as_they_are(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"image.{suffix}"
    Image.fromarray(RGB).save(path, **({"lossless": True} if suffix == "webp" else {}))
    assert np.array_equal(pixels(path), RGB)


def test_grey_is_repeated(tmp_path: Path) -> None:
    Image.fromarray(GREY).save(tmp_path / "a.png")
    assert np.array_equal(pixels(tmp_path / "a.png"), np.stack([GREY] * 3, axis=2))


def test_one_bit_becomes_black_and_white(tmp_path: Path) -> None:
    Image.fromarray(GREY > 127).save(tmp_path / "a.png")
    assert np.array_equal(pixels(tmp_path / "a.png"), np.stack([(GREY > 127) * 255] * 3, axis=2))


def test_alpha_is_dropped_and_hidden_colours_show(tmp_path: Path) -> None:
    alpha = RNG.integers(0, 256, (11, 7, 1), dtype=np.uint8)
    Image.fromarray(np.concatenate([RGB, alpha], axis=2)).save(tmp_path / "rgba.png")
    assert np.array_equal(pixels(tmp_path / "rgba.png"), RGB)
    Image.fromarray(np.stack([GREY, alpha[:, :, 0]], axis=2)).save(tmp_path / "la.png")
    assert np.array_equal(pixels(tmp_path / "la.png"), np.stack([GREY] * 3, axis=2))


@pytest.mark.parametrize("transparency", [None, bytes([0, 128, 255, 9])])
def test_palette_images_show_the_colours_of_their_palette(
    tmp_path: Path, transparency: bytes | None, recwarn: pytest.WarningsRecorder
) -> None:
    palette = RNG.integers(0, 256, (4, 3), dtype=np.uint8)
    index = RNG.integers(0, 4, (11, 7), dtype=np.uint8)
    image = Image.frombytes("P", (7, 11), index.tobytes())
    image.putpalette(palette.tobytes())
    image.save(tmp_path / "a.png", **({"transparency": transparency} if transparency else {}))
    assert np.array_equal(pixels(tmp_path / "a.png"), palette[index])
    assert not recwarn.list


def test_16_bit_grey_is_scaled_not_clipped(tmp_path: Path) -> None:
    deep = RNG.integers(0, 65536, (11, 7), dtype=np.uint16)
    expected = np.stack([deep // 256] * 3, axis=2)
    write_png(tmp_path / "grey.png", deep, colour_type=0, depth=16)
    assert np.array_equal(pixels(tmp_path / "grey.png"), expected)
    Image.fromarray(deep).save(tmp_path / "grey.tiff")
    assert np.array_equal(pixels(tmp_path / "grey.tiff"), expected)
    (tmp_path / "grey.pgm").write_bytes(b"P5 7 11 65535\n" + deep.astype(">u2").tobytes())
    assert np.array_equal(pixels(tmp_path / "grey.pgm"), expected)


def test_16_bit_colour_is_scaled_not_clipped(tmp_path: Path) -> None:
    deep = RNG.integers(0, 65536, (11, 7, 3), dtype=np.uint16)
    write_png(tmp_path / "rgb.png", deep.reshape(11, 21), colour_type=2, depth=16, size=(11, 7))
    assert np.array_equal(pixels(tmp_path / "rgb.png"), deep // 256)
    deep = RNG.integers(0, 65536, (11, 7, 4), dtype=np.uint16)
    write_png(tmp_path / "rgba.png", deep.reshape(11, 28), colour_type=6, depth=16, size=(11, 7))
    assert np.array_equal(pixels(tmp_path / "rgba.png"), deep[:, :, :3] // 256)


@pytest.mark.parametrize(
    ("ink", "colour"),
    [((0, 0, 0, 0), (255, 255, 255)), ((0, 255, 255, 0), (255, 0, 0)), ((255, 0, 255, 0), (0, 255, 0)),
     ((0, 0, 0, 255), (0, 0, 0)), ((0, 0, 0, 128), (127, 127, 127))],
)  # fmt: skip
def test_cmyk_jpeg_has_the_colour_of_its_ink(tmp_path: Path, ink: tuple[int, ...], colour: tuple[int, ...]) -> None:
    Image.new("CMYK", (16, 16), ink).save(tmp_path / "a.jpg", quality=95)
    assert np.abs(pixels(tmp_path / "a.jpg").astype(int) - colour).max() <= 2


# Per orientation, by the EXIF specification: the stored image whose row 0 and column 0 lie on the named sides.
STORED = {
    1: lambda seen: seen,  # top, left
    2: lambda seen: seen[:, ::-1],  # top, right
    3: lambda seen: seen[::-1, ::-1],  # bottom, right
    4: lambda seen: seen[::-1],  # bottom, left
    5: lambda seen: seen.transpose(1, 0, 2),  # left, top
    6: lambda seen: seen[:, ::-1].transpose(1, 0, 2),  # right, top
    7: lambda seen: seen[::-1, ::-1].transpose(1, 0, 2),  # right, bottom
    8: lambda seen: seen[::-1].transpose(1, 0, 2),  # left, bottom
}


@pytest.mark.parametrize("orientation", STORED)
def test_exif_orientation_is_applied(tmp_path: Path, orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    stored = Image.fromarray(np.ascontiguousarray(STORED[orientation](RGB)))
    stored.save(tmp_path / "a.png", exif=exif)
    assert np.array_equal(pixels(tmp_path / "a.png"), RGB)
    blocks = RGB[:3, :2].repeat(16, axis=0).repeat(16, axis=1)
    stored = Image.fromarray(np.ascontiguousarray(STORED[orientation](blocks)))
    stored.save(tmp_path / "a.jpg", exif=exif, quality=100, subsampling=0)
    assert np.abs(pixels(tmp_path / "a.jpg").astype(int) - blocks).max() <= 4


@pytest.mark.filterwarnings("ignore:Corrupt EXIF")
def test_broken_exif_is_ignored(tmp_path: Path) -> None:
    blocks = np.full((16, 16, 3), 90, dtype=np.uint8)
    Image.fromarray(blocks).save(tmp_path / "a.jpg", exif=b"Exif\0\0II*\0\xff\xff\xff\x7f")
    assert np.abs(pixels(tmp_path / "a.jpg").astype(int) - 90).max() <= 2


@pytest.mark.parametrize("options", [{"format": "JPEG"}, {"format": "JPEG", "progressive": True}, {"format": "PNG"}])
def test_truncated_files_are_refused_and_never_half_grey(tmp_path: Path, options: dict[str, object]) -> None:
    detailed = RNG.integers(0, 256, (48, 48, 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(detailed).save(buffer, **options)
    whole = buffer.getvalue()
    path = tmp_path / "cut"
    path.write_bytes(whole)
    expected = pixels(path)
    refused = 0
    for length in [*range(0, len(whole), 61), *range(len(whole) - 24, len(whole))]:
        path.write_bytes(whole[:length])
        try:
            assert np.array_equal(pixels(path), expected), f"cut at {length} of {len(whole)} bytes"
        except DataError as error:
            assert str(path) in str(error)  # noqa: PT017
            refused += 1
    assert refused >= len(whole) // 61


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
def test_bombs_are_refused_from_the_header(tmp_path: Path) -> None:
    path = tmp_path / "bomb.png"
    write_png(path, np.zeros((1, 3), dtype=np.uint8), colour_type=2, depth=8, size=(11_000, 10_000))
    with pytest.raises(DataError, match=r"bomb\.png has 10000 x 11000 pixels.*100,000,000.*max_image_pixels"):
        read_image(path)
    write_png(path, np.zeros((1, 3), dtype=np.uint8), colour_type=2, depth=8, size=(60_000, 60_000))
    with pytest.raises(DataError, match=r"bomb\.png has more pixels than Pillow decodes safely"):
        read_image(path)


def test_the_pixel_limit_can_be_set(tmp_path: Path) -> None:
    Image.fromarray(RGB).save(tmp_path / "a.png")
    assert read_image(tmp_path / "a.png", max_pixels=77).shape == (3, 11, 7)
    with pytest.raises(DataError, match="limit of 76"):
        read_image(tmp_path / "a.png", max_pixels=76)


def test_files_that_are_no_images_are_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"image not found: .*gone\.jpg"):
        read_image(tmp_path / "gone.jpg")
    with pytest.raises(DataError, match=f"cannot decode image {tmp_path}"):
        read_image(tmp_path)
    (tmp_path / "text.jpg").write_text("hello")
    with pytest.raises(DataError, match=r"text\.jpg is not an image of a supported format \(JPEG, PNG"):
        read_image(tmp_path / "text.jpg")
    (tmp_path / "drawing.jpg").write_text("%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n%%EndComments\n")
    with pytest.raises(DataError, match="not an image of a supported format"):
        read_image(tmp_path / "drawing.jpg")


def test_float_and_32_bit_pixels_are_refused(tmp_path: Path) -> None:
    Image.fromarray(np.ones((4, 4), dtype=np.float32)).save(tmp_path / "f.tiff")
    with pytest.raises(DataError, match="32-bit float pixels; convert it"):
        read_image(tmp_path / "f.tiff")
    Image.fromarray(np.full((4, 4), 70_000, dtype=np.int32)).save(tmp_path / "i.tiff")
    with pytest.raises(DataError, match="32-bit integer pixels; convert it"):
        read_image(tmp_path / "i.tiff")


@pytest.mark.parametrize("ending", sorted(IMAGE_SUFFIXES))
def test_what_folders_list_is_read(tmp_path: Path, ending: str) -> None:
    path = tmp_path / f"a{ending.upper()}"
    Image.fromarray(np.full((12, 9, 3), 100, dtype=np.uint8)).save(path)
    read = pixels(path)
    assert read.shape == (12, 9, 3)
    assert np.abs(read.astype(int) - 100).max() <= 2


def test_no_ending_is_both_read_and_passed_over_and_pillow_knows_no_other_of_the_formats() -> None:
    assert not IMAGE_SUFFIXES & UNREAD_SUFFIXES
    known = {ending for ending, name in Image.registered_extensions().items() if name in _FORMATS}
    assert known - IMAGE_SUFFIXES <= {".avifs", ".pfm"}  # image sequences, floating-point pixels


def test_what_is_no_regular_file_is_refused_and_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.jpg")
    with pytest.raises(DataError, match=r"cannot decode image .*pipe\.jpg: it is no regular file"):
        read_image(tmp_path / "pipe.jpg")
    (tmp_path / "loop.jpg").symlink_to(tmp_path / "loop.jpg")
    with pytest.raises(DataError, match=r"cannot decode image .*loop\.jpg: .*Too many levels"):
        read_image(tmp_path / "loop.jpg")
