"""Label maps: the stored numbers of any PNG, paired with images by their names, or an error that names the file."""

from __future__ import annotations

import logging
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from piip.data.images import read_indices
from piip.data.sets.label_maps.class_names import ADE20K_CLASSES, read_class_names
from piip.data.sets.label_maps.config import LabelMapData
from piip.data.sets.label_maps.dataset import LabelMapDataset
from piip.errors import DataError

RNG = np.random.default_rng(3)
NAMES = ["sky", "tree", "road"]
SIZES = {"b": (6, 9), "deep/a": (5, 4), "a": (8, 8)}


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def write_png(path: Path, values: np.ndarray, *, bits: int, palette: bool = False) -> None:
    """A grey or palette PNG of `bits` a pixel, by the specification."""
    height, width = values.shape
    binary = (values[..., None].astype(np.int64) >> np.arange(bits)[::-1]) & 1
    rows = np.packbits(binary.reshape(height, -1).astype(np.uint8), axis=1)
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, bits, 3 if palette else 0, 0, 0, 0))
    colours = chunk(b"PLTE", RNG.integers(0, 256, 3 * 2**bits, dtype=np.uint8).tobytes()) if palette else b""
    data = zlib.compress(b"".join(b"\0" + row.tobytes() for row in rows))
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + header + colours + chunk(b"IDAT", data) + chunk(b"IEND", b""))


@pytest.mark.parametrize(
    ("bits", "palette"), [(bits, palette) for bits in (1, 2, 4, 8, 16) for palette in (False, True)][:-1]
)
def test_stored_numbers_are_read_whatever_they_look_like(tmp_path: Path, bits: int, palette: bool) -> None:
    values = RNG.integers(0, 2**bits, (5, 7))
    values[0, :2] = 0, 2**bits - 1
    write_png(tmp_path / "a.png", values, bits=bits, palette=palette)
    assert np.array_equal(read_indices(tmp_path / "a.png"), values)


class Maps:
    """A set on disk: `labels` by stem, of the sizes above."""

    def __init__(self, root: Path) -> None:
        self.images, self.labels = root / "images", root / "labels"
        self.values: dict[str, np.ndarray] = {}
        for stem, size in SIZES.items():
            for folder in (self.images, self.labels):
                (folder / stem).parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(RNG.integers(0, 256, (*size, 3), dtype=np.uint8)).save(self.images / f"{stem}.jpg")
            self.put(stem, RNG.choice([0, 1, 2, 255], size))

    def put(self, stem: str, values: np.ndarray) -> None:
        self.values[stem] = values
        Image.fromarray(values.astype(np.uint8)).save(self.labels / f"{stem}.png")

    def load(self, **changes: object) -> LabelMapDataset:
        settings = {"images": self.images, "labels": self.labels, "class_names": NAMES} | changes
        return LabelMapDataset(LabelMapData.model_validate(settings))


@pytest.fixture
def maps(tmp_path: Path) -> Maps:
    return Maps(tmp_path)


def test_images_and_maps_are_paired_by_name_in_subfolders_and_sorted(maps: Maps) -> None:
    dataset = maps.load()
    assert [dataset.image_id(index) for index in range(len(dataset))] == ["a.jpg", "b.jpg", "deep/a.jpg"]
    assert dataset.aspect_ratios.tolist() == [1, 6 / 9, 5 / 4]
    assert dataset.report.counts == {}
    for index, stem in enumerate(("a", "b", "deep/a")):
        sample = dataset[index]
        assert sample["image"].shape == (3, *SIZES[stem])
        assert sample["target"].keys() == dataset.provides
        label_map = sample["target"]["label_map"]
        assert label_map.dtype == torch.uint8
        assert np.array_equal(label_map, maps.values[stem])


