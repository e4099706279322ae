"""Pages of pictures of data: images as the network sees them, the extreme objects of each class, and histograms."""

from __future__ import annotations

import io
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor
from torchvision.ops import box_iou

from piip.conventions import JPEG_QUALITY, NO_LABEL
from piip.data.sets.base import ImageDataset
from piip.data.transforms.config import TransformsConfig
from piip.data.transforms.sample import generator
from piip.errors import DataError, visible
from piip.files import replacing, write_file
from piip.results.drawing import draw_detections
from piip.results.label_overlay import draw_label_map

_PAPER, _INK = (255, 255, 255), (43, 43, 51)
_COLUMNS, _ROWS, _TILE, _TITLE = 4, 3, 440, 30
# Objects of each kind on the page of a class, the side of their pictures, and what is shown around them.
_OBJECTS, _SIDE, _MARGIN = 6, 200, 0.6
_MOST_CLASSES = 40


class _Object(NamedTuple):
    """image: index in the data. box: xyxy. overlap: the greatest IoU with another object of the image."""

    image: int
    label: int
    box: list[float]
    area: float
    overlap: float


def show_data(sets: dict[str, ImageDataset], transforms: TransformsConfig, output: Path) -> list[Path]:
    """Writes the pages of data sets, by split, into a folder. Returns their files. Raises OSError.

    transforms: of training, drawn anew for each image as an epoch would; images of other splits are shown as they are.
    """
    output.mkdir(parents=True, exist_ok=True)
    files = []
    objects = {}
    for split, dataset in sets.items():
        tiles = list(_examples(dataset, transforms if split == "train" else None))
        files.append(_save(_sheet(tiles, _COLUMNS, _TILE), output / f"{split}.jpg"))
        if "boxes" not in dataset.provides:
            continue
        found = objects[split] = list(_objects(dataset))
        for label, name in enumerate(dataset.class_names[:_MOST_CLASSES]):
            own = [item for item in found if item.label == label]
            if own:
                file = output / f"{split}-class-{label}.jpg"
                files.append(_save(_sheet(_extremes(dataset, own, name), _OBJECTS, _SIDE), file))
    if objects:
        names = next(iter(sets.values())).class_names
        files.append(_draw_histograms(objects, names, output / "histograms.png"))
    return files


def _examples(dataset: ImageDataset, transforms: TransformsConfig | None) -> Iterator[tuple[str, Image.Image]]:
    """Images spread over the data, as the network gets them if there are transforms, with their names and sizes."""
    places = np.unique(np.linspace(0, len(dataset) - 1, _COLUMNS * _ROWS).round().astype(int)).tolist()
    for index in places:
        try:
            sample = dataset[index]
            if transforms is not None:
                sample = transforms.apply({**sample, "replaced": [], "key": (0, index)}, generator(0, index))
        except DataError as error:
            yield f"{dataset.image_id(index)}: {error}", Image.new("RGB", (_TILE, _TILE), _PAPER)
            continue
        height, width = sample["image"].shape[1:]
        picture = _draw(sample["image"], sample["target"], dataset.class_names)
        yield f"{dataset.image_id(index)}   {width} x {height}", picture


def _draw(image: Tensor, target: dict[str, Tensor], names: Sequence[str]) -> Image.Image:
    """The image with what is to be learned of it."""
    if "boxes" in target:
        result = {"boxes": target["boxes"], "labels": target["labels"], "scores": torch.ones(len(target["labels"]))}
        if "masks" in target:
            result["masks"] = target["masks"].bool()
        return draw_detections(image, result, names)
    if "label_map" in target:
        labels = torch.where(target["label_map"] == NO_LABEL, len(names), target["label_map"].long())
        shares = {label: float((labels == label).float().mean()) for label in labels.unique().tolist()}
        return draw_label_map(image, labels, shares, [*names, "no label"])
    picture = Image.fromarray(image.permute(1, 2, 0).numpy())
    if target["label"].ndim == 0:
        ImageDraw.Draw(picture).text((4, 4), names[int(target["label"])], fill=(255, 255, 0))
    return picture


def _objects(dataset: ImageDataset) -> Iterator[_Object]:
    for index in range(len(dataset)):
        truth = dataset.truth(index)
        kept = ~truth["crowd"]
        xywh = torch.from_numpy(truth["xywh"][kept])
        boxes = torch.cat([xywh[:, :2], xywh[:, :2] + xywh[:, 2:]], dim=1)
        overlaps = box_iou(boxes, boxes).fill_diagonal_(0).amax(dim=1) if len(boxes) else torch.zeros(0)
        columns = truth["labels"][kept].tolist(), boxes.tolist(), truth["areas"][kept].tolist(), overlaps.tolist()
        for label, box, area, overlap in zip(*columns, strict=True):
            yield _Object(index, label, box, area, overlap)


