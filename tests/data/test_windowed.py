"""Parts of images, of those in memory and of TIFF files."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image

from piip.data.windowed import InMemory, TiffFile, reduced_size
from piip.errors import DataError


@pytest.fixture
def pixels() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (40, 60, 3), dtype=np.uint8)


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "L"])
def test_parts_of_a_file_are_those_of_the_image(tmp_path, pixels, mode):
    image = Image.fromarray(pixels).convert(mode)
    image.save(tmp_path / "image.tif", compression="tiff_lzw")
    expected = torch.from_numpy(np.array(image.convert("RGB"))).permute(2, 0, 1)
    file, memory = TiffFile(tmp_path / "image.tif"), InMemory(expected)
    assert file.size == memory.size == (40, 60)
    for part in ((0, 0, 40, 60), (3, 7, 20, 60)):
        assert torch.equal(file.part(*part), memory.part(*part))
    assert file.reduced(30).shape == memory.reduced(30).shape == (3, 20, 30)
    assert (file.reduced(30).float() - memory.reduced(30).float()).abs().mean() < 12  # noise, averaged in two ways
    assert torch.equal(file.reduced(100), expected)


def test_the_upper_byte_of_16_bits_is_kept(tmp_path):
    grey = np.arange(0, 65536, 1024, dtype=np.uint16).reshape(8, 8)
    Image.fromarray(grey).save(tmp_path / "grey.tif")
    assert TiffFile(tmp_path / "grey.tif").part(0, 0, 8, 8)[1].tolist() == (grey >> 8).tolist()


def test_what_is_no_image_is_told(tmp_path):
    (tmp_path / "text.tif").write_text("no image")
    with pytest.raises(DataError, match=r"text\.tif"):
        TiffFile(tmp_path / "text.tif")
    Image.fromarray(np.zeros((4, 4), dtype=np.float32)).save(tmp_path / "float.tif")
    with pytest.raises(DataError, match="float32"):
        TiffFile(tmp_path / "float.tif")


def test_a_reduced_image_keeps_its_shape_and_a_pixel():
    assert reduced_size((3000, 1000), 300) == (300, 100)
    assert reduced_size((3000, 1), 300) == (300, 1)
    assert reduced_size((30, 10), 300) == (30, 10)
