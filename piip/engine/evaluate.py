"""Evaluation of a model on a data set, in one process or several."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from piip.config.experiment import Config
from piip.conventions import ImageId
from piip.data.build import build_loader
from piip.data.folders import list_folder
from piip.data.images import IMAGE_SUFFIXES
from piip.data.loader import Loader
from piip.data.prefetch import on_device
from piip.data.sets.base import ImageDataset, check_classes
from piip.data.sets.config import DatasetConfig
from piip.engine import distributed
from piip.engine.device import tf32
from piip.engine.log import Bar, logging_to
from piip.engine.report import WORST, write_report
from piip.errors import ConfigError, DataError, first_few
from piip.files import check_outputs, to_json, write_file, writing
from piip.load import load_model
from piip.metrics.base import Metric
from piip.metrics.config import MetricConfig
from piip.model import Model
from piip.tiling import Tiling
from piip.weights.find import find_weights

_log = logging.getLogger(__name__)

_REPORT = "metrics.json"


@dataclass(frozen=True)
class Evaluation:
    """What an evaluation found.

    metrics: the figures of all metrics by name, the main one first, None where there is nothing to measure. tables: one
    per metric, with a row per class. unread: a message for each image that could not be read. seconds: duration of the
    evaluation, without its report. scores: the metrics themselves, with the results of all images. details, files: see
    `Metric.details`, and the files that were written; empty without a report.
    """

    metrics: Mapping[str, float | None]
    tables: list[list[dict[str, Any]]]
    unread: Mapping[ImageId, str]
    seconds: float
    scores: Sequence[Metric]
    details: dict[str, Any] = field(default_factory=dict)
    files: list[Path] = field(default_factory=list)

    @property
    def document(self) -> dict[str, Any]:
        """What JSON files hold of it: `classes` is the first metric's table, `more_classes` are the others', if any."""
        more: dict[str, Any] = {"more_classes": self.tables[1:]} if len(self.tables) > 1 else {}
        more |= {"details": self.details} if self.details else {}
        return {"metrics": self.metrics, "classes": self.tables[0], **more, "unread": [*self.unread.values()]}


def evaluate(
    model: Model,
    loader: Loader,
    *,
    metrics: Sequence[MetricConfig],
    device: torch.device,
    console: Console | None = None,
    check: Callable[[], None] | None = None,
) -> Evaluation:
    """Runs the model over the loader's share of the images and scores the results of all ranks.

    model: ready for inference, see `piip.precision`. Every rank must call this function, even without images, and gets
    the same figures. check: called between batches; what it raises ends the evaluation.
    An image that cannot be read counts as one without results, with a warning.
    Raises DataError if no image can be read, and ConfigError for two metrics with figures of the same name.
    """
    start = time.perf_counter()
    scores = [metric.build(loader.dataset.class_names) for metric in metrics]
    unread: dict[ImageId, str] = {}
    with Bar(console, "evaluating", total=len(loader), unit="batches") as bar:
        for batch in on_device(loader, device):
            results = model.infer_batch(batch) if batch.image_ids else []
            for score in scores:
                if batch.image_ids:
                    score.update(results, batch.truths, batch.image_ids)
                for image in batch.unread:
                    score.miss(image.truth, image.image_id)
            unread |= {image.image_id: image.reason for image in batch.unread}
            bar.advance()
            if check is not None:
                check()
    unread = {image_id: reason for part in distributed.gather(unread) for image_id, reason in part.items()}
    if unread:
        _check_unread([*unread.values()], len(loader.dataset))
    for score in scores:
        score.synchronize()
    figures, tables = distributed.on_main(lambda: _conclude(scores))
    return Evaluation(figures, tables, unread, time.perf_counter() - start, scores)


def run_evaluation(
    config: Config,
    *,
    weights: Path,
    output: Path | None = None,
    device: str | None = None,
    compile: bool = False,
    tiling: Tiling | None = None,
) -> Evaluation:
    """Evaluates weights on the validation data of a config, under torchrun in all its processes.

    weights: a run, a checkpoint or a weight file. output: the folder for metrics.json, the pictures of the metrics,
    images.jsonl and worst/; nothing is written without it. device: 'auto' (or None), 'cpu', 'cuda' or 'cuda:N'.
    compile: as of `piip.load.create_model`. tiling: how images are cut, as in prediction.
    Raises PiipError and its kinds.
    """
    metrics = config.chosen_metrics
    with distributed.session(device) as target, logging_to() as console:
        file = find_weights(weights)
        model = load_model(config, file, device=target, precision=config.train.precision, compile=compile)
        model.tiling = tiling
        with distributed.main_process_first():
            dataset = config.data.val.build(training=False)
        check_classes(config.model.head.num_classes, dataset)
        check_trained_classes(file, model.class_names, dataset)
        _log.info("evaluating %s on %d images on %s", file, len(dataset), target)
        if output is not None:
            distributed.on_main(lambda: _make_folder(output, [file, *_paths(config.data.val)]))
        loader = build_loader(
            config, dataset, training=False, as_read=tiling is not None, pin_memory=target.type == "cuda"
        )
        with tf32(config.train.tf32):
            found = evaluate(model, loader, metrics=metrics, device=target, console=console)
            _log.info("evaluated %d images in %.0f s", len(dataset), found.seconds)
            if output is None:
                return found
            details = distributed.on_main(lambda: _details(found.scores))
            found = replace(found, details=details)
            report: dict[str, Any] = {"config": config.name, "weights": str(file), "images": len(dataset)}
            report["measured_by"] = [metric.model_dump(mode="json") for metric in metrics]
            report |= found.document
            # The figures are written first: nothing that fails after them, as on a full disk, can lose them.
            distributed.on_main(lambda: _write_figures(output / _REPORT, report))
            files = distributed.on_main(lambda: write_report(output, model, dataset, found.scores, found.unread))
        return replace(found, files=files)


def check_trained_classes(weights: Path, class_names: list[str], dataset: ImageDataset) -> None:
    """Raises ConfigError when weights were trained on other classes, or on the same ones in another order.

    class_names: what the weights were trained on; empty where their file does not say.
    """
    if not class_names or class_names == dataset.class_names:
        return
    pairs = zip([*class_names, None], [*dataset.class_names, None], strict=False)
    label, (old, new) = next((label, pair) for label, pair in enumerate(pairs) if pair[0] != pair[1])
    raise ConfigError(
        f"{weights} was trained on other classes than {dataset.source} has: class {label} is {old!r} there and "
        f"{new!r} here; use annotations with the categories it was trained on, in their order"
    )


def _check_unread(reasons: Sequence[str], images: int) -> None:
    """Warns of images that could not be read. Raises DataError if none could be read."""
    if len(reasons) == images:
        raise DataError(f"none of the {images} images can be read; the first: {reasons[0]}")
    _log.warning(
        "%d of %d images cannot be read and count as without results: %s", len(reasons), images, first_few(reasons)
    )


def _conclude(metrics: Iterable[Metric]) -> tuple[dict[str, float | None], list[list[dict[str, Any]]]]:
    """The figures of all metrics, and a table of each."""
    figures: dict[str, float | None] = {}
    tables: list[list[dict[str, Any]]] = []
    for metric in metrics:
        found = metric.compute()
        if doubled := sorted(found.keys() & figures.keys()):
            raise ConfigError(f"two metrics have figures of one name, {first_few(doubled)}; take one out of metrics")
        figures |= found
        tables.append(metric.table())
    return figures, tables


def _paths(data: DatasetConfig) -> list[Path]:
    """The files and folders from which a data set is read."""
    return [value for _, value in data if isinstance(value, Path)]


def _make_folder(output: Path, inputs: list[Path]) -> None:
    """Makes the folder of the results, which must not overwrite anything that is read."""
    check_outputs([output / _REPORT], inputs)
    for folder in filter(Path.is_dir, inputs):
        taken = [part for part in (output, output / WORST) if part.is_dir() and part.samefile(folder)]
        if taken and list_folder(folder, IMAGE_SUFFIXES).files:
            raise DataError(f"{folder} holds the images of the data set; choose another --output")
    with writing(f"to {output}"):
        output.mkdir(parents=True, exist_ok=True)


def _details(metrics: Iterable[Metric]) -> dict[str, Any]:
    return {name: value for metric in metrics for name, value in metric.details().items()}


def _write_figures(file: Path, report: dict[str, Any]) -> None:
    with writing(file):
        write_file(file, to_json(report, indent=2))
