"""COCO AP: against pycocotools on the original file, against figures by hand, and over several processes."""

from __future__ import annotations

import contextlib
import io
import json
import os
import socket
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.multiprocessing
from PIL import Image
from pycocotools import mask as mask_utils
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from piip.data.sets.coco.config import CocoData
from piip.data.sets.instances.dataset import InstanceDataset
from piip.errors import DataError, PiipError
from piip.metrics.average_precision import CocoMetric
from piip.metrics.config import CocoMetricConfig

SUMMARY = ("ap", "ap50", "ap75", "ap_small", "ap_medium", "ap_large")
CATEGORY_IDS = (3, 17, 90)  # of labels 0, 1, 2
SIZE = 200


def write_set(folder: Path, annotations: list[dict[str, Any]], images: int = 4, **settings: Any) -> InstanceDataset:
    """A set of black images 10, 11, ..."""
    (folder / "images").mkdir(parents=True, exist_ok=True)
    for number in range(images):
        Image.new("L", (SIZE, SIZE)).save(folder / "images" / f"{number}.jpg")
    data = {
        "images": [{"id": 10 + n, "file_name": f"{n}.jpg", "height": SIZE, "width": SIZE} for n in range(images)],
        "categories": [{"id": id_, "name": f"class {id_}"} for id_ in CATEGORY_IDS],
        "annotations": annotations,
    }
    (folder / "instances.json").write_text(json.dumps(data))
    config = CocoData(images=folder / "images", annotations=folder / "instances.json", **settings)
    return config.build(training=False)


def metric_of(dataset: InstanceDataset, backend: str = "faster") -> CocoMetric:
    return CocoMetric(CocoMetricConfig(backend=backend), dataset.class_names)


def update(metric: CocoMetric, dataset: InstanceDataset, results: dict[int, dict[str, Any]]) -> None:
    """Gives the metric results by image id, with what the data set says of these images."""
    truths = {dataset.image_id(index): dataset.truth(index) for index in range(len(dataset))}
    metric.update(list(results.values()), [truths[image_id] for image_id in results], list(results))


def blob(box: list[float], rng: np.random.Generator | None = None) -> np.ndarray:
    """The ellipse in a box, on the canvas of an image; with a generator its edge is ragged."""
    x, y, w, h = box
    rows, columns = np.mgrid[:SIZE, :SIZE] + 0.5
    radius = ((columns - x - w / 2) / (w / 2)) ** 2 + ((rows - y - h / 2) / (h / 2)) ** 2
    limit = 1.0 if rng is None else rng.uniform(0.7, 1.2, radius.shape)
    return (radius <= limit).astype(np.uint8)


def rle(mask: np.ndarray) -> dict[str, Any]:
    encoded = mask_utils.encode(np.asfortranarray(mask))
    return {"size": encoded["size"], "counts": encoded["counts"].decode()}


def crowded_scene(seed: int = 0) -> list[dict[str, Any]]:
    """Objects of all three classes and sizes over four images, overlapping, a tenth of them crowds."""
    rng = np.random.default_rng(seed)
    annotations = []
    for id_ in range(60):
        w, h = np.exp(rng.uniform(np.log(8), np.log(180), 2)).round(2)
        x, y = (rng.uniform(0, SIZE - side) for side in (w, h))
        box = [float(v) for v in np.round([x, y, w, h], 2)]
        mask = blob(box)
        annotations.append(
            {
                "id": id_ + 1,
                "image_id": 10 + int(rng.integers(4)),
                "category_id": CATEGORY_IDS[int(rng.integers(3))],
                "bbox": box,
                "area": float(mask.sum()),
                "iscrowd": int(id_ % 10 == 0),
                "segmentation": rle(mask),
            }
        )
    return annotations


