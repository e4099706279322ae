"""What a config inherits, and what the command line overrides."""

from __future__ import annotations

import pytest
import torch

from piip.branches.hierarchical.config import ConvNeXtConfig
from piip.config.load import config_dir, load_config, shipped_configs
from piip.heads.dino.config import DINOConfig
from tests.config.cases import CONVNEXT, DINO, MINIMAL, SHAPES, TSB, UPERNET, message

# --- inheritance -----------------------------------------------------------------------------------------------------


def test_a_base_is_merged_key_by_key_and_lists_are_replaced(write):
    write(MINIMAL + "optim: {lr: 0.5, weight_decay: 0.25}", "base/common.yaml")
    path = write(
        "base: ../base/common.yaml\noptim: {lr: 0.125}\nmodel: {backbone: {resolutions: [96, 48]}}", "exp/run.yaml"
    )
    config = load_config(path)
    assert (config.optim.lr, config.optim.weight_decay) == (0.125, 0.25)
    assert config.model.backbone.resolutions == (96, 48)
    assert len(config.model.backbone.branches) == 2


def test_of_several_bases_the_later_wins_and_the_file_itself_wins_over_all(write):
    write(MINIMAL + "train: {seed: 1, log_every: 1, keep_checkpoints: 1}", "a.yaml")
    write("train: {seed: 2, log_every: 2}", "b.yaml")
    config = load_config(write("base: [a.yaml, b.yaml]\ntrain: {seed: 3}"))
    assert (config.train.seed, config.train.log_every, config.train.keep_checkpoints) == (3, 2, 1)


def test_name_official_and_published_are_not_inherited(write):
    write(MINIMAL + "name: first\nofficial: some_file\npublished: {model: PIIP}", "a.yaml")
    config = load_config(write("base: a.yaml", "second.yaml"))
    assert (config.name, config.official, config.published) == ("second", None, None)


def test_a_mapping_of_another_type_replaces_the_inherited_one(write):
    write(MINIMAL, "a.yaml")
    config = load_config(write("base: a.yaml\ndata: {val: {type: coco, images: here, annotations: there.json}}"))
    assert config.data.val.type == "coco"
    assert config.data.train.type == "shapes"


@pytest.mark.parametrize(
    ("part", "read"),
    [
        ("model: {head: {type: mask_rcnn, num_classes: 7}}", lambda c: c.model.head.fc_channels),
        ("model: {neck: {type: fpn, levels: 4}}", lambda c: c.model.neck.out_channels),
        ("data: {train_transforms: {type: detection, flip: 0.1}}", lambda c: c.data.train_transforms.resize),
        ("data: {val: {type: shapes, seed: 7}}", lambda c: c.data.val.size),
    ],
)
def test_naming_the_type_that_the_base_means_keeps_its_settings(write, part, read):
    # The base leaves these types unspoken, but for that of the data, which has no default.
    assert read(load_config(write(f"base: {SHAPES}\n{part}"))) == read(load_config(SHAPES))


def test_a_base_that_leaves_a_type_without_a_default_to_others_keeps_its_settings(write):
    first, second = (
        load_config(write(f"base: [{bases}]\nmodel: {{backbone: {{resolutions: [1568, 1120, 672]}}}}\n"
                          "data: {train_transforms: {resize: [[9, 9]]}, val_transforms: {resize: [[9, 9]]}}"))
        for bases in ("base/piip_tsb, base/coco_1x, base/dino", "base/piip_tsb, base/dino, base/coco_1x")
    )  # fmt: skip
    assert not first.data.train.masks
    assert first.data.train == second.data.train


def test_a_type_on_the_command_line_replaces_what_files_say_and_nothing_else_does():
    other = load_config(SHAPES, ["model.head.num_classes=7", "model.head.type=dino", "model.neck.type=channel_mapper"])
    assert other.model.head == DINOConfig(num_classes=7)
    assert load_config(SHAPES, ["model.head.type=mask_rcnn"]) == load_config(SHAPES)
    text = message(load_config, UPERNET, ["data.train.type=coco"])
    assert {line.split(": ")[0] for line in text.splitlines()} == {"command line"}


