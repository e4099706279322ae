"""What a COCO data set hands to training and evaluation."""

from __future__ import annotations

import logging
from collections.abc import Callable

import numpy as np
import pytest
import torch
from PIL import Image
from pycocotools import mask as mask_utils

from piip.data.sets.base import check_classes, check_same_classes, check_targets
from piip.data.sets.coco.config import CocoData
from piip.data.sets.instances.dataset import InstanceDataset
from piip.errors import ConfigError, DataError
from tests.data.sets.coco.coco_set import Coco
from tests.metrics.perfect import score_of_truth

Find = Callable[[InstanceDataset, int], int]


def test_gapped_category_ids_become_labels_in_ascending_order(coco: Coco, index_of: Find) -> None:
    dataset = coco.load()
    assert dataset.class_names == ["apple", "cat", "zebra"]
    assert dataset.category_ids == [4, 17, 90]
    assert dataset.target(index_of(dataset, 7))["labels"].tolist() == [1, 2]
    assert dataset.target(index_of(dataset, 3))["labels"].tolist() == [0]


def test_boxes_become_corners(coco: Coco, index_of: Find) -> None:
    dataset = coco.load()
    target = dataset.target(index_of(dataset, 7))
    assert target["boxes"].tolist() == [[10, 5, 30, 35], [40, 10, 50, 20]]
    assert target["boxes"].dtype == torch.float32
    assert target["labels"].dtype == torch.int64


def test_polygons_become_masks(coco: Coco, index_of: Find) -> None:
    dataset = coco.load()
    masks = dataset.target(index_of(dataset, 7))["masks"]
    square = torch.zeros(40, 60, dtype=torch.uint8)
    square[5:35, 10:30] = 1
    assert masks.dtype == torch.uint8
    assert torch.equal(masks[0], square)
    # A right triangle of 10 x 10: half of its box, within the pixels of the hypotenuse.
    assert masks[1, 10:20, 40:50].sum() == masks[1].sum()
    assert abs(int(masks[1].sum()) - 50) <= 10


def test_polygons_in_several_parts_are_united(coco: Coco, index_of: Find) -> None:
    left, right = [8, 8, 12, 8, 12, 24, 8, 24], [10, 8, 24, 8, 24, 24, 10, 24]
    coco.annotate({"segmentation": [left, right]})
    dataset = coco.load()
    expected = torch.zeros(1, 64, 64, dtype=torch.uint8)
    expected[0, 8:24, 8:24] = 1
    assert torch.equal(dataset.target(index_of(dataset, 12))["masks"], expected)


def test_plain_and_compressed_run_lengths_become_masks(coco: Coco, index_of: Find) -> None:
    mask = np.random.default_rng(0).integers(0, 2, (64, 64), dtype=np.uint8)
    flat = mask.T.reshape(-1)  # run lengths go down the columns and begin with zeros
    edges = np.flatnonzero(np.diff(flat)) + 1
    counts = np.diff([0, *edges, flat.size]).tolist()
    counts = [0, *counts] if flat[0] else counts
    compressed = mask_utils.encode(np.asfortranarray(mask))["counts"].decode()
    coco.annotate({"segmentation": {"size": [64, 64], "counts": counts}})
    coco.annotate({"id": 101, "segmentation": {"size": [64, 64], "counts": compressed}})
    dataset = coco.load()
    masks = dataset.target(index_of(dataset, 12))["masks"]
    assert torch.equal(masks[0], torch.from_numpy(mask))
    assert torch.equal(masks[1], torch.from_numpy(mask))


def test_crowds_and_ignored_objects_are_regions_not_targets(coco: Coco, index_of: Find) -> None:
    coco.annotation(2)["ignore"] = 1
    dataset = coco.load()
    crowded = dataset.target(index_of(dataset, 3))
    assert crowded["boxes"].tolist() == [[0, 0, 4, 50]]
    assert crowded["crowd_boxes"].tolist() == [[10, 0, 20, 50]]
    ignored = dataset.target(index_of(dataset, 7))
    assert ignored["boxes"].tolist() == [[10, 5, 30, 35]]
    assert ignored["crowd_boxes"].tolist() == [[40, 10, 50, 20]]
    assert {image_id: dataset.truth(index_of(dataset, image_id))["crowd"].tolist() for image_id in (3, 7)} == {
        3: [False, True],
        7: [False, False],
    }


def test_training_leaves_out_empty_and_small_images_and_evaluation_none(
    coco: Coco, caplog: pytest.LogCaptureFixture
) -> None:
    def ids(dataset: InstanceDataset) -> list[int]:
        return [dataset.record(index).id for index in range(len(dataset))]

    with caplog.at_level(logging.INFO):
        trained = coco.load()
    assert ids(trained) == [3, 7]
    assert trained.report.of("left out") == {"image without annotations left out of training": 1}
    assert [record.levelname for record in caplog.records] == ["INFO"]  # routine, nothing to worry about
    assert ids(coco.load(keep_empty=True)) == [3, 7, 12]
    assert ids(coco.load(keep_empty=True, min_side=40)) == [7, 12]
    assert ids(coco.load(training=False, min_side=40)) == [3, 7, 12]


def test_a_set_with_nothing_to_train_on_is_an_error(coco: Coco) -> None:
    with pytest.raises(
        DataError, match=r"none of the 3 images can be trained on.*1000 pixels.*data\.train\.keep_empty"
    ):
        coco.load(min_side=1000)


def test_an_empty_image_has_empty_targets(coco: Coco, index_of: Find) -> None:
    dataset = coco.load(training=False)
    target = dataset.target(index_of(dataset, 12))
    assert {key: tuple(value.shape) for key, value in target.items()} == {
        "boxes": (0, 4),
        "labels": (0,),
        "masks": (0, 64, 64),
        "crowd_boxes": (0, 4),
    }