def guesses(annotations: list[dict[str, Any]], seed: int = 1) -> dict[int, dict[str, torch.Tensor]]:
    """Per image what a middling detector might answer: objects moved, some of another class, and some from nowhere."""
    rng = np.random.default_rng(seed)
    found: dict[int, list[tuple[list[float], float, int, np.ndarray]]] = {10 + n: [] for n in range(4)}
    for entry in annotations * 2:
        x, y, w, h = entry["bbox"]
        moved = [x + rng.normal(0, w / 12), y + rng.normal(0, h / 12), w * rng.uniform(0.85, 1.15), h]
        label = CATEGORY_IDS.index(entry["category_id"]) if rng.random() < 0.8 else int(rng.integers(3))
        # Scores in tenths: equal scores are common, and both implementations must order them alike.
        found[entry["image_id"]].append((moved, round(rng.random(), 1), label, blob(moved, rng)))
    results = {}
    for image_id, items in found.items():
        items.sort(key=lambda item: -item[1])
        boxes = torch.tensor([item[0] for item in items], dtype=torch.float64)
        results[image_id] = {
            "boxes": torch.cat([boxes[:, :2], boxes[:, :2] + boxes[:, 2:]], dim=1).float(),
            "scores": torch.tensor([item[1] for item in items]),
            "labels": torch.tensor([item[2] for item in items]),
            "masks": torch.from_numpy(np.stack([item[3] for item in items])).bool(),
        }
    return results


def raw_pycocotools(file: Path, results: dict[int, dict[str, torch.Tensor]]) -> dict[str, float]:
    """The figures that pycocotools gives when used on the file as its own documentation shows."""
    values = {}
    with contextlib.redirect_stdout(io.StringIO()):
        for kind, name in (("bbox", "box"), ("segm", "mask")):
            answers = []
            for image_id, result in results.items():
                for box, score, label, mask in zip(*(result[k] for k in ("boxes", "scores", "labels", "masks"))):
                    x1, y1, x2, y2 = box.tolist()
                    answer = {"image_id": image_id, "category_id": CATEGORY_IDS[label], "score": score.item()}
                    extra = (
                        {"bbox": [x1, y1, x2 - x1, y2 - y1]} if kind == "bbox" else {"segmentation": rle(mask.numpy())}
                    )
                    answers.append(answer | extra)
            truth = COCO(str(file))
            evaluation = COCOeval(truth, truth.loadRes(answers), kind)
            evaluation.evaluate()
            evaluation.accumulate()
            evaluation.summarize()
            values |= {f"{name}_{key}": float(value) for key, value in zip(SUMMARY, evaluation.stats[:6])}
    return values


@pytest.mark.parametrize("backend", ["faster", "pycocotools"])
@pytest.mark.parametrize("seed", [0, 3])
def test_figures_equal_pycocotools_on_the_raw_file(tmp_path: Path, backend: str, seed: int) -> None:
    annotations = crowded_scene(seed)
    dataset = write_set(tmp_path, annotations)
    results = guesses(annotations, seed + 10)
    metric = metric_of(dataset, backend)
    for image_id, result in reversed(results.items()):
        update(metric, dataset, {image_id: result})
    values = metric.compute()
    expected = raw_pycocotools(tmp_path / "instances.json", results)
    assert list(values) == list(expected)
    assert values == pytest.approx(expected, abs=1e-12)
    assert 0.2 < values["box_ap"] < 0.8  # neither trivially right nor wrong
    assert 0.2 < values["mask_ap"] < 0.8
    assert None not in values.values()


def test_both_backends_give_the_same_figures_and_tables(tmp_path: Path) -> None:
    annotations = crowded_scene(5)
    dataset = write_set(tmp_path, annotations)
    tables = []
    for backend in ("faster", "pycocotools"):
        metric = metric_of(dataset, backend)
        update(metric, dataset, guesses(annotations))
        tables.append((metric.compute(), metric.table()))
    assert tables[0][0] == pytest.approx(tables[1][0], abs=1e-12)
    for ours, theirs in zip(tables[0][1], tables[1][1], strict=True):
        assert ours == pytest.approx(theirs, abs=1e-12)


