"""Sizes from headers are those of the images as they are read, and files that are cut short are seen."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from piip.data.images import read_image, read_size
from piip.errors import DataError

PIXELS = np.random.default_rng(0).integers(0, 256, (40, 60, 3), dtype=np.uint8)


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("ending", ["jpg", "png", "webp", "tif"])
def test_the_size_is_that_of_the_upright_image(tmp_path: Path, ending: str, orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    file = tmp_path / f"a.{ending}"
    Image.fromarray(PIXELS).save(file, exif=exif)
    assert read_size(file) == tuple(read_image(file).shape[1:]) == ((40, 60) if orientation < 5 else (60, 40))


@pytest.mark.parametrize("ending", ["jpg", "png"])
def test_a_file_that_is_cut_short_is_an_error_and_one_with_more_behind_it_is_not(tmp_path: Path, ending: str) -> None:
    file = tmp_path / f"a.{ending}"
    Image.fromarray(PIXELS).save(file)
    data = file.read_bytes()
    file.write_bytes(data[:-300])
    with pytest.raises(DataError, match=rf"cannot decode image .*a\.{ending}"):
        read_size(file)
    file.write_bytes(data + bytes(5000))
    assert read_size(file) == (40, 60)
    with pytest.raises(DataError, match="60 x 40 pixels, more than the limit of 2,399"):
        read_size(file, 2399)