def test_zero_may_mean_no_label_and_then_labels_begin_at_one(maps: Maps) -> None:
    stored = np.array([[0, 1, 2, 3, 255]])
    Image.new("RGB", (5, 1)).save(maps.images / "a.jpg")
    maps.put("a", stored)
    assert maps.load(reduce_zero_label=True).target(0)["label_map"].tolist() == [[255, 0, 1, 2, 255]]
    with pytest.raises(DataError, match=r"a\.png holds 3, but its 3 classes have the numbers 0 to 2"):
        maps.load().target(0)


def test_labels_beyond_the_classes_are_named_also_those_that_a_byte_cannot_hold(maps: Maps) -> None:
    write_png(maps.labels / "a.png", np.full((8, 8), 256), bits=16)
    with pytest.raises(DataError, match=r"labels/a\.png holds 256, but its 3 classes have the numbers 0 to 2"):
        maps.load().target(0)
    maps.put("a", np.full((8, 8), 4))
    with pytest.raises(DataError, match=r"a\.png holds 4, but its 3 classes have the numbers 1 to 3"):
        maps.load(reduce_zero_label=True).target(0)


def test_images_without_a_map_are_counted_and_named(maps: Maps) -> None:
    (maps.labels / "b.png").unlink()
    (maps.labels / "deep" / "a.png").rename(maps.labels / "deep" / "c.png")
    with pytest.raises(DataError, match=r"2 of 3 images have no PNG of their name: b\.jpg, deep/a\.jpg; correct"):
        maps.load()


def test_maps_without_an_image_are_left_out_with_a_warning(maps: Maps, caplog: pytest.LogCaptureFixture) -> None:
    (maps.images / "b.jpg").unlink()
    with caplog.at_level(logging.WARNING):
        dataset = maps.load()
    assert len(dataset) == 2
    assert f"{maps.labels}: 1 x label map without an image left out (b.png)" in caplog.text


def test_two_images_with_one_map_are_refused(maps: Maps) -> None:
    (maps.images / "b.png").write_bytes(b"")
    with pytest.raises(DataError, match=r"b\.jpg and b\.png in .*images would share a label map"):
        maps.load()


def test_folders_that_are_missing_or_empty_are_named(maps: Maps, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"cannot read the folder .*nowhere: No such file"):
        maps.load(labels=tmp_path / "nowhere")
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match=r"empty with the label maps .*: no images; correct 'images' or 'labels'"):
        maps.load(images=tmp_path / "empty")


def test_links_are_followed_and_circles_refused(maps: Maps, tmp_path: Path) -> None:
    elsewhere = Maps(tmp_path / "elsewhere")
    for ours, theirs in ((maps.images, elsewhere.images), (maps.labels, elsewhere.labels)):
        (ours / "far").symlink_to(theirs)
        file = next(theirs.glob("b.*"))
        (ours / f"one{file.suffix}").symlink_to(file)
    dataset = maps.load()
    stems = ["a", "b", "deep/a", "far/a", "far/b", "far/deep/a", "one"]
    assert [dataset.image_id(index) for index in range(len(dataset))] == [f"{stem}.jpg" for stem in stems]
    assert np.array_equal(dataset.target(6)["label_map"], elsewhere.values["b"])
    (maps.labels / "deep" / "up").symlink_to(maps.labels)
    with pytest.raises(DataError, match="deep/up is a link to a folder that it lies in; remove it"):
        maps.load()


def test_the_map_must_have_the_size_of_the_upright_image(maps: Maps) -> None:
    maps.put("b", np.zeros((9, 6)))
    turned = r"b\.jpg has 9 x 6 pixels, but by .*b\.png it should have 6 x 9; was that made without .* EXIF rotation"
    with pytest.raises(DataError, match=turned):
        maps.load().image(1)
    exif = Image.Exif()
    exif[0x0112] = 6
    with Image.open(maps.images / "b.jpg") as image:
        image.save(maps.images / "b.jpg", exif=exif)
    assert maps.load().image(1).shape == (3, 9, 6)