def test_targets_will_do_as_truths(tmp_path: Path) -> None:
    """As data sets have them that say no more of the truth: corners, labels and masks as arrays."""
    annotations = crowded_scene()
    for entry in annotations:
        entry |= {"iscrowd": 0, "bbox": [float(round(value)) for value in entry["bbox"]]}
    dataset, results = write_set(tmp_path, annotations), guesses(annotations)
    exact, plain = metric_of(dataset), metric_of(dataset)
    update(exact, dataset, results)
    for index in range(len(dataset)):
        target = {name: value.numpy() for name, value in dataset.target(index).items()}
        plain.update([results[dataset.image_id(index)]], [target], [dataset.image_id(index)])
    assert plain.compute() == exact.compute()
    assert plain.table() == exact.table()


def square(id_: int, image_id: int = 10, category_id: int = 3, side: int = 50) -> dict[str, Any]:
    polygon = [10, 10, 10 + side, 10, 10 + side, 10 + side, 10, 10 + side]
    box = [10, 10, side, side]
    entry = {"id": id_, "image_id": image_id, "category_id": category_id, "bbox": box, "area": side * side}
    return entry | {"iscrowd": 0, "segmentation": [polygon]}


def answer(box: list[float], score: float, label: int = 0) -> dict[str, torch.Tensor]:
    mask = torch.zeros(1, SIZE, SIZE, dtype=torch.bool)
    x1, y1, x2, y2 = map(round, box)
    mask[0, y1:y2, x1:x2] = True
    return {
        "boxes": torch.tensor([box], dtype=torch.float32),
        "scores": torch.tensor([score]),
        "labels": torch.tensor([label]),
        "masks": mask,
    }


@pytest.mark.parametrize("backend", ["faster", "pycocotools"])
def test_average_precision_by_hand(tmp_path: Path, backend: str) -> None:
    # One object of 50 x 50. A box of 50 x 40 within it has IoU 0.8: a hit at thresholds 0.50 to 0.80, 7 of 10.
    dataset = write_set(tmp_path, [square(1)])
    metric = metric_of(dataset, backend)
    update(metric, dataset, {10: answer([10, 10, 60, 50], 0.9)})
    values = metric.compute()
    assert next(iter(values)) == "box_ap"
    assert values["box_ap"] == pytest.approx(0.7)
    assert values["mask_ap"] == pytest.approx(0.7)
    assert values["box_ap50"] == values["box_ap75"] == pytest.approx(1)
    assert values["box_ap_medium"] == pytest.approx(0.7)
    assert values["box_ap_small"] == values["box_ap_large"] is None  # no such objects
    # A surer guess on another image, of nothing: every hit comes second, precision one half.
    update(metric, dataset, {11: answer([100, 100, 150, 150], 0.95)})
    assert metric.compute()["box_ap"] == pytest.approx(0.35)
    json.dumps(metric.compute())


@pytest.mark.parametrize("backend", ["faster", "pycocotools"])
def test_an_annotation_with_id_0_counts_like_any_other(tmp_path: Path, backend: str) -> None:
    dataset = write_set(tmp_path, [square(0)])
    metric = metric_of(dataset, backend)
    update(metric, dataset, {10: answer([10, 10, 60, 60], 0.9)})
    assert metric.compute()["box_ap"] == pytest.approx(1)


@pytest.mark.parametrize("backend", ["faster", "pycocotools"])
def test_no_predictions_at_all_give_zero(tmp_path: Path, backend: str) -> None:
    dataset = write_set(tmp_path, [square(1)])
    metric = metric_of(dataset, backend)
    empty = {"boxes": torch.zeros(0, 4), "scores": torch.zeros(0), "labels": torch.zeros(0, dtype=torch.int64)}
    update(metric, dataset, {10: empty | {"masks": torch.zeros(0, SIZE, SIZE, dtype=torch.bool)}})
    values = metric.compute()
    assert values["box_ap"] == values["mask_ap"] == 0


