"""The parts of DINO against sums done by hand: positions, matching, losses and denoising."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torchvision.ops import box_convert, generalized_box_iou

from piip.features import FeatureSpec
from piip.heads.deformable.maps import flatten
from piip.heads.dino.decoder import encode_boxes
from piip.heads.dino.denoising import Noise, add_noise, attention_mask, draw_noise, number_of_groups
from piip.heads.dino.losses import Matching, average_over_processes, losses
from piip.heads.dino.objects import Objects, gather_objects
from piip.heads.dino.predictions import Predictions, inverse_sigmoid
from piip.necks.config import ChannelMapperConfig

SIZES = [(70, 150), (96, 100)]  # in a batch of 96 x 160 pixels
CLASSES = 4


def objects() -> Objects:
    boxes = torch.tensor([[10.0, 10, 60, 50], [70, 20, 150, 70], [0, 0, 100, 96]])
    first = {"boxes": boxes[:2], "labels": torch.tensor([0, 3])}
    return gather_objects([first, {"boxes": boxes[2:], "labels": torch.tensor([1])}], SIZES)


def predictions(stages: int = 2, queries: int = 5) -> Predictions:
    torch.manual_seed(0)
    return Predictions(torch.randn(stages, 2, queries, CLASSES), torch.rand(stages, 2, queries, 4) * 0.5 + 0.2)


def wave(position: float, channel: int, channels: int, temperature: float) -> float:
    angle = 2 * math.pi * position / temperature ** (2 * (channel // 2) / channels)
    return math.cos(angle) if channel % 2 else math.sin(angle)


# --- maps ------------------------------------------------------------------------------------------------------------


def test_cells_outside_of_the_image_are_those_that_nearest_neighbour_resizing_of_its_mask_says() -> None:
    features = [torch.randn(2, 8, h, w) for h, w in ((12, 20), (6, 10), (3, 5), (2, 3))]
    maps = flatten(features, SIZES, stride=8, temperature=20)
    outside = torch.ones(2, 96, 160)
    for mask, (height, width) in zip(outside, SIZES, strict=True):
        mask[:height, :width] = 0
    start = 0
    for level, x in enumerate(features):
        expected = F.interpolate(outside[None], size=x.shape[2:])[0].bool()
        part = slice(start, start + maps.levels[level])
        assert torch.equal(maps.padding[:, part], expected.flatten(1))
        assert torch.equal(maps.tokens[:, part], x.flatten(2).transpose(1, 2))
        for image in range(2):
            rows, columns = (~expected[image]).any(1).sum().item(), (~expected[image]).any(0).sum().item()
            ratio = [columns / x.shape[3], rows / x.shape[2]]
            assert maps.ratios[image, level].tolist() == pytest.approx(ratio)
            centre = maps.centres[image, part].view(*x.shape[2:], 2)[1, 2].tolist()
            assert centre == pytest.approx([2.5 / columns, 1.5 / rows])
        start += maps.levels[level]
    assert maps.shapes == [tuple(x.shape[2:]) for x in features]


def test_positions_are_sines_of_row_and_column_within_the_image() -> None:
    maps = flatten([torch.zeros(1, 16, 4, 6)], [(24, 40)], stride=8, temperature=20)  # 3 x 5 cells are covered
    grid = maps.positions.view(4, 6, 16)
    for row, column in itertools.product(range(3), range(5)):
        expected = [wave((row + 1) / 3, c, 8, 20) for c in range(8)]
        expected += [wave((column + 1) / 5, c, 8, 20) for c in range(8)]
        assert grid[row, column].tolist() == pytest.approx(expected, abs=1e-5)


def test_boxes_are_encoded_as_sines_of_y_x_width_and_height() -> None:
    boxes = torch.tensor([[[0.1, 0.2, 0.3, 0.4]]])
    expected = [wave(number, c, 6, 10000) for number in (0.2, 0.1, 0.3, 0.4) for c in range(6)]
    assert encode_boxes(boxes, 6)[0, 0].tolist() == pytest.approx(expected, abs=1e-5)


def test_inverse_sigmoid_is_one_except_close_to_the_borders() -> None:
    x = torch.linspace(0.002, 0.998, 50)
    torch.testing.assert_close(inverse_sigmoid(x).sigmoid(), x)
    border = math.log(0.001 / 1)
    assert inverse_sigmoid(torch.tensor([-1.0, 0, 1, 2])).tolist() == pytest.approx([border, border, -border, -border])


def test_channel_mapper_normalises_each_map_and_makes_the_extra_ones_from_the_last_that_came_in() -> None:
    torch.manual_seed(0)
    neck = ChannelMapperConfig(out_channels=32, levels=4).build([FeatureSpec(6, 8), FeatureSpec(10, 16)])
    assert [tuple(spec) for spec in neck.specs] == [(32, 8), (32, 16), (32, 32), (32, 64)]
    features = [torch.randn(1, 6, 8, 12), torch.randn(1, 10, 4, 6)]
    maps = neck(features)

    def mapped(x: Tensor, layer: torch.nn.Sequential, stride: int) -> Tensor:
        weight = layer[0].weight
        y = F.conv2d(x, weight, stride=stride, padding=weight.shape[-1] // 2).view(1, 32, -1)
        # 32 groups of one channel
        return (y - y.mean(2, keepdim=True)) / (y.var(2, unbiased=False, keepdim=True) + 1e-5).sqrt()

    expected = [mapped(features[0], neck.convs[0], 1), mapped(features[1], neck.convs[1], 1)]
    expected += [mapped(features[1], neck.extra[0], 2), mapped(maps[2], neck.extra[1], 2)]
    for x, y in zip(maps, expected, strict=True):
        torch.testing.assert_close(x.flatten(2), y, rtol=1e-4, atol=1e-4)


# --- matching and losses ---------------------------------------------------------------------------------------------


def cost(predicted: Predictions, stage: int, image: int, query: int, index: int, truth: Objects) -> float:
    p = predicted.logits[stage, image, query, truth.labels[image, index]].sigmoid().item()
    cls = 0.25 * (1 - p) ** 2 * -math.log(p) - 0.75 * p**2 * -math.log(1 - p)
    box, target = predicted.boxes[stage, image, query], truth.boxes[image, index]
    distance = (box - target).abs().sum().item()
    corners = [box_convert(x[None], "cxcywh", "xyxy") for x in (box, target)]
    return 2 * cls + 5 * distance - 2 * generalized_box_iou(*corners).item()


def test_the_matching_is_the_cheapest_of_all() -> None:
    predicted, truth = predictions(), objects()
    matched = Matching(predicted, truth).solve()
    assert matched[:, 1, 1].tolist() == [-1, -1]  # the second image has one object
    for stage, image in itertools.product(range(2), range(2)):
        count = truth.counts[image]
        options = {
            queries: sum(cost(predicted, stage, image, query, index, truth) for index, query in enumerate(queries))
            for queries in itertools.permutations(range(5), count)
        }
        assert tuple(matched[stage, image, :count].tolist()) == min(options, key=options.__getitem__)


def test_of_more_objects_than_queries_the_rest_stays_without() -> None:
    matched = Matching(predictions(queries=1), objects()).solve()
    assert sorted(matched[0, 0].tolist()) == [-1, 0]


def test_predictions_that_are_not_numbers_leave_the_failure_to_the_loss() -> None:
    predicted, truth = predictions(), objects()
    predicted.boxes[0, 0, 1] = math.nan
    predicted.logits[1, 0] = math.nan
    matched = Matching(predicted, truth).solve()
    found = losses(predicted, matched, truth, torch.tensor(1.0))
    assert found["loss_cls"][1].isnan()
    assert found["loss_cls"][0].isfinite()


def test_losses_are_sums_over_queries_and_pairs_divided_by_the_number_of_objects() -> None:
    predicted, truth = predictions(), objects()
    matched = Matching(predicted, truth).solve()
    found = losses(predicted, matched, truth, torch.tensor(3.0))
    for stage in range(2):
        focal = distance = overlap = 0.0
        for image, query, label in itertools.product(range(2), range(5), range(CLASSES)):
            p = predicted.logits[stage, image, query, label].sigmoid().item()
            owned = [n for n in range(truth.counts[image]) if matched[stage, image, n] == query]
            hit = any(truth.labels[image, n] == label for n in owned)
            focal += 0.25 * (1 - p) ** 2 * -math.log(p) if hit else 0.75 * p**2 * -math.log(1 - p)
        for image in range(2):
            for index in range(truth.counts[image]):
                box, target = predicted.boxes[stage, image, matched[stage, image, index]], truth.boxes[image, index]
                distance += (box - target).abs().sum().item()
                corners = [box_convert(x[None], "cxcywh", "xyxy") for x in (box, target)]
                overlap += 1 - generalized_box_iou(*corners).item()
        expected = {"loss_cls": focal / 3, "loss_bbox": 5 * distance / 3, "loss_iou": 2 * overlap / 3}
        assert {name: values[stage].item() for name, values in found.items()} == pytest.approx(expected, rel=1e-4)


def test_counts_are_averaged_over_the_processes_and_at_least_one(monkeypatch: pytest.MonkeyPatch) -> None:
    device = torch.device("cpu")
    assert average_over_processes([6, 0], device).tolist() == [6, 1]
    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.distributed, "get_world_size", lambda: 4)
    monkeypatch.setattr(torch.distributed, "all_reduce", lambda values: values.add_(torch.tensor([10.0, 1])))
    assert average_over_processes([6, 0], device).tolist() == [4, 1]


# --- denoising -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("most", "groups"), [(0, 100), (1, 100), (3, 33), (60, 1), (200, 1)])
def test_groups_fill_the_denoising_queries(most: int, groups: int) -> None:
    boxes = torch.rand(most, 4).sort(dim=1).values
    truth = gather_objects([{"boxes": boxes, "labels": torch.zeros(most, dtype=torch.int64)}], [(10, 10)])
    assert number_of_groups(truth, 100) == groups


def test_one_copy_stays_within_half_a_box_and_the_other_leaves_it() -> None:
    noise = draw_noise((40, 2, 2), num_classes=CLASSES, label_noise=0.5, device=torch.device("cpu"))
    assert 0 <= noise.shift[::2].abs().min() <= noise.shift[::2].abs().max() <= 1
    assert 1 <= noise.shift[1::2].abs().min() <= noise.shift[1::2].abs().max() <= 2
    assert 0.4 < (noise.shift > 0).float().mean() < 0.6
    assert 0.15 < noise.flipped.float().mean() < 0.35
    assert set(noise.labels.unique().tolist()) == set(range(CLASSES))


def test_sides_move_by_their_share_of_half_the_box_and_stay_in_the_image() -> None:
    truth = objects()
    shift = torch.zeros(2, 2, 2, 4)
    shift[0, 0, 0] = torch.tensor([0.5, -0.5, 0.25, 0.0])
    shift[1, 0, 1] = torch.tensor([-2.0, -2.0, 2.0, 2.0])
    flipped = torch.zeros(2, 2, 2, dtype=torch.bool)
    flipped[0, 0, 1] = True
    found = add_noise(truth, Noise(flipped, torch.full((2, 2, 2), 2), shift), box_noise=0.8)
    width, height = 150, 70
    corners = box_convert(found.boxes[0], "cxcywh", "xyxy") * torch.tensor([width, height] * 2)
    assert corners[0].tolist() == pytest.approx([20, 2, 65, 50], abs=0.2)
    assert corners[1].tolist() == pytest.approx([70, 20, 150, 70], abs=0.2)
    assert corners[3].tolist() == pytest.approx([6, 0, 150, 70], abs=0.2)
    assert found.labels[0].tolist() == [0, 2, 0, 3]
    assert found.valid.tolist() == [[True] * 4, [True, False] * 2]
    assert found.positives.tolist() == [0, 1]


def test_each_query_sees_its_group_and_all_that_are_no_copies() -> None:
    noise = draw_noise((6, 2, 2), num_classes=CLASSES, label_noise=0.5, device=torch.device("cpu"))
    denoising = add_noise(objects(), noise, box_noise=1.0)
    mask = attention_mask(denoising, 3)
    assert mask.shape == (15, 15)
    for query, other in itertools.product(range(15), range(15)):
        sees = other >= 12 or (query < 12 and query // 4 == other // 4)
        assert mask[query, other].item() is not sees
    assert denoising.positives.tolist() == [0, 1, 4, 5, 8, 9]
