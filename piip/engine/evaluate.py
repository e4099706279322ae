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
from piip.engine.device import tf32
from piip.engine.log import Bar, logging_to
from piip.errors import ConfigError, DataError, PiipError
from piip.files import check_outputs, to_json, write_file
from piip.load import load_model
from piip.metrics.base import Metric
from piip.weights.find import find_weights

if TYPE_CHECKING:
    import torch

    from piip.data.loader import Loader
    from piip.model import Model

_log = logging.getLogger(__name__)

Backend = Literal["faster", "pycocotools"]
_REPORT = "metrics.json"


@dataclass(frozen=True)
class Evaluation:
    """metrics by name, the main one first, None where there is nothing to measure; rows: a table with a line per class;
    seconds it took; pictures drawn.
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

    model: ready for inference, see `piip.precision`. Every rank must call it, also one that has no images, and gets the
    same figures. check: called between batches; what it raises ends the evaluation. pictures: a folder in which the
    metric draws what it has to show, if it is given.
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

    weights: a run, a checkpoint or a weight file. output: where metrics.json, and pictures if the metric draws any, are
    written, if given. device: 'auto' (or None), 'cpu', 'cuda' or 'cuda:N'. backend: which COCO evaluation computes the
    metrics, where there is one. Raises PiipError and its kinds.
    """
    with distributed.session(device) as target, logging_to() as console:
        file = find_weights(weights)
        model = load_model(config, file, device=target, precision=config.train.precision)
        with distributed.main_process_first():
            dataset = config.data.val.build(training=False)
        check_classes(config.model.head.num_classes, dataset)
        check_trained_classes(file, model.class_names, dataset)
        _log.info("evaluating %s on %d images on %s", file, len(dataset), target)
        if output is not None:
            distributed.on_main(lambda: _make_folder(output, [file, *_paths(config.data.val)]))
        loader = build_loader(config, dataset, training=False, pin_memory=target.type == "cuda")
        with tf32(config.train.tf32):
            found = evaluate(model, loader, device=target, backend=backend, console=console, pictures=output)
        _log.info("evaluated %d images in %.0f s", len(dataset), found.seconds)
        if output is not None:
            report = {"config": config.name, "weights": str(file), "images": len(dataset)}
            report |= {"backend": backend, "metrics": found.metrics, "classes": found.rows}
            distributed.on_main(lambda: _write_report(output / _REPORT, report))
        return found


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


def _draw(metric: Metric, folder: Path | None) -> list[Path]:
    try:
        return metric.draw(folder) if folder is not None else []
    except OSError as error:
        raise PiipError(f"cannot write to {folder}: {error.strerror}") from None


def _paths(data: DatasetConfig) -> list[Path]:
    """The files and folders that a data set is read from."""
    return [value for _, value in data if isinstance(value, Path)]


def _make_folder(output: Path, inputs: list[Path]) -> None:
    """Makes the folder of the results, which must not take the place of anything that is read."""
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
