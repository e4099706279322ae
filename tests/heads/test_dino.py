"""The whole DINO head: what must not change its predictions, what learns from what, and what it returns."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from piip.config.experiment import ModelConfig
from piip.errors import ConfigError
from piip.features import FeatureSpec
from piip.flops.actual import actual_count
from piip.heads.dino.config import DINOConfig
from piip.heads.dino.denoising import add_noise, draw_noise
from piip.heads.dino.head import DINO
from piip.heads.dino.objects import gather_objects

STRIDES = (8, 16, 32, 64)
CLASSES = 3
SIZES = [(128, 192), (64, 128)]  # valid sizes in a batch of 128 x 192 pixels; whole cells of every map


def build(**settings: int | bool) -> DINO:
    torch.manual_seed(0)
    small = {
        "num_classes": CLASSES, "num_queries": 12, "encoder_layers": 2, "decoder_layers": 3, "num_heads": 4,
        "ffn_dim": 32, "denoising_queries": 6, "max_detections": 10,
    }  # fmt: skip
    head = DINO(DINOConfig(**small | settings), [FeatureSpec(32, stride) for stride in STRIDES])
    # Larger weights than fresh ones, for predictions that differ from each other.
    for name, parameter in head.named_parameters():
        if "reg.4" in name or "sampling_offsets.weight" in name or "attention_weights.weight" in name:
            torch.nn.init.normal_(parameter, std=0.2)
        if name.endswith("cls.weight"):
            torch.nn.init.normal_(parameter, std=0.5)
    return head.eval()


def features(canvas: tuple[int, int], batch: int = 2) -> list[Tensor]:
    torch.manual_seed(1)
    return [torch.randn(batch, 32, canvas[0] // stride, canvas[1] // stride) for stride in STRIDES]


def targets() -> list[dict[str, Tensor]]:
    boxes = torch.tensor([[20.0, 20, 80, 100], [100, 30, 180, 90], [5, 5, 25, 25]])
    two = {"boxes": boxes[:2], "labels": torch.tensor([0, 2])}
    return [two, {"boxes": boxes[2:], "labels": torch.tensor([1])}]


def nothing() -> dict[str, Tensor]:
    return {"boxes": torch.zeros(0, 4), "labels": torch.zeros(0, dtype=torch.int64)}


def assert_same(found: list[dict[str, Tensor]], expected: list[dict[str, Tensor]]) -> None:
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one["boxes"], other["boxes"], rtol=1e-4, atol=1e-3)
        torch.testing.assert_close(one["scores"], other["scores"], rtol=1e-4, atol=1e-5)
        assert torch.equal(one["labels"], other["labels"])


def padded(maps: list[Tensor], value: float) -> list[Tensor]:
    """The maps on a canvas of 192 x 320 pixels, with a value in all cells outside of the images."""
    larger = [torch.nn.functional.pad(x, (0, 128 // s, 0, 64 // s), value=value) for s, x in zip(STRIDES, maps)]
    for stride, x in zip(STRIDES, larger):
        for image, (height, width) in zip(x, SIZES):
            image[:, height // stride :] = value
            image[:, :, width // stride :] = value
    return larger


@torch.no_grad()
def test_what_lies_in_the_padding_changes_nothing() -> None:
    head, maps = build(), features((128, 192))
    assert_same(head.detect(padded(maps, 50.0), SIZES), head.detect(padded(maps, -1.0), SIZES))


@torch.no_grad()
def test_the_encoder_proposes_the_same_whatever_the_padding() -> None:
    """The decoder does not share this: as released, it encodes boxes relative to the padded batch."""
    head, maps = build(), features((128, 192))
    expected, found = (head.stages(x, SIZES).proposals for x in (maps, padded(maps, 3.0)))
    torch.testing.assert_close(found.logits, expected.logits, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(found.boxes, expected.boxes, rtol=1e-4, atol=1e-4)


@torch.no_grad()
def test_images_of_a_batch_do_not_know_of_each_other() -> None:
    head, maps = build(), features((128, 192))
    alone = [head.detect([x[i : i + 1] for x in maps], SIZES[i : i + 1])[0] for i in range(2)]
    assert_same(head.detect(maps, SIZES), alone)


@torch.no_grad()
def test_denoising_changes_nothing_for_the_other_queries() -> None:
    head, maps = build(), features((128, 192))
    noise = draw_noise((6, 2, 2), num_classes=CLASSES, label_noise=0.5, device=torch.device("cpu"))
    denoising = add_noise(gather_objects(targets(), SIZES), noise, box_noise=1.0)
    plain, noisy = head.stages(maps, SIZES), head.stages(maps, SIZES, denoising)
    for name, x, y in zip(plain.predictions._fields, plain.predictions, noisy.predictions, strict=True):
        torch.testing.assert_close(y[:, :, 12:], x, rtol=1e-4, atol=1e-5, msg=name)


@torch.no_grad()
def test_a_group_of_denoising_queries_does_not_see_another() -> None:
    head, maps, objects = build(), features((128, 192)), gather_objects(targets(), SIZES)
    noise = draw_noise((6, 2, 2), num_classes=CLASSES, label_noise=0.5, device=torch.device("cpu"))
    changed = noise._replace(shift=noise.shift.clone())
    changed.shift[2:] += 0.3  # of all groups but the first
    first, second = (
        head.stages(maps, SIZES, add_noise(objects, n, box_noise=1.0)).predictions.logits for n in (noise, changed)
    )
    torch.testing.assert_close(second[:, :, :4], first[:, :, :4], rtol=1e-4, atol=1e-5)
    assert (second[:, 0, 4:12] - first[:, 0, 4:12]).abs().amax() > 1e-3


def test_losses_have_the_released_names_and_every_parameter_learns_whatever_the_images_hold() -> None:
    for case in (targets(), [targets()[0], nothing()], [nothing(), nothing()]):
        head = build().train()
        losses = head.loss(features((128, 192)), SIZES, case)
        kinds = [f"{part}loss_{name}" for part in ("", "dn_") for name in ("cls", "bbox", "iou")]
        named = {f"{layer}{kind}" for layer in ("", "d0.", "d1.") for kind in kinds}
        assert losses.keys() == named | {f"interm_loss_{name}" for name in ("cls", "bbox", "iou")}
        assert all(value.isfinite() and value.dim() == 0 for value in losses.values())
        sum(losses.values()).backward()
        assert [name for name, parameter in head.named_parameters() if parameter.grad is None] == []


def test_images_may_hold_more_objects_than_there_are_queries() -> None:
    boxes = torch.rand(20, 4).sort(dim=1).values * 100
    crowded = {"boxes": boxes, "labels": torch.zeros(20, dtype=torch.int64)}
    losses = build().loss(features((128, 192)), SIZES, [crowded, targets()[1]])
    assert all(value.isfinite() for value in losses.values())


@torch.no_grad()
def test_maps_may_have_fewer_cells_than_there_are_queries() -> None:
    found = build(num_queries=30).detect(features((64, 64), batch=1), [(40, 64)])
    head = build(num_queries=500, max_detections=400)
    assert head.stages(features((64, 64), batch=1), [(64, 64)]).predictions.logits.shape == (3, 1, 85, CLASSES)
    assert len(head.detect(features((64, 64), batch=1), [(64, 64)])[0]["scores"]) == 85 * CLASSES
    assert len(found[0]["scores"]) == 10


def test_the_loss_of_a_layers_boxes_reaches_the_layer_before_and_none_further() -> None:
    head = build()
    boxes = head.stages(features((128, 192)), SIZES).predictions.boxes
    moved = [predictor.reg[4].bias for predictor in head.decoder.predictors]
    for layer, reached in enumerate(([0], [0, 1], [1, 2])):
        grads = torch.autograd.grad(boxes[layer].sum(), moved, retain_graph=True, allow_unused=True)
        assert [index for index, grad in enumerate(grads) if grad is not None and grad.any()] == reached


def test_recomputing_activations_changes_no_gradient() -> None:
    gradients = []
    for checkpoint in (False, True):
        head = build(checkpoint_activations=checkpoint).train()
        torch.manual_seed(2)
        sum(head.loss(features((128, 192)), SIZES, targets()).values()).backward()
        gradients.append({name: parameter.grad for name, parameter in head.named_parameters()})
    for name, grad in gradients[0].items():
        torch.testing.assert_close(gradients[1][name], grad, msg=name)


def test_under_autocast_layers_run_in_bfloat16_and_predictions_in_float32() -> None:
    head, maps = build(), features((128, 192))
    torch.manual_seed(2)
    expected = head.loss(maps, SIZES, targets())
    dtypes: dict[str, set[torch.dtype]] = {"layers": set(), "predict": set(), "proposer": set()}
    for name, module in head.named_modules():
        part = next((part for part in dtypes if part in name), None)
        if part is not None and isinstance(module, torch.nn.Linear) and "self_attn" not in name:
            module.register_forward_hook(lambda _, __, out, part=part: dtypes[part].add(out.dtype))
    torch.manual_seed(2)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        losses = head.loss(maps, SIZES, targets())
        (result, _) = head.detect(maps, SIZES)
    assert dtypes == {"layers": {torch.bfloat16}, "predict": {torch.float32}, "proposer": {torch.float32}}
    assert {value.dtype for value in losses.values()} == {torch.float32}
    assert (result["boxes"].dtype, result["scores"].dtype) == (torch.float32, torch.float32)
    total, reference = (sum(value.item() for value in values.values()) for values in (losses, expected))
    assert total == pytest.approx(reference, rel=0.1)


@torch.no_grad()
def test_detections_are_the_best_classes_of_the_last_layer_in_pixels() -> None:
    head, maps = build(), features((128, 192))
    logits, boxes = (x[-1] for x in head.stages(maps, SIZES).predictions)
    for image, (found, (height, width)) in enumerate(zip(head.detect(maps, SIZES), SIZES, strict=True)):
        ranked = sorted(
            ((logits[image, q, c].sigmoid().item(), q, c) for q in range(12) for c in range(CLASSES)), reverse=True
        )
        for row, (score, query, label) in enumerate(ranked[:10]):
            assert found["scores"][row].item() == pytest.approx(score)
            assert found["labels"][row].item() == label
            x, y, w, h = boxes[image, query].tolist()
            corners = [(x - w / 2) * width, (y - h / 2) * height, (x + w / 2) * width, (y + h / 2) * height]
            clipped = [min(max(v, 0), limit) for v, limit in zip(corners, (width, height) * 2, strict=True)]
            assert found["boxes"][row].tolist() == pytest.approx(clipped, abs=1e-3)


def test_restoring_scales_to_the_original_pixels() -> None:
    outputs = [{"boxes": torch.tensor([[8.0, 4, 64, 128]]), "scores": torch.ones(1), "labels": torch.zeros(1)}]
    (result,) = build().restore(outputs, [(128, 64)], [(64, 16)])
    assert result["boxes"].tolist() == [[2.0, 2.0, 16.0, 64.0]]
    assert result.keys() == {"boxes", "scores", "labels"}


def test_levels_of_unlike_or_unsuitable_width_are_refused() -> None:
    for specs in ([FeatureSpec(32, 8), FeatureSpec(64, 16)], [FeatureSpec(30, 8)]):
        with pytest.raises(ConfigError, match="DINO needs levels of one width, as from a channel_mapper neck"):
            DINO(DINOConfig(), specs)


def test_actual_count_of_encoder_and_decoder_is_the_sum_of_their_matrix_products() -> None:
    """A single branch of stride 16 on 128 x 64 pixels: maps of 16 x 8, 8 x 4, 4 x 2 and 2 x 1 cells."""
    dim, ffn, points, levels, queries, cells = 32, 48, 2, 4, 10, 128 + 32 + 8 + 2
    settings = {"num_queries": queries, "encoder_layers": 2, "decoder_layers": 3, "num_heads": 4, "points": points}
    config = {
        "backbone": {
            "branches": [{"embed_dim": 32, "depth": 1, "num_heads": 1}],
            "resolutions": [128],
            "interactions": 1,
            "finest_level": False,
        },
        "neck": {"type": "channel_mapper", "out_channels": dim},
        "head": {"type": "dino", "num_classes": 5, "ffn_dim": ffn, **settings},
    }
    counted = actual_count(ModelConfig.model_validate(config), (128, 64))
    assert counted.uncounted == ()
    cost = {part.name: part.cost.macs for part in counted.parts}
    samples = 4 * levels * points
    attention = dim * 3 * samples + dim * dim + 5 * samples * dim // 4  # offsets and weights, output, sampling
    feed_forward = 2 * dim * ffn
    assert cost["encoder head"] == 2 * cells * (dim * dim + attention + feed_forward)
    among_themselves = 4 * dim * dim + 2 * queries * dim
    predictor = 2 * (2 * dim * dim + 4 * dim) + dim * 5  # the box layers run twice
    per_query = among_themselves + attention + feed_forward + 2 * dim * dim + dim * dim + predictor
    assert cost["decoder head"] == 3 * (queries * per_query + cells * dim * dim)
    assert cost["proposer head"] == cells * (dim * dim + 5 * dim) + queries * (2 * dim * dim + 4 * dim)
