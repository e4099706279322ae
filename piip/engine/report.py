"""images.jsonl and worst/: what an evaluation found image by image, and pictures of the worst ones."""

from __future__ import annotations

import html
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from piip.conventions import ImageId
from piip.data.sets.base import ImageDataset
from piip.errors import visible
from piip.files import to_json, write_file
from piip.metrics.base import Metric
from piip.results.comparison import draw_comparison

if TYPE_CHECKING:
    from piip.model import Model

IMAGES, WORST = "images.jsonl", "worst"
_MOST = 12


def write_images(
    folder: Path, model: Model, dataset: ImageDataset, metrics: Sequence[Metric], unread: Mapping[ImageId, str]
) -> list[Path]:
    """Writes a line of JSON per image, and up to 12 pictures of the worst with a page of them; returns both documents.

    model: ready for inference. metrics: with the results of all images. A line has id, file, the records of the
    metrics, the first metric's before the others', and `unread`, why an image could not be read, if it could not.
    Nothing is written where no metric keeps records. Raises OSError.
    """
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
    write_file(folder / IMAGES, "".join(f"{to_json(line)}\n" for line in lines))
    ranked = sorted(range(len(lines)), key=lambda index: -lines[index].get("badness", 0))
    worst = [index for index in ranked if lines[index].get("badness", 0) > 0 and "unread" not in lines[index]]
    title = f"The {len(worst[:_MOST])} worst of {len(lines)} images by their badness: {kept[0][0].badness}"
    return [folder / IMAGES, _draw_worst(folder / WORST, model, dataset, [(i, lines[i]) for i in worst[:_MOST]], title)]


def _draw_worst(
    folder: Path, model: Model, dataset: ImageDataset, worst: Sequence[tuple[int, Mapping[str, Any]]], title: str
) -> Path:
    folder.mkdir(exist_ok=True)
    figures = []
    for rank, (index, line) in enumerate(worst, 1):
        image = dataset.image(index)
        writer = model.config.head.build_writer(dataset.class_names, score_threshold=line.get("score_threshold", 0.0))
        (result,) = model.predict([image])
        pictures = {"truth": writer.draw_truth(image, dataset.truth(index)), "prediction": writer.draw(image, result)}
        caption = f"{rank}. {_describe(line)}"
        writer.save(draw_comparison(pictures, caption), folder / f"{rank:02}.jpg")
        figures.append(f'<p><img src="{rank:02}.jpg" alt="{html.escape(caption)}">\n')
    for rank in range(len(worst) + 1, _MOST + 1):
        (folder / f"{rank:02}.jpg").unlink(missing_ok=True)  # of an earlier evaluation
    title = html.escape(title)
    head = f'<!doctype html><meta charset="utf-8"><title>{title}</title><style>img {{max-width: 100%}}</style>\n'
    write_file(folder / "index.html", f"{head}<h1>{title}</h1>\n{''.join(figures)}")
    return folder / "index.html"


def _describe(line: Mapping[str, Any]) -> str:
    """The file and the record of an image in a line of words."""
    told = {key: value for key, value in line.items() if key not in ("id", "file") and value is not None}
    words = (f"{key.replace('_', ' ')} {_in_words(value)}" for key, value in told.items())
    return visible(f"{line['file']}: {', '.join(words)}")


def _in_words(value: Any) -> str:
    if isinstance(value, dict):
        return " / ".join(f"{name} {_in_words(part)}" for name, part in value.items())
    return f"{value:.2f}" if isinstance(value, float) else str(value)