def test_a_set_without_segmentations_has_boxes_only_and_mask_heads_are_refused(coco: Coco, index_of: Find) -> None:
    check_targets(frozenset({"boxes", "masks"}), coco.load())
    for entry in coco.data["annotations"]:
        del entry["segmentation"], entry["area"]
    dataset = coco.load()
    assert not dataset.has_masks
    assert dataset.report.of("left out").keys() == {"image without annotations left out of training"}
    target = dataset.target(index_of(dataset, 7))
    assert "masks" not in target
    assert len(target["boxes"]) == 2
    assert [dataset.truth(index)["areas"].tolist() for index in range(2)] == [[200, 500], [600, 100]]
    with pytest.raises(DataError, match=rf"{coco.file} has boxes, labels, but this model's head learns from masks too"):
        check_targets(frozenset({"boxes", "masks"}), dataset)
    assert set(score_of_truth(dataset)) == {
        "box_ap",
        "box_ap50",
        "box_ap75",
        "box_ap_small",
        "box_ap_medium",
        "box_ap_large",
    }


def test_a_missing_area_is_that_of_the_mask(coco: Coco) -> None:
    for entry in coco.data["annotations"]:
        del entry["area"]
    dataset = coco.load()
    assert [dataset.truth(index)["areas"].tolist() for index in range(2)] == [
        [200, 500],
        [600, pytest.approx(50, abs=10)],
    ]


def test_an_item_holds_image_id_and_target(coco: Coco, index_of: Find) -> None:
    dataset = coco.load()
    index = index_of(dataset, 7)
    item = dataset[index]
    stored = np.asarray(Image.open(coco.images / "7.png"))
    assert torch.equal(item["image"], torch.from_numpy(stored.copy()).permute(2, 0, 1))
    assert item["image_id"] == 7
    assert item["target"].keys() == {"boxes", "labels", "masks", "crowd_boxes"}


def test_images_of_another_size_than_annotated_are_named_before_the_first_is_read(coco: Coco) -> None:
    Image.new("RGB", (61, 40)).save(coco.images / "7.png")
    coco.data["images"][1]["height"] = 51
    with pytest.raises(DataError) as error:
        coco.load()
    assert str(error.value).splitlines()[1:4] == [
        "  2 x image of another size than annotated:",
        f"    image {coco.images}/3.png has 36 x 50 pixels, but by {coco.file} it should have 36 x 51",
        f"    image {coco.images}/7.png has 61 x 40 pixels, but by {coco.file} it should have 60 x 40",
    ]
    coco.data["images"][1]["height"] = 50
    Image.new("RGB", (40, 60)).save(coco.images / "7.png")
    with pytest.raises(DataError, match="without the image's EXIF rotation"):
        coco.load()


def test_class_counts_that_differ_are_a_config_error_with_the_remedy(coco: Coco) -> None:
    dataset = coco.load()
    check_classes(3, dataset)
    with pytest.raises(ConfigError) as error:
        check_classes(80, dataset)
    assert str(error.value) == (
        f"model.head.num_classes is 80, but {coco.file} has 3 classes (apple, cat, zebra); set model.head.num_classes=3"
    )


def test_training_and_evaluation_must_number_their_classes_alike(coco: Coco) -> None:
    train = coco.load()
    check_same_classes(train, coco.load(training=False))
    coco.data["categories"].append({"id": 91, "name": "yak"})
    with pytest.raises(DataError, match=r"class 3 is missing in .* and 'yak' in .*; give both the same categories"):
        check_same_classes(train, coco.load())
    coco.data["categories"][-1]["id"] = 1
    with pytest.raises(DataError, match=r"class 0 is 'apple' in .* and 'yak' in"):
        check_same_classes(train, coco.load())


@pytest.mark.parametrize("backend", ["faster", "pycocotools"])
def test_ground_truth_as_prediction_gives_ap_1(coco: Coco, backend: str) -> None:
    # Clipped in training, whole in evaluation.
    coco.annotate({"bbox": [50, -3, 30, 16], "segmentation": [[50, 0, 64, 0, 64, 13, 50, 13]]})
    tiny = {"bbox": [30, 30, 0.5, 3], "segmentation": [[30, 30, 31, 30, 31, 33, 30, 33]]}
    coco.annotate({"id": 0, **tiny})  # an id that COCO's matching takes for "no match"
    values = score_of_truth(coco.load(training=False), backend=backend)
    assert {name: value for name, value in values.items() if value not in (1, None)} == {}
    assert values["box_ap"] == values["mask_ap"] == 1


def test_without_masks_a_set_gives_boxes_and_is_scored_by_them(coco: Coco, index_of: Find) -> None:
    coco.write()
    config = CocoData(images=coco.images, annotations=coco.file, min_side=1, masks=False)
    dataset, whole = config.build(training=False), coco.load(training=False)
    for index in range(len(whole)):
        expected = whole.target(index)
        assert {name: value.tolist() for name, value in dataset.target(index).items()} == {
            name: value.tolist() for name, value in expected.items() if name != "masks"
        }
    assert "masks" in whole.target(index_of(whole, 7))
    figures = score_of_truth(dataset)
    assert figures["box_ap"] == 1
    assert not any(name.startswith("mask") for name in figures)
    for index in range(len(whole)):
        given, expected = dataset.truth(index), whole.truth(index)
        assert "rles" not in given
        assert all(np.array_equal(given[name], expected[name]) for name in ("xywh", "labels", "areas", "crowd"))