MIX = "[{type: convnext, model: convnext_tiny}, {size: B, drop_path: 0.1}]"


@pytest.mark.parametrize("base", sorted(name for name in shipped_configs() if name.startswith("detection/")))
def test_a_mix_of_convnext_and_vit_takes_any_shipped_detector_as_its_base(write, base):
    inherited, finest = load_config(base).model.backbone, 1024
    path = write(f"base: {base}\nmodel: {{backbone: {{branches: {MIX}, resolutions: [{finest}, 512], interactions: 12, "
                 "outputs: []}}")  # fmt: skip
    convnext, vit = load_config(path).model.backbone.branches
    shared = convnext.model_dump(include={"drop_path", "checkpoint_activations"})
    assert convnext == ConvNeXtConfig(model="convnext_tiny", **shared)
    assert vit.embed_dim == 768
    windows = {branch.window_size for branch in inherited.branches if branch.type == "vit"}
    # What every branch of the base shares, the ViT has from it too.
    assert base != TSB or {vit.window_size} == windows == {14}


@pytest.mark.parametrize("base", [TSB, CONVNEXT, DINO, "detection/mask_rcnn_piip_h6b_1024_512_speedup"])
def test_such_a_mix_can_be_built(write, base):
    from piip.load import build_model

    path = write(f"base: {base}\nmodel: {{backbone: {{branches: {MIX}, resolutions: [1024, 512], interactions: 12, "
                 "outputs: []}}")  # fmt: skip
    with torch.device("meta"):
        model = build_model(load_config(path).model)
    assert [type(branch).__name__ for branch in model.backbone.branches] == ["Hierarchical", "ViT"]


@pytest.mark.parametrize("key", ["window_size: 14", "window_sise: 14"])
def test_a_setting_of_every_branch_that_the_file_itself_sets_is_never_left_out(write, key):
    path = write(f"base: {TSB}\nmodel: {{backbone: {{branches: {MIX}, every_branch: {{{key}}}, resolutions: [9, 6]}}}}")
    name = key.split(":")[0]
    assert message(load_config, path).startswith(f"{path}: model.backbone.every_branch.{name}: unknown key '{name}'; ")
    # Nor is a misspelt one of a base, which no type has.
    child = write(f"base: {path}", "child.yaml")
    if name == "window_sise":
        assert "window_sise" in message(load_config, child)
    else:
        assert [getattr(branch, name, None) for branch in load_config(child).model.backbone.branches] == [None, 14]


def test_a_mistake_in_a_base_is_reported_with_the_file_that_made_it(write):
    base = write(MINIMAL + "optim: {lr: fast}", "a.yaml")
    child = write("base: a.yaml\noptim: {weight_decay: -1}", "b.yaml")
    lines = message(load_config, child).splitlines()
    assert {line.split(": ")[0] for line in lines} == {str(base), str(child)}


def test_a_base_may_be_a_shipped_config_by_name(write):
    path = write(f"base: {UPERNET}\nmodel: {{head: {{num_classes: 4}}}}")
    shipped, config = load_config(UPERNET), load_config(path)
    assert config.model.head == shipped.model.head.model_copy(update={"num_classes": 4})
    assert config.model.backbone == shipped.model.backbone
    assert (config.data, config.schedule, config.name) == (shipped.data, shipped.schedule, "experiment")


def test_a_base_may_be_a_building_block_by_name(write):
    path = write("base: [base/piip_tsb, base/ade20k_80k]\nmodel: {backbone: {resolutions: [512, 448, 336]}}")
    files = write(f"base: [{config_dir()}/base/piip_tsb.yaml, {config_dir()}/base/ade20k_80k.yaml]\n"
                  "model: {backbone: {resolutions: [512, 448, 336]}}", "other/experiment.yaml")  # fmt: skip
    assert load_config(path) == load_config(files)


