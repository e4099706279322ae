"""Folders of images: the classes and files that torchvision finds, and a clear word on what does not fit."""

from __future__ import annotations

import logging
import os
import pickle
import socket
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.datasets import ImageFolder

from piip.data.sets.base import check_classes, check_same_classes
from piip.data.sets.image_folder.config import ImageFolderData
from piip.data.sets.image_folder.dataset import ImageFolderDataset
from piip.errors import ConfigError, DataError


def save(path: Path, side: int = 8) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(sum(path.name.encode())).integers(0, 256, (side, side + 2, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    for name in ("n03/b.png", "n03/a.JPEG", "n01/x.bmp", "n02/deep/er/z.jpg", "n02/a.webp"):
        save(tmp_path / "set" / name)
    (tmp_path / "set" / "n01" / "notes.txt").write_text("no image")
    return tmp_path / "set"


def load(**settings: Any) -> ImageFolderDataset:
    return ImageFolderDataset(ImageFolderData(**settings))


def files(dataset: ImageFolderDataset) -> list[str]:
    return [dataset.image_id(index) for index in range(len(dataset))]


def test_classes_labels_and_files_are_those_of_torchvision(root: Path) -> None:
    ours, theirs = load(root=root), ImageFolder(root)
    assert ours.class_names == theirs.classes
    expected = [(str(Path(path).relative_to(root)), label) for path, label in theirs.samples]
    assert [(file, ours.target(index)["label"].item()) for index, file in enumerate(files(ours))] == expected
    label = ours.target(0)["label"]
    assert (label.dtype, label.shape) == (torch.int64, ())
    assert ours.provides == {"label"}
    assert ours.aspect_ratios.tolist() == [1.0] * 5
    for index in (0, 1):
        pixels = np.asarray(Image.open(root / ours.image_id(index)).convert("RGB"))
        assert np.array_equal(ours.image(index).permute(1, 2, 0).numpy(), pixels)


def test_a_config_builds_the_same_set_for_training_and_evaluation(root: Path) -> None:
    for training in (True, False):
        dataset = ImageFolderData(root=root).build(training=training)
        assert len(dataset) == 5


def test_hidden_files_and_folders_are_passed_over(root: Path) -> None:
    before = files(load(root=root))
    save(root / ".cache" / "a.png")
    save(root / "n01" / ".thumbnails" / "x.png")
    save(root / "n01" / "._x.png")
    save(root / "stray.png")
    dataset = load(root=root)
    assert files(dataset) == before
    assert dataset.class_names == ["n01", "n02", "n03"]


def test_a_class_name_file_gives_names_order_and_selection(
    root: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    names = tmp_path / "names.txt"
    names.write_text("\ufeffn03 great white shark, white shark\n\nn01\n", encoding="utf-8")
    with caplog.at_level(logging.INFO):
        dataset = load(root=root, class_names=names)
    assert dataset.class_names == ["great white shark, white shark", "n01"]
    assert files(dataset) == ["n03/a.JPEG", "n03/b.png", "n01/x.bmp"]
    assert [dataset.target(index)["label"].item() for index in range(3)] == [0, 0, 1]
    assert f"1 x folder left out, not listed in {names} (n02)" in caplog.text


def test_two_classes_of_one_name_are_told_apart(root: Path, tmp_path: Path) -> None:
    (tmp_path / "names.txt").write_text("n01 crane\nn02 stork\nn03 crane\n")
    dataset = load(root=root, class_names=tmp_path / "names.txt")
    assert dataset.class_names == ["crane (n01)", "stork", "crane (n03)"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("n01 a\nn09 b\nn08\n", "2 of the 3 class folders .* are missing from .*: n09, n08; add them, or correct"),
        ("n01 a\nn01 b\n", "line 2: 'n01' occurs twice"),
        ("../n01 a\n", r"line 1: '\.\./n01' must be the name of a folder in the root"),
        ("\n \n", "is empty; it needs a line 'folder name' per class"),
        (b"n01 caf\xe9\n", "is not UTF-8 text"),
        (None, "cannot read the class-name file .*: No such file"),
    ],
)  # fmt: skip
def test_a_faulty_class_name_file_is_an_error_that_says_where(
    root: Path, tmp_path: Path, text: str | bytes | None, message: str
) -> None:
    names = tmp_path / "names.txt"
    if text is not None:
        names.write_bytes(text.encode() if isinstance(text, str) else text)
    with pytest.raises(DataError, match=message):
        load(root=root, class_names=names)


def test_an_empty_class_keeps_its_label_with_a_warning(root: Path, caplog: pytest.LogCaptureFixture) -> None:
    (root / "n00").mkdir()
    with caplog.at_level(logging.WARNING):
        dataset = load(root=root)
    assert dataset.class_names == ["n00", "n01", "n02", "n03"]
    assert dataset.target(0)["label"] == 1
    assert "1 x class folder without images (n00)" in caplog.text


def test_roots_without_images_in_class_folders_are_errors(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"cannot read the folder .*nowhere: No such file"):
        load(root=tmp_path / "nowhere")
    flat = tmp_path / "flat"
    flat.mkdir()
    with pytest.raises(DataError, match=r"no class folders in .*flat$"):
        load(root=flat)
    save(flat / "a.png")
    with pytest.raises(
        DataError, match=r"no class folders in .*flat; images lie directly in it, but need a folder per"
    ):
        load(root=flat)
    (flat / "cat").mkdir()
    with pytest.raises(DataError, match=r"no images in the 1 class folders of .*flat; images lie directly in it"):
        load(root=flat)


def test_links_are_followed_and_circles_refused(root: Path, tmp_path: Path) -> None:
    save(tmp_path / "elsewhere" / "far.png")
    (root / "n04").symlink_to(tmp_path / "elsewhere")
    (root / "n01" / "one.png").symlink_to(tmp_path / "elsewhere" / "far.png")
    assert {"n04/far.png", "n01/one.png"} <= set(files(load(root=root)))
    (root / "n02" / "deep" / "round").symlink_to(root / "n02")
    with pytest.raises(DataError, match="n02/deep/round is a link to a folder that it lies in"):
        load(root=root)
    (root / "n02" / "deep" / "round").unlink()
    for circle, fault in (
        (root / "n01" / "up", "n01/up is a link to a folder that it lies in"),
        (root / "n05", "n05 is a link to a folder that it lies in"),
    ):
        circle.symlink_to(root)
        with pytest.raises(DataError, match=f"{root}/{fault}"):
            load(root=root)
        circle.unlink()


def test_damaged_and_missing_images_are_named_when_they_are_read(root: Path) -> None:
    dataset = load(root=root, max_image_pixels=79)
    with pytest.raises(DataError, match=r"n01/x\.bmp has 10 x 8 pixels, more than the limit of 79"):
        dataset.image(0)
    (root / "n03" / "b.png").write_bytes(b"no image")
    (root / "n02" / "a.webp").unlink()
    for index, message in ((4, r"n03/b\.png is not an image"), (1, r"image not found: .*n02/a\.webp")):
        with pytest.raises(DataError, match=message):
            dataset.image(index)


def test_other_classes_in_training_than_in_evaluation_or_in_the_head_are_errors(root: Path, tmp_path: Path) -> None:
    for name in ("n01", "n02", "n04"):
        save(tmp_path / "val" / name / "a.png")
    train, val = load(root=root), load(root=tmp_path / "val")
    with pytest.raises(DataError, match=f"class 2 is 'n03' in {root} and 'n04' in {tmp_path / 'val'}"):
        check_same_classes(train, val)
    with pytest.raises(ConfigError, match=r"num_classes is 1000, but .* has 3 classes \(n01, n02, n03\); set"):
        check_classes(1000, train)


def test_a_file_costs_loader_processes_little_more_than_its_name(tmp_path: Path) -> None:
    (tmp_path / "class").mkdir()
    for number in range(300):
        (tmp_path / "class" / f"ILSVRC2012_train_{number:08d}.JPEG").touch()
    dataset = load(root=tmp_path)
    names = sum(len(file) for file in files(dataset))
    assert len(pickle.dumps(dataset._files)) < names + 300 * 32


def test_imagenet_has_its_names_in_label_order(tmp_path: Path) -> None:
    config = ImageFolderData(root=tmp_path / "absent", class_names="imagenet")
    names = config.known_class_names()
    assert names is not None
    assert len(set(names)) == 1000
    assert (names[0], names[1], names[207], names[999]) == ("tench", "goldfish", "golden retriever", "toilet tissue")
    assert [name for name in names if name.startswith("crane")] == ["crane (n02012849)", "crane (n03126707)"]
    with pytest.raises(DataError, match="cannot read the folder"):
        config.build(training=False)


def make_trouble(folder: Path) -> None:
    """What has an image's ending and is none: a FIFO, a socket, links to each other, to nothing and to itself."""
    os.mkfifo(folder / "pipe.jpg")
    with socket.socket(socket.AF_UNIX) as bound:
        bound.bind(str(folder / "socket.png"))
    links = {"one.jpg": "two.jpg", "two.jpg": "one.jpg", "gone.jpg": "nowhere", "self.png": "self.png", "self": "self"}
    for name, target in links.items():
        (folder / name).symlink_to(target)


def test_what_is_no_regular_file_is_passed_over_with_a_warning(
    root: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    before = files(load(root=root))
    monkeypatch.chdir(root)  # names of sockets must be short
    for folder in (Path(), Path("n01"), Path("n02/deep")):
        make_trouble(folder)
    (root / "n01" / "linked.png").symlink_to(root / "n03" / "b.png")
    assert files(load(root=root)) == ["n01/linked.png", *before]
    (record,) = caplog.records
    assert "12 x no regular file, or link to nothing, passed over (n01/gone.jpg, n01/one.jpg, " in record.getMessage()


def test_images_of_other_formats_are_counted_in_a_line(root: Path, caplog: pytest.LogCaptureFixture) -> None:
    before = files(load(root=root))
    for name in ("n01/a.HEIC", "n01/b.jp2", "n02/deep/c.dng", "n02/text.md"):
        (root / name).write_bytes(b"whatever")
    with caplog.at_level(logging.WARNING):
        assert files(load(root=root)) == before
    (record,) = caplog.records
    message = "3 x image of a format that is not read, passed over (n01/a.HEIC, n01/b.jp2, n02/deep/c.dng)"
    assert record.getMessage() == f"{root}: {message}"


def test_a_class_folder_whose_name_is_no_text_is_named(tmp_path: Path) -> None:
    os.mkdir(os.fsencode(tmp_path) + b"/caf\xe9")
    with pytest.raises(DataError, match=r"class folder: the name 'caf\\udce9' is no UTF-8 text"):
        load(root=tmp_path)
