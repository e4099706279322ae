"""Evaluation of a model on a data set, in one process or several."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from rich.console import Console

from piip.config.experiment import Config
from piip.data.build import build_loader
from piip.data.folders import list_folder
from piip.data.images import IMAGE_SUFFIXES
from piip.data.prefetch import on_device
from piip.data.sets.base import ImageDataset, check_classes
from piip.data.sets.config import DatasetConfig
from piip.engine import distributed
from piip.engine.checkpoint import load_weights
from piip.engine.device import compute_dtype, tf32
from piip.engine.log import Bar, logging_to
from piip.errors import ConfigError, DataError, PiipError
from piip.files import check_outputs, to_json, write_file
from piip.metrics.base import Metric
from piip.precision import prepare
from piip.weights.files import LoadedWeights

if TYPE_CHECKING:
    import torch

    from piip.data.loader import Loader
    from piip.model import Model

_log = logging.getLogger(__name__)

Backend = Literal["faster", "pycocotools"]
_REPORT = "metrics.json"


@dataclass(frozen=True)
class Evaluation:
    """What an evaluation found.

    metrics: by name, the main one first, None where there is nothing to measure. rows: a table with a row per class.
    seconds: duration of the evaluation. pictures: the files that the metric has drawn.
    """

    metrics: Mapping[str, float | None]
    rows: list[dict[str, Any]]
    seconds: float
    pictures: list[Path]


def evaluate(
    model: Model,
    loader: Loader,
    *,
    device: torch.device,
    backend: Backend = "faster",
    console: Console | None = None,
    check: Callable[[], None] | None = None,
    pictures: Path | None = None,
) -> Evaluation:
    """Runs the model over the loader's share of the images and scores the results of all ranks.

    model: ready for inference, see `piip.precision`. Every rank must call this function, even without images, and gets
    the same figures. check: called between batches; what it raises ends the evaluation. pictures: a folder in which the
    metric draws its pictures, if one is given.
    """
    start = time.perf_counter()
    metric = loader.dataset.metric(backend=backend)
    with Bar(console, "evaluating", total=len(loader)) as bar:
        for batch in on_device(loader, device):
            metric.update(model.infer_batch(batch), batch.image_ids)
            bar.advance()
            if check is not None:
                check()
    metric.synchronize()
    metrics, rows, drawn = distributed.on_main(lambda: (metric.compute(), metric.table(), _draw(metric, pictures)))
    return Evaluation(metrics, rows, time.perf_counter() - start, drawn)


def run_evaluation(
    config: Config,
    *,
    weights: Path,
    output: Path | None = None,
    device: str | None = None,
    backend: Backend = "faster",
) -> Evaluation:
    """Evaluates weights on the validation data of a config, under torchrun in all its processes.

    weights: a run, a checkpoint or a weight file. output: the folder for metrics.json and the pictures of the metric;
    nothing is written without it. device: 'auto' (or None), 'cpu', 'cuda' or 'cuda:N'. backend: which implementation
    computes COCO's metrics, where they are asked for. Raises PiipError and its kinds.
    """
    from piip.load import build_model

    with distributed.session(device) as target, logging_to() as console:
        model = build_model(config.model)
        loaded = load_weights(model, weights)
        with distributed.main_process_first():
            dataset = config.data.val.build(training=False)
        check_classes(config.model.head.num_classes, dataset)
        check_trained_classes(loaded, dataset)
        _log.info("evaluating %s on %d images on %s", loaded.file, len(dataset), target)
        if output is not None:
            distributed.on_main(lambda: _make_folder(output, [loaded.file, *_paths(config.data.val)]))
        loader = build_loader(config, dataset, training=False, pin_memory=target.type == "cuda")
        prepare(model.to(target), compute_dtype(target, config.train.precision))
        with tf32(config.train.tf32):
            found = evaluate(model, loader, device=target, backend=backend, console=console, pictures=output)
        _log.info("evaluated %d images in %.0f s", len(dataset), found.seconds)
        if output is not None:
            report = {"config": config.name, "weights": str(loaded.file), "images": len(dataset)}
            report |= {"backend": backend, "metrics": found.metrics, "classes": found.rows}
            distributed.on_main(lambda: _write_report(output / _REPORT, report))
        return found


def check_trained_classes(loaded: LoadedWeights, dataset: ImageDataset) -> None:
    """Raises ConfigError when weights were trained on other classes, or on the same ones in another order."""
    if loaded.class_names is None or loaded.class_names == dataset.class_names:
        return
    pairs = zip([*loaded.class_names, None], [*dataset.class_names, None], strict=False)
    label, (old, new) = next((label, pair) for label, pair in enumerate(pairs) if pair[0] != pair[1])
    raise ConfigError(
        f"{loaded.file} was trained on other classes than {dataset.source} has: class {label} is {old!r} there and "
        f"{new!r} here; use annotations with the categories it was trained on, in their order"
    )


def _draw(metric: Metric, folder: Path | None) -> list[Path]:
    try:
        return metric.draw(folder) if folder is not None else []
    except OSError as error:
        raise PiipError(f"cannot write to {folder}: {error.strerror}") from None


def _paths(data: DatasetConfig) -> list[Path]:
    """The files and folders from which a data set is read."""
    return [value for _, value in data if isinstance(value, Path)]


def _make_folder(output: Path, inputs: list[Path]) -> None:
    """Makes the folder of the results, which must not overwrite anything that is read."""
    check_outputs([output / _REPORT], inputs)
    for folder in inputs:
        if (
            output.is_dir()
            and folder.is_dir()
            and output.samefile(folder)
            and list_folder(folder, IMAGE_SUFFIXES).files
        ):
            raise DataError(f"{output} holds the images of the data set; choose another --output")
    try:
        output.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise PiipError(f"cannot write to {output}: {error.strerror}") from None


def _write_report(file: Path, report: dict[str, Any]) -> None:
    try:
        write_file(file, to_json(report, indent=2))
    except OSError as error:
        raise PiipError(f"cannot write {file}: {error.strerror}") from None