def _extremes(dataset: ImageDataset, objects: list[_Object], name: str) -> list[tuple[str, Image.Image]]:
    """Of the objects of a class a row of the smallest, of the largest, and of those that overlap others most."""
    by_area = sorted(objects, key=lambda item: item.area)
    by_overlap = sorted(objects, key=lambda item: -item.overlap)
    tiles = []
    for words, row in (("smallest", by_area), ("largest", by_area[::-1]), ("overlaps", by_overlap)):
        for item in row[:_OBJECTS]:
            figure = f"IoU {item.overlap:.2f}" if words == "overlaps" else f"{item.area:.0f} px"
            tiles.append((f"{words} {name}: {figure}", _crop(dataset, item)))
        tiles += [("", Image.new("RGB", (1, 1), _PAPER))] * (_OBJECTS - min(len(row), _OBJECTS))
    return tiles


def _crop(dataset: ImageDataset, item: _Object) -> Image.Image:
    """The object with its box, and what is around it."""
    try:
        picture = Image.fromarray(dataset.image(item.image).permute(1, 2, 0).numpy())
    except DataError:
        return Image.new("RGB", (_SIDE, _SIDE), _PAPER)
    x1, y1, x2, y2 = item.box
    side = max(x2 - x1, y2 - y1, 16) * (1 + _MARGIN)
    left, top = (x1 + x2 - side) / 2, (y1 + y2 - side) / 2
    size, area = (_SIDE - _TITLE, _SIDE - _TITLE), (left, top, left + side, top + side)
    crop = picture.transform(size, Image.Transform.EXTENT, area, Image.Resampling.BILINEAR)
    scale = size[0] / side
    corners = [(x1 - left) * scale, (y1 - top) * scale, (x2 - left) * scale, (y2 - top) * scale]
    ImageDraw.Draw(crop).rectangle(corners, outline=(255, 220, 0), width=2)
    return crop


def _sheet(tiles: Sequence[tuple[str, Image.Image]], columns: int, side: int) -> Image.Image:
    """Pictures side by side, each below its title."""
    rows = max(1, -(-len(tiles) // columns))
    sheet = Image.new("RGB", (columns * side, rows * side), _PAPER)
    pen, font = ImageDraw.Draw(sheet), ImageFont.load_default(size=13)
    for place, (title, picture) in enumerate(tiles):
        left, top = place % columns * side, place // columns * side
        shown = picture.copy()
        shown.thumbnail((side - 6, side - _TITLE))
        sheet.paste(shown, (left + (side - shown.width) // 2, top + _TITLE - 4))
        while title and pen.textlength(title, font=font) > side - 8:
            title = title[:-1]
        pen.text((left + 4, top + 6), visible(title), fill=_INK, font=font)
    return sheet


def _save(sheet: Image.Image, file: Path) -> Path:
    with replacing(file) as stream:
        sheet.save(stream, "JPEG", quality=JPEG_QUALITY)
    return file


def _draw_histograms(objects: dict[str, list[Any]], names: Sequence[str], file: Path) -> Path:
    """Objects per class, and the roots of their areas with the bounds of COCO's sizes, by split."""
    shown = names[:_MOST_CLASSES]
    figure = Figure(figsize=(11, 2 + 0.28 * max(len(shown), 8)), dpi=100, layout="constrained", facecolor="white")
    classes, sizes = figure.subplots(1, 2)
    places, height = np.arange(len(shown)), 0.8 / len(objects)
    edges = np.geomspace(1, max([2.0, *(item.area**0.5 for found in objects.values() for item in found)]) * 1.01, 40)
    for number, (split, found) in enumerate(objects.items()):
        counts = np.bincount([item.label for item in found], minlength=len(names))[: len(shown)]
        classes.barh(places + number * height, counts, height=height, label=split)
        sizes.hist([max(item.area, 1) ** 0.5 for item in found], bins=edges, histtype="step", linewidth=2, label=split)
    classes.set_yticks(places + 0.4 - height / 2, [visible(name) for name in shown])
    classes.invert_yaxis()
    classes.set_title("objects per class")
    sizes.set_xscale("log")
    sizes.set_title("root of the area in pixels; small, medium and large")
    for bound in (32, 96):
        sizes.axvline(bound, color="#8a8a96", linestyle=":")
    for axes in (classes, sizes):
        axes.legend(frameon=False)
        axes.spines[["top", "right"]].set_visible(False)
    buffer = io.BytesIO()
    FigureCanvasAgg(figure).print_png(buffer)
    write_file(file, buffer.getvalue())
    return file
