"""Images in every form that users hold them in are what reading their file gives."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from piip.data.images import read_image
from piip.data.inputs import all_to_pixels, is_image, to_pixels
from piip.errors import DataError


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Files of every kind of pixel that Pillow reads, each 5 wide and 4 high."""
    folder = tmp_path_factory.mktemp("images")
    generator = np.random.default_rng(0)
    rgb = Image.fromarray(generator.integers(0, 256, (4, 5, 3), dtype=np.uint8))
    exif = Image.Exif()
    exif[0x0112] = 6
    kinds: dict[str, tuple[Image.Image, dict[str, Any]]] = {
        "rgb.png": (rgb, {}),
        "turned.jpg": (rgb, {"exif": exif}),
        "grey.png": (rgb.convert("L"), {}),
        "bits.png": (rgb.convert("1"), {}),
        "alpha.png": (rgb.convert("RGBA"), {}),
        "grey-alpha.png": (rgb.convert("LA"), {}),
        "palette.png": (rgb.convert("P"), {"transparency": 3}),
        "sixteen.png": (Image.fromarray(generator.integers(0, 65536, (4, 5), dtype=np.uint16)), {}),
        "cmyk.tif": (rgb.convert("CMYK"), {}),
        "lab.tif": (rgb.convert("LAB"), {}),
    }
    for name, (image, options) in kinds.items():
        image.save(folder / name, **options)
    return {name: folder / name for name in kinds}


def test_paths_bytes_open_files_and_pillow_images_are_what_the_file_holds(files: dict[str, Path]) -> None:
    for name, path in files.items():
        expected = read_image(path)
        assert expected.shape == ((3, 5, 4) if name == "turned.jpg" else (3, 4, 5))
        with path.open("rb") as file, Image.open(path) as image:
            file.read(7)  # as Pillow does, a file is read from its start
            forms = [str(path), path, path.read_bytes(), bytearray(path.read_bytes()), file, image]
            forms += [io.BytesIO(path.read_bytes()), memoryview(path.read_bytes())]
            for form in forms:
                assert is_image(form)
                assert torch.equal(to_pixels(form), expected), (name, type(form))


def test_arrays_are_rgb_or_grey_in_whatever_memory(files: dict[str, Path]) -> None:
    expected = read_image(files["rgb.png"])
    array = expected.permute(1, 2, 0).numpy()
    read_only = array.copy()
    read_only.setflags(write=False)
    backwards = np.ascontiguousarray(array[..., ::-1])[..., ::-1]
    for form in (array, read_only, backwards, np.asfortranarray(array), expected):
        assert torch.equal(to_pixels(form), expected)
    assert torch.equal(to_pixels(array[..., 0]), expected[:1].expand(3, -1, -1))


@pytest.mark.parametrize(
    ("value", "words"),
    [
        (np.zeros((4, 5, 3), np.float32), r"a float32 array of shape \(4, 5, 3\)"),
        (np.zeros((4, 5, 4), np.uint8), r"a uint8 array of shape \(4, 5, 4\)"),
        (np.zeros((2, 4, 5, 3), np.uint8), r"a uint8 array of shape \(2, 4, 5, 3\)"),
        (np.zeros((0, 5, 3), np.uint8), r"a uint8 array of shape \(0, 5, 3\)"),
        (torch.zeros(3, 4, 5), r"a float32 tensor of shape \(3, 4, 5\)"),
        (torch.zeros(4, 5, 3, dtype=torch.uint8), r"a uint8 tensor of shape \(4, 5, 3\)"),
        (io.StringIO("text"), "of type str"),
        (None, "of type NoneType"),
    ],
)
def test_anything_else_is_an_error_that_says_what_is_taken(value: Any, words: str) -> None:
    with pytest.raises(
        DataError, match=rf"<images\[1\]> is {words}; images are paths, .*uint8 tensors \(3, H, W\) RGB"
    ):
        all_to_pixels([torch.zeros(3, 4, 5, dtype=torch.uint8), value])


@pytest.mark.parametrize("value", [None, 7, {"image": "x.png"}])
def test_what_is_neither_an_image_nor_several_is_named(value: Any) -> None:
    assert not is_image(value)
    with pytest.raises(DataError, match=f"an image, or a list of them, is needed, not of type {type(value).__name__}"):
        all_to_pixels(value)


def test_damage_and_size_are_told_as_of_files(files: dict[str, Path]) -> None:
    data = files["rgb.png"].read_bytes()
    closed = files["rgb.png"].open("rb")
    closed.close()
    image = Image.open(files["rgb.png"])
    image.close()
    cases: list[tuple[Any, str]] = [
        (data[:60], "cannot decode image <image>"),
        (b"nothing", "<image> is not an image of a supported format"),
        (closed, "cannot read image <image>"),
        (image, "cannot decode image <image>"),
        (Image.new("F", (5, 4)), "32-bit float"),
    ]
    for form, words in cases:
        with pytest.raises(DataError, match=words):
            to_pixels(form)
    whole: list[Any] = [data, Image.open(files["rgb.png"])]
    for form in whole:
        with pytest.raises(DataError, match="5 x 4 pixels, more than the limit of 19"):
            to_pixels(form, max_pixels=19)


def test_a_generator_of_images_is_several(files: dict[str, Path]) -> None:
    found: list[Tensor] = all_to_pixels(path for path in files.values())
    assert len(found) == len(files)