def test_a_base_relative_to_the_file_wins_over_a_shipped_name(write):
    write(MINIMAL, "base/coco_1x")
    assert load_config(write("base: base/coco_1x")).schedule.iterations == 2


@pytest.mark.parametrize(
    ("base", "remedy"),
    [
        ("../base/ade20k_80k.yaml", "did you mean 'base/ade20k_80k'?"),
        ("piip_tsb.yaml", "did you mean 'base/piip_tsb'?"),
        ("../segmentation/upernet_piip_tsb_512_448_336.yaml", f"did you mean '{UPERNET}'?"),
        ("nowhere.yaml", f"the shipped ones are those in {config_dir()}"),
    ],
)
def test_an_unknown_base_is_named_with_the_nearest_shipped_name_or_where_to_look(write, base, remedy):
    path = write(f"base: {base}")
    text = message(load_config, path)
    assert text == f"{path}: base '{base}' is neither a file relative to this one nor a shipped name; {remedy}"


def test_bases_that_lead_back_are_reported_as_a_chain(write):
    write("base: b.yaml", "a.yaml")
    path = write("base: a.yaml", "b.yaml")
    text = message(load_config, path)
    assert "'base' leads back to itself" in text
    assert "b.yaml -> a.yaml -> b.yaml" in text


# --- overrides -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("override", "read", "expected"),
    [
        ("optim.lr=1e-4", lambda c: c.optim.lr, 1e-4),
        ("optim.lr=0.5", lambda c: c.optim.lr, 0.5),
        ("train.ema=0.999", lambda c: c.train.ema, 0.999),
        ("optim.clip_grad_norm=null", lambda c: c.optim.clip_grad_norm, None),
        ("model.backbone.resolutions=[96,48]", lambda c: c.model.backbone.resolutions, (96, 48)),
        ("model.backbone.resolutions.1=16", lambda c: c.model.backbone.resolutions, (64, 16)),
        (
            "model.backbone.branches.1.drop_path=0.1",
            lambda c: [b.drop_path for b in c.model.backbone.branches],
            [0.0, 0.1],
        ),
        ("data.train={type: coco, images: a, annotations: b=c}", lambda c: str(c.data.train.annotations), "b=c"),
        ("name=other", lambda c: c.name, "other"),
    ],
)
def test_an_override_replaces_one_value(write, override, read, expected):
    assert read(load_config(write(MINIMAL), [override])) == expected


def test_the_last_of_two_overrides_wins(write):
    assert load_config(write(MINIMAL), ["train.seed=1", "train.seed=2"]).train.seed == 2


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("optim.lr", ["override 'optim.lr' is not of the form key.sub=value"]),
        ("=3", ["override '=3' is not of the form key.sub=value"]),
        ("optim.lr=[1", ["override 'optim.lr=[1'", "not valid YAML"]),
        ("optim.rl=1", ["command line: optim.rl", "did you mean 'lr'?"]),
        ("optim.lr=fast", ["command line: optim.lr", "(got 'fast')"]),
        ("optim.lr.x=1", ["'optim.lr' holds a single value, not keys"]),
        ("optim.lr.x.y=1", ["'optim.lr.x' does not exist"]),
        ("model.backbone.branches.2.depth=1", ["'model.backbone.branches.2' does not exist", "items 0 to 1"]),
        ("model.backbone.branches.first.depth=1", ["'model.backbone.branches.first' does not exist"]),
        ("model.backbone.resolutions.2=8", ["'model.backbone.resolutions.2' does not exist", "items 0 to 1"]),
    ],
)
def test_a_wrong_override_is_answered_with_what_is_wrong(write, override, words):
    text = message(load_config, write(MINIMAL + "optim: {lr: 0.1}"), [override])
    assert all(word in text for word in words), text