def test_a_file_that_is_no_label_map_is_named_before_anything_is_read(maps: Maps) -> None:
    Image.new("RGB", (9, 6)).save(maps.labels / "b.png")
    with pytest.raises(DataError, match=r"labels/b\.png stores colours, not one number per pixel"):
        maps.load()
    for content in (b"", b"\x89PNG\r\n", (maps.images / "b.jpg").read_bytes()):
        (maps.labels / "b.png").write_bytes(content)
        with pytest.raises(DataError, match=r"labels/b\.png is not a PNG file, or it is cut short"):
            maps.load()


def test_damaged_files_and_those_above_the_limit_are_named_when_read(maps: Maps) -> None:
    whole = (maps.labels / "b.png").read_bytes()
    (maps.labels / "b.png").write_bytes(whole[: len(whole) // 2])
    (maps.images / "a.jpg").write_bytes(b"no image")
    dataset = maps.load()
    with pytest.raises(DataError, match=r"cannot decode image .*labels/b\.png"):
        dataset.target(1)
    with pytest.raises(DataError, match=r"images/a\.jpg is not an image"):
        dataset.image(0)
    small = maps.load(max_image_pixels=20)
    for read in (small.image, small.target):
        with pytest.raises(DataError, match=r"b.* has 9 x 6 pixels, more than the limit of 20"):
            read(1)
    assert small.target(2)["label_map"].shape == (5, 4)


def test_class_names_come_from_a_file_or_the_config_or_are_those_of_ade20k(tmp_path: Path) -> None:
    file = tmp_path / "names.txt"
    file.write_text("\ufeffsky\n traffic light \r\nstra\u00dfe\n\n", encoding="utf-8")
    assert read_class_names(file) == ["sky", "traffic light", "stra\u00dfe"]
    assert read_class_names("ade20k") == list(ADE20K_CLASSES)
    for text, message in (("a\n\nb\n", "line 2: no name"), ("a\nb\na", "line 3: 'a' stands there twice")):
        file.write_text(text)
        with pytest.raises(DataError, match=message):
            read_class_names(file)
    assert read_class_names(["sea", "land"]) == ["sea", "land"]
    with pytest.raises(DataError, match=r"cannot read the class-name file .*nowhere"):
        read_class_names(tmp_path / "nowhere")


def test_ade20k_has_150_names_in_the_benchmark_s_order() -> None:
    assert len(set(ADE20K_CLASSES)) == len(ADE20K_CLASSES) == 150
    # From the benchmark's objectInfo150: 1 wall, 13 person, 21 car, 70 bench, 128 bicycle, 150 flag.
    assert [ADE20K_CLASSES[number - 1] for number in (1, 13, 21, 70, 128, 150)] == [
        "wall", "person", "car", "bench", "bicycle", "flag",
    ]  # fmt: skip


def test_the_number_of_classes_must_fit_the_maps(maps: Maps) -> None:
    for names in ([], [str(number) for number in range(256)]):
        with pytest.raises(DataError, match=f"{len(names)} classes for .*labels; label maps may have 1 to 255"):
            maps.load(class_names=names)


def test_label_map_config_reaches_the_dataset(maps: Maps, tmp_path: Path) -> None:
    (tmp_path / "names.txt").write_text("one\ntwo\n")
    settings = {"images": maps.images, "labels": maps.labels, "reduce_zero_label": True, "max_image_pixels": 64}
    dataset = LabelMapData(class_names=tmp_path / "names.txt", **settings).build(training=True)
    assert isinstance(dataset, LabelMapDataset)
    assert dataset.class_names == ["one", "two"]
    assert dataset.max_image_pixels == 64
    reduced = {0: 255, 1: 0, 2: 1, 255: 255}
    assert dataset.target(0)["label_map"].tolist() == [[reduced[v] for v in row] for row in maps.values["a"].tolist()]
    listed = LabelMapData(class_names=["one", "two"], **settings)
    assert listed.build(training=False).class_names == listed.known_class_names() == ["one", "two"]
    ade = LabelMapData(class_names="ade20k", **settings).build(training=False)
    assert ade.class_names == list(ADE20K_CLASSES)