@pytest.mark.parametrize("backend", ["faster", "pycocotools"])
def test_the_objects_of_an_image_that_could_not_be_read_count_as_missed(tmp_path: Path, backend: str) -> None:
    annotations = crowded_scene()
    dataset, results = write_set(tmp_path, annotations), guesses(annotations)
    del results[12]
    metric = metric_of(dataset, backend)
    update(metric, dataset, results)
    partial = metric.compute()
    metric.miss(dataset.truth(2), dataset.image_id(2))
    values = metric.compute()
    # pycocotools on the whole file, with no result for that image.
    assert values == pytest.approx(raw_pycocotools(tmp_path / "instances.json", results), abs=1e-12)
    assert values["box_ap"] < partial["box_ap"]
    assert sum(row["objects"] for row in metric.table()) == sum(not entry["iscrowd"] for entry in annotations)


@pytest.mark.parametrize("annotations", [[], [square(1) | {"iscrowd": 1}]])
def test_a_set_without_an_object_is_refused_before_it_is_evaluated(
    tmp_path: Path, annotations: list[dict[str, Any]]
) -> None:
    with pytest.raises(DataError, match=r"instances\.json: its 4 images have no object to evaluate on"):
        write_set(tmp_path, annotations, crowds="regions")


# COCO's code keeps ids as floats or in 64 bits, and takes 0 and less for something else.
@pytest.mark.parametrize("backend", ["faster", "pycocotools"])
@pytest.mark.parametrize(
    "ids", [(-7, -1, 0, 5), (2**53, 2**53 + 1, 2**53 + 2, 2**63), (-(2**64), 2**64, 2**64 + 1, 10**30)]
)
def test_ids_of_any_size_give_the_figures_of_plain_ones(tmp_path: Path, ids: tuple[int, ...], backend: str) -> None:
    annotations = crowded_scene()
    results = guesses(annotations)
    plain_set = write_set(tmp_path / "plain", annotations)
    plain = metric_of(plain_set, backend)
    update(plain, plain_set, results)

    named = dict(zip(range(10, 14), ids, strict=True))
    categories = dict(zip(CATEGORY_IDS, sorted(ids[:3]), strict=True))
    write_set(tmp_path, annotations)
    data = json.loads((tmp_path / "instances.json").read_text())
    for image in data["images"]:
        image["id"] = named[image["id"]]
    for category in data["categories"]:
        category["id"] = categories[category["id"]]
    for entry in data["annotations"]:
        entry |= {"image_id": named[entry["image_id"]], "category_id": categories[entry["category_id"]]}
    (tmp_path / "instances.json").write_text(json.dumps(data))
    dataset = CocoData(images=tmp_path / "images", annotations=tmp_path / "instances.json").build(training=False)
    metric = metric_of(dataset, backend)
    update(metric, dataset, {named[image_id]: result for image_id, result in results.items()})
    assert {dataset.image_id(index) for index in range(4)} == set(ids)
    assert metric.compute() == pytest.approx(plain.compute(), abs=1e-12)
    assert [row["objects"] for row in metric.table()] == [row["objects"] for row in plain.table()]


def test_a_model_without_masks_is_measured_by_its_boxes(tmp_path: Path) -> None:
    dataset = write_set(tmp_path, [square(1)])
    metric = metric_of(dataset)
    result = answer([10, 10, 60, 60], 0.9)
    del result["masks"]
    update(metric, dataset, {10: result})
    metric.miss(dataset.truth(1), 11)
    assert list(metric.compute()) == [f"box_{name}" for name in SUMMARY]


