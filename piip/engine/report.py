"""What an evaluation found beside its figures: charts, a record of every image, and pictures of the worst ones."""

from __future__ import annotations

import html
import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from PIL import Image, ImageDraw, ImageFont

from piip.conventions import ImageId
from piip.data.sets.base import ImageDataset
from piip.errors import visible
from piip.files import to_json, write_file, writing
from piip.metrics.base import Metric

if TYPE_CHECKING:
    from piip.model import Model

WORST = "worst"
_MOST = 12
_PICTURE, _MARGIN, _LETTER = (800, 1000), 16, 20


def write_report(
    folder: Path, model: Model, dataset: ImageDataset, metrics: Sequence[Metric], unread: Mapping[ImageId, str]
) -> list[Path]:
    """Writes the charts of the metrics, images.jsonl, and worst/, pictures of up to 12 images with a page of them.

    model: ready for inference. metrics: with the results of all images. unread: why images could not be read. A line of
    images.jsonl has id, file, the records of the metrics, of which the first one goes first, and perhaps `unread`; it
    is only written where a metric keeps records. Returns the files. Raises PiipError.
    """
    with writing(f"to {folder}"):
        charts = [file for metric in metrics for file in metric.draw(folder)]
        return [*charts, *_write_images(folder, model, dataset, metrics, unread)]


def _write_images(
    folder: Path, model: Model, dataset: ImageDataset, metrics: Sequence[Metric], unread: Mapping[ImageId, str]
) -> list[Path]:
    kept = [(metric, records) for metric in metrics if (records := metric.records())]
    if not kept:
        return []
    lines: list[dict[str, Any]] = []
    for index in range(len(dataset)):
        image_id = dataset.image_id(index)
        line: dict[str, Any] = {"id": image_id, "file": dataset.file_name(index)}
        for _, records in reversed(kept):
            line |= records.get(image_id, {})
        lines.append(line | ({"unread": unread[image_id]} if image_id in unread else {}))
    write_file(folder / "images.jsonl", "".join(f"{to_json(line)}\n" for line in lines))
    bad = [index for index, line in enumerate(lines) if line.get("badness", 0) > 0 and "unread" not in line]
    worst = sorted(bad, key=lambda index: -lines[index]["badness"])[:_MOST]
    title = f"The {len(worst)} worst of {len(lines)} images by their badness: {kept[0][0].badness}"
    page = _draw_worst(folder / WORST, model, dataset, {index: lines[index] for index in worst}, html.escape(title))
    return [folder / "images.jsonl", page]


def _draw_worst(
    folder: Path, model: Model, dataset: ImageDataset, worst: Mapping[int, Mapping[str, Any]], title: str
) -> Path:
    folder.mkdir(exist_ok=True)
    for old in range(len(worst) + 1, _MOST + 1):
        (folder / f"{old:02}.jpg").unlink(missing_ok=True)
    page = f'<!doctype html><meta charset="utf-8"><title>{title}</title>\n<h1>{title}</h1>\n'
    for rank, (index, line) in enumerate(worst.items(), 1):
        image, threshold = dataset.image(index), line.get("score_threshold", 0.0)
        writer = model.config.head.build_writer(dataset.class_names, score_threshold=threshold)
        (result,) = model.predict([image])
        truth, found = writer.draw_truth(image, dataset.truth(index)), writer.draw(image, result)
        writer.save(_beside(truth, found, f"{rank}. {_describe(line)}"), folder / f"{rank:02}.jpg")
        page += f'<p><img style="max-width: 100%" src="{rank:02}.jpg" alt="{html.escape(_describe(line))}">\n'
    write_file(folder / "index.html", page)
    return folder / "index.html"


def _beside(truth: Image.Image, found: Image.Image, caption: str) -> Image.Image:
    """Truth and prediction side by side under a caption."""
    for picture in (truth, found):
        picture.thumbnail(_PICTURE, Image.Resampling.LANCZOS)
    cell = max(truth.width, found.width) + _MARGIN
    width, font, line = 2 * cell + _MARGIN, ImageFont.load_default(size=_LETTER), round(1.4 * _LETTER)
    text = textwrap.fill(caption, round(width / (0.53 * _LETTER)))
    top = _MARGIN + (text.count("\n") + 2) * line
    sheet = Image.new("RGB", (width, top + max(truth.height, found.height) + _MARGIN), "white")
    pen = ImageDraw.Draw(sheet)
    for place, row in enumerate(text.split("\n")):
        pen.text((_MARGIN, _MARGIN + place * line), row, fill="black", font=font)
    for place, (name, picture) in enumerate((("truth", truth), ("prediction", found))):
        pen.text((_MARGIN + place * cell, top - line), name, fill="dimgray", font=font)
        sheet.paste(picture, (_MARGIN + place * cell, top))
    return sheet


def _describe(line: Mapping[str, Any]) -> str:
    """The file and the record of an image in a line of words."""
    words = (f"{key.replace('_', ' ')} {_in_words(value)}" for key, value in line.items() if key not in ("id", "file"))
    return visible(f"{line['file']}: {', '.join(words)}")


def _in_words(value: Any) -> str:
    if isinstance(value, dict):
        return " / ".join(f"{name} {_in_words(part)}" for name, part in value.items())
    return f"{value:.2f}" if isinstance(value, float) else "none" if value is None else str(value)
