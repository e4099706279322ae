"""Class tokens in a branch and the classifiers on top, against timm and against their definitions."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import timm
import torch
import torch.nn.functional as F
from timm.loss import LabelSmoothingCrossEntropy, SoftTargetCrossEntropy
from torch import Tensor, nn

from piip.branches.base import Tokens
from piip.branches.pretrained import load_pretrained
from piip.branches.vit.config import ViTConfig
from piip.config.experiment import Config, ModelConfig
from piip.config.load import load_config
from piip.data.batch import Batch
from piip.engine.state import RunState
from piip.errors import ConfigError
from piip.features import FeatureSpec
from piip.heads.classifier.config import ClassifierConfig
from piip.heads.classifier.head import Classifier
from piip.load import build_model
from piip.model import Model

SMALL = {"embed_dim": 32, "depth": 2, "num_heads": 2}
SPECS = [FeatureSpec(8, 16), FeatureSpec(12, 24)]


def config(token: str, *, classes: int = 7, **backbone: Any) -> ModelConfig:
    """Two branches with a class token each, at 64 and 48 pixels."""
    branches = [SMALL | {"class_token": True, "pretrain_size": 64}, SMALL | {"class_token": True, "pretrain_size": 48}]
    settings = {
        "branches": branches,
        "resolutions": [64, 48],
        "interactions": 2,
        "interaction": {"num_heads": 4},
        "merge": False,
    }
    head = {"type": "classifier", "num_classes": classes, "token": token}
    return ModelConfig.model_validate({"backbone": settings | backbone, "neck": {"type": "none"}, "head": head})


def model(token: str) -> Model:
    """With random gains, which at zero would hide what is behind them."""
    torch.manual_seed(0)
    built = build_model(config(token)).eval()
    for name, parameter in built.named_parameters():
        if name.endswith("gamma"):
            nn.init.normal_(parameter)
    return built


def batch(targets: list[dict[str, Tensor]]) -> Batch:
    images = torch.randn(len(targets), 3, 64, 64)
    sizes = [(64, 64)] * len(targets)
    return Batch(images, sizes, sizes, list(range(len(targets))), targets)


LABELS = [{"label": torch.tensor(3)}, {"label": torch.tensor(0)}]


def test_a_class_token_goes_through_the_blocks_as_timms_without_a_position(tmp_path: Path) -> None:
    settings = {"img_size": 64, "num_classes": 10, "no_embed_class": True, "init_values": 0.1, **SMALL}
    source = timm.create_model("vit_tiny_patch16_224", **settings).eval()
    for parameter in source.parameters():
        nn.init.normal_(parameter, std=0.1)
    torch.save({"model": source.state_dict()}, tmp_path / "vit.pth")
    classifier = Classifier(ClassifierConfig(num_classes=10, token="class"), [FeatureSpec(32, 16)])
    branch = ViTConfig(**SMALL, pretrain_size=64, class_token=True).build().eval()
    load_pretrained(branch, str(tmp_path / "vit.pth"), head=classifier.pretrained(0))
    images = torch.randn(2, 3, 64, 64)
    x = branch.run_blocks(branch.run_blocks(branch.embed(images), 0, 1), 1, 2)
    expected = source.blocks(source._pos_embed(source.patch_embed(images)))
    torch.testing.assert_close(x.prefix, expected[:, :1], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(x.map.flatten(1, 2), expected[:, 1:], rtol=1e-4, atol=1e-5)
    logits = classifier([x])
    torch.testing.assert_close(logits, source(images), rtol=1e-4, atol=1e-5)


def test_interactions_leave_class_tokens_alone_and_come_after_the_blocks() -> None:
    backbone = model("first_patch").backbone
    images = torch.randn(1, 3, 64, 64)
    found = backbone(images)
    assert [(tuple(x.map.shape), tuple(x.prefix.shape)) for x in found] == [
        ((1, 4, 4, 32), (1, 1, 32)),
        ((1, 3, 3, 32), (1, 1, 32)),
    ]
    small = F.interpolate(images, scale_factor=48 / 64, mode="bilinear")
    tokens = [branch.embed(image) for branch, image in zip(backbone.branches, (images, small), strict=True)]
    for group, interaction in enumerate(backbone.interactions):
        after = [b.run_blocks(x, group, group + 1) for b, x in zip(backbone.branches, tokens, strict=True)]
        exchanged = interaction([x.map for x in after])
        tokens = [Tokens(new, old.prefix) for new, old in zip(exchanged, after, strict=True)]
    for ours, expected in zip(found, tokens, strict=True):
        torch.testing.assert_close(ours.map, expected.map)
        torch.testing.assert_close(ours.prefix, expected.prefix)


def test_activation_checkpointing_with_a_class_token_changes_no_gradient() -> None:
    torch.manual_seed(0)
    plain = ViTConfig(**SMALL, pretrain_size=32, class_token=True).build()
    saving = ViTConfig(**SMALL, pretrain_size=32, class_token=True, checkpoint_activations=True).build()
    saving.load_state_dict(plain.state_dict())
    images = torch.randn(1, 3, 48, 32)
    for branch in (plain, saving):
        x = branch.run_blocks(branch.embed(images), 0, 2)
        (x.map.square().sum() + x.prefix.square().sum()).backward()
    for (name, a), b in zip(plain.named_parameters(), saving.parameters(), strict=True):
        torch.testing.assert_close(a.grad, b.grad, msg=name)
    assert plain.layer_of("cls_token") == 0


@pytest.mark.parametrize("token", ["first_patch", "class", "mean"])
def test_logits_are_the_mean_over_the_branches_of_each_ones_token(token: str) -> None:
    head = Classifier(ClassifierConfig(num_classes=5, token=token), SPECS)
    for parameter in head.parameters():
        nn.init.normal_(parameter)
    features = [Tokens(torch.randn(2, side, side, c), torch.randn(2, 1, c)) for side, c in ((4, 8), (3, 12))]
    expected = []
    for (grid, prefix), norm, linear in zip(features, head.norms, head.linears, strict=True):
        patches = F.layer_norm(grid.flatten(1, 2), grid.shape[3:], norm.weight, norm.bias, 1e-6)
        own = F.layer_norm(prefix[:, 0], grid.shape[3:], norm.weight, norm.bias, 1e-6)
        read = {"first_patch": patches[:, 0], "mean": patches.mean(1), "class": own}[token]
        expected.append(read @ linear.weight.T + linear.bias)
    logits = head.detect(features, [(64, 64)] * 2)
    torch.testing.assert_close(logits, (expected[0] + expected[1]) / 2)
    assert head.in_batch(logits, [(64, 64)] * 2) is logits


def test_losses_are_timms() -> None:
    features = [Tokens(torch.randn(2, 4, 4, 8)), Tokens(torch.randn(2, 3, 3, 12))]
    head = Classifier(ClassifierConfig(num_classes=5), SPECS)
    labels = [{"label": torch.tensor(4)}, {"label": torch.tensor(1)}]
    mixed = torch.rand(2, 5).softmax(dim=1)
    logits = head(features)
    found = head.loss(features, [(64, 64)] * 2, labels)["loss_cls"]
    torch.testing.assert_close(found, LabelSmoothingCrossEntropy(smoothing=0.0)(logits, torch.tensor([4, 1])))
    found = head.loss(features, [(64, 64)] * 2, [{"probabilities": image} for image in mixed])["loss_cls"]
    torch.testing.assert_close(found, SoftTargetCrossEntropy()(logits, mixed))


@pytest.mark.parametrize("token", ["first_patch", "class", "mean"])
def test_every_parameter_learns_whichever_token_is_read(token: str) -> None:
    """As DistributedDataParallel asks for: a network that reads class tokens has no interaction behind the last."""
    network = model(token).train()
    network.loss(batch(LABELS))["loss_cls"].backward()
    assert not [name for name, p in network.named_parameters() if p.grad is None or not p.grad.isfinite().all()]
    assert len(network.backbone.interactions) == (1 if token == "class" else 2)


@pytest.mark.parametrize("classes", [3, 9])
def test_results_name_all_classes_the_likeliest_first(classes: int) -> None:
    network = build_model(config("mean", classes=classes)).eval()
    found = batch(LABELS)
    logits = network.infer(found.images, found.image_sizes)
    assert logits.shape == (2, classes)
    for image, probabilities in zip(network.infer_batch(found), logits.softmax(dim=1), strict=True):
        best = probabilities.argsort(descending=True)
        assert image["labels"].equal(best)
        assert image["labels"].dtype == torch.int64
        torch.testing.assert_close(image["scores"], probabilities[best])


def test_logits_are_float32_under_autocast_and_near_those_without() -> None:
    network = model("class")
    found = batch(LABELS)
    exact = network.infer(found.images, found.image_sizes)
    with torch.autocast("cpu", torch.bfloat16):
        rounded = network.infer(found.images, found.image_sizes)
    assert rounded.dtype == torch.float32
    assert 0 < (rounded - exact).abs().max() < 0.05 * exact.std()


@pytest.mark.parametrize("merge", [True, "linear"])
def test_one_classifier_reads_the_mean_of_the_merged_map(merge: object) -> None:
    network = build_model(config("mean", merge=merge)).eval()
    found = batch(LABELS)
    (merged,) = network.backbone(found.images)
    expected = network.head.linears[0](network.head.norms[0](merged.flatten(2).transpose(1, 2)).mean(dim=1))
    torch.testing.assert_close(network.infer(found.images, found.image_sizes), expected)
    assert {"head.linears.0.weight", "head.norms.0.weight"} <= network.new_parameters()  # no branch brings them
    network.train()(found)["loss_cls"].backward()
    without = [name for name, p in network.named_parameters() if p.grad is None and not name.endswith("cls_token")]
    assert not without


TSB = "classification/piip_tsb_368_192_128"


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["model.backbone.merge=true"], "set backbone.merge: false and neck: {type: none}"),
        (["model.neck={type: fpn}"], "set backbone.merge: false and neck: {type: none}"),
        (["model.head={type: mask_rcnn}"], "backbone.merge: false is for head: {type: classifier}"),
        (
            ["model.head.token=class", "model.backbone.branches.1.class_token=false"],
            "set class_token: true in branch 1, or take head.token: mean",
        ),
        (["model.backbone.branches.1.window_size=14"], "a class token needs global attention"),
    ],
)
def test_parts_that_do_not_fit_are_refused_with_the_remedy(overrides: list[str], words: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load_config(TSB, overrides)
    assert words in str(caught.value)


def test_a_run_starts_from_the_pretrained_branches_and_their_classifiers(tmp_path: Path) -> None:
    """The position embedding of 64 pixels is brought to the branch's own size."""
    source = timm.create_model("vit_tiny_patch16_224", img_size=64, num_classes=7, **SMALL)
    torch.save({"model": source.state_dict()}, tmp_path / "vit.pth")
    network = config("first_patch").model_dump(mode="json")
    for branch in network["backbone"]["branches"]:
        branch |= {"init": str(tmp_path / "vit.pth"), "layer_scale": None}
    settings = load_config(TSB).model_dump(mode="json") | {"model": network}
    state = RunState(
        Config.model_validate(settings),
        device=torch.device("cpu"),
        root=tmp_path,
        class_names=list("abcdefg"),
        data={},
        epoch_length=1,
    )
    state.start()
    for index in range(2):
        branch = state.model.backbone.branches[index]
        assert branch.cls_token.equal(source.cls_token)
        assert branch.pos_embed.shape == (1, [16, 9][index], 32)
        assert state.model.head.norms[index].weight.equal(source.norm.weight)
        assert state.model.head.linears[index].weight.equal(source.head.weight)
    assert {group["name"].startswith("new_"): group["lr_scale"] for group in state.optimizer.param_groups} == {
        False: 1.0,
        True: 10.0,
    }