def test_the_table_has_a_row_per_class(tmp_path: Path) -> None:
    crowd = square(3, category_id=90) | {"iscrowd": 1}
    dataset = write_set(tmp_path, [square(1), square(2, image_id=11, category_id=17), crowd])
    metric = metric_of(dataset)
    update(metric, dataset, {10: answer([10, 10, 60, 50], 0.9), 11: answer([10, 10, 60, 60], 0.9)})
    rows = metric.table()
    assert [row["class"] for row in rows] == ["class 3", "class 17", "class 90"]
    assert [row["objects"] for row in rows] == [1, 1, 0]
    assert [row["box_ap"] for row in rows] == pytest.approx([0.7, 0, None])
    assert [row["mask_ap50"] for row in rows] == pytest.approx([1, 0, None])
    assert json.loads(json.dumps(rows))[2]["mask_ap"] is None


@pytest.mark.parametrize("backend", ["faster", "pycocotools"])
def test_evaluation_is_silent(
    tmp_path: Path, backend: str, capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level("DEBUG"):
        dataset = write_set(tmp_path, [square(1)])
        metric = metric_of(dataset, backend)
        update(metric, dataset, {10: answer([10, 10, 60, 50], 0.9)})
        metric.compute()
        metric.table()
    assert capfd.readouterr() == ("", "")
    assert caplog.records == []


def test_results_with_a_label_beyond_the_classes_are_named(tmp_path: Path) -> None:
    dataset = write_set(tmp_path, [square(1)])
    with pytest.raises(PiipError, match="results with label 3, but the data have 3 classes"):
        update(metric_of(dataset), dataset, {10: answer([10, 10, 60, 50], 0.9, label=3)})


def test_masks_are_kept_as_run_lengths_of_exactly_their_pixels(tmp_path: Path) -> None:
    dataset = write_set(tmp_path, [square(1)])
    metric = metric_of(dataset)
    masks = torch.from_numpy(np.random.default_rng(0).random((3, 31, 47)) > 0.5)
    result = {"boxes": torch.zeros(3, 4), "scores": torch.ones(3), "labels": torch.zeros(3, dtype=torch.int64)}
    update(metric, dataset, {10: result | {"masks": masks}})
    rles = mask_utils.encode(np.asfortranarray(masks.permute(1, 2, 0).numpy().astype(np.uint8)))
    assert metric._found[10][1].masks == rles
    # As they come from a model in evaluation.
    update(metric, dataset, {11: result | {"rles": rles}, 12: result})
    assert metric._found[11][1].masks == rles
    assert metric._found[12][1].masks is None


# Images by rank: one rank without any, and unequal shares.
SHARES = (((10, 13, 12, 11), ()), ((12,), (13, 10, 11)))


def _evaluate_shares(rank: int, folder: Path, port: int) -> None:
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    torch.distributed.init_process_group("gloo", rank=rank, world_size=2)
    dataset = CocoData(images=folder / "images", annotations=folder / "instances.json").build(training=False)
    results = guesses(crowded_scene())
    values = []
    for shares in SHARES:
        metric = metric_of(dataset)
        for image_id in shares[rank]:
            update(metric, dataset, {image_id: results[image_id]})
        metric.compute()  # the figures of its own share, which must not be taken for those of all
        metric.synchronize()
        values.append(metric.compute())
    (folder / f"{rank}.json").write_text(json.dumps(values))
    torch.distributed.destroy_process_group()


def test_uneven_and_empty_ranks_merge_to_the_figures_of_one_process(tmp_path: Path) -> None:
    annotations = crowded_scene()
    dataset = write_set(tmp_path, annotations)
    metric = metric_of(dataset)
    update(metric, dataset, guesses(annotations))
    metric.synchronize()  # without torch.distributed it changes nothing
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    torch.multiprocessing.spawn(_evaluate_shares, (tmp_path, port), nprocs=2)
    for rank in range(2):
        assert json.loads((tmp_path / f"{rank}.json").read_text()) == [metric.compute()] * 2
