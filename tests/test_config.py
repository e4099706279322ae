"""Configs: what is accepted, what is inherited and overridden, and the words of every error."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import pytest
import yaml
from pydantic import Field, ValidationError

from piip import config as config_module
from piip.config import (
    BackboneConfig,
    Config,
    Strict,
    ViTConfig,
    config_dir,
    config_from_dict,
    dump_config,
    find_config,
    load_config,
    shipped_configs,
)
from piip.errors import ConfigError

TSB = "detection/mask_rcnn_piip_tsb_1568_1120_672"
CONVNEXT = "detection/mask_rcnn_piip_ct_cs_cb_1024_672_448"
DINO = "detection/dino_piip_sbl_1792_1120_672_3x"
UPERNET = "segmentation/upernet_piip_tsb_512_448_336"
CLASSIFIER = "classification/piip_sbl_384_192_128"
SHAPES = "detection/mask_rcnn_piip_nano_shapes"

# A whole experiment in as few keys as one needs.
MINIMAL = """
model:
  backbone:
    branches: [{size: T}, {size: S}]
    resolutions: [64, 32]
data:
  train: {type: shapes, images: 4}
  val: {type: shapes, images: 2}
  train_transforms: {resize: [[64, 64]]}
  val_transforms: {resize: [[64, 64]]}
schedule: {iterations: 2}
"""


@pytest.fixture
def write(tmp_path: Path):
    """Writes a YAML file below the temporary folder and returns its path."""

    def _write(text: str, name: str = "experiment.yaml") -> Path:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
        return path

    return _write


def message(call, *args) -> str:
    with pytest.raises(ConfigError) as caught:
        call(*args)
    assert caught.value.exit_code == 2
    return str(caught.value)


# --- what is shipped ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", sorted(shipped_configs()))
def test_every_shipped_config_loads_under_its_own_name(name):
    assert load_config(name).name == name


@pytest.mark.parametrize("name", sorted(shipped_configs()))
def test_dumping_and_reading_back_gives_an_equal_config(name, write):
    loaded = load_config(name)
    assert load_config(write(dump_config(loaded))) == loaded
    assert config_from_dict(yaml.safe_load(dump_config(loaded))) == loaded


def test_building_blocks_are_not_experiments():
    assert shipped_configs()
    assert not [name for name in shipped_configs() if name.startswith("base/")]


def test_official_file_stem_is_an_alias():
    assert load_config("mask_rcnn_deit_tsb_1568_1120_672_fpn_1x_coco_bs16") == load_config(TSB)


def test_no_two_configs_claim_the_same_official_name():
    names = [load_config(name).official for name in shipped_configs()]
    claimed = [name for name in names if name]
    assert len(claimed) == len(set(claimed))


def test_released_tsb_row_has_the_settings_of_the_official_config():
    config = load_config(TSB)
    backbone = config.model.backbone
    assert [(b.embed_dim, b.depth, b.num_heads, b.window_size, b.drop_path) for b in backbone.branches] == [
        (192, 12, 3, 14, 0.05),
        (384, 12, 6, 14, 0.05),
        (768, 12, 12, 14, 0.15),
    ]
    assert backbone.resolutions == (1568, 1120, 672)
    interaction = backbone.interaction
    assert (interaction.num_heads, interaction.points, interaction.value_ratio, interaction.ffn_ratio) == (
        16,
        4,
        0.5,
        0.25,
    )
    assert config.data.train_transforms.resize == ((1568, 1568 * 800 // 1333),)
    assert config.data.train_transforms.pad_divisor == 224
    assert (config.optim.lr, config.optim.weight_decay, config.data.batch_size) == (1e-4, 0.05, 16)
    assert (config.schedule.epochs, config.schedule.milestones) == (12, (8, 11))


def test_an_installation_without_configs_says_so(monkeypatch, tmp_path):
    monkeypatch.setattr(config_module.load, "_CONFIG_DIRS", (tmp_path,))
    assert "reinstall piip" in message(config_module.config_dir)


# --- finding ---------------------------------------------------------------------------------------------------------


def test_a_path_is_read_and_names_the_experiment(write):
    path = write(MINIMAL, "my_run.yaml")
    assert find_config(path) == path
    assert load_config(str(path)).name == "my_run"


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("detection/mask_rcnn_piip_tsb_1568_1120_67", ["unknown config", f"did you mean '{TSB}'?"]),
        ("zzzz", ["unknown config 'zzzz'", "piip models"]),
        ("missing/file.yaml", ["config file not found: missing/file.yaml"]),
    ],
)
def test_an_unknown_name_is_answered_with_the_nearest_one_or_where_to_look(name, words):
    text = message(load_config, name)
    assert all(word in text for word in words), text


# --- unreadable files ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"a: [1, 2", "is not valid YAML"),
        (b"a: \xff\xfe", "is not valid YAML"),
        (b"- 1\n- 2\n", "must hold a mapping of keys, got list"),
        (b"", "must hold a mapping of keys, got NoneType"),
        (b"x: !!python/object/apply:os.getcwd []", "is not valid YAML"),
    ],
)
def test_a_file_that_is_no_config_is_named(tmp_path, content, words):
    path = tmp_path / "broken.yaml"
    path.write_bytes(content)
    text = message(load_config, path)
    assert words in text
    assert str(path) in text


def test_a_file_that_cannot_be_opened_is_named_with_the_reason(write, monkeypatch):
    def refuse(self, *args, **kwargs):
        raise PermissionError(13, "Permission denied", str(self))

    path = write(MINIMAL)
    monkeypatch.setattr(Path, "read_text", refuse)
    assert message(load_config, path) == f"cannot read config {path}: Permission denied"


# --- wrong keys and values -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("addition", "words"),
    [
        (
            "optim: {learning_rate: 1}",
            ["optim.learning_rate", "unknown key 'learning_rate'", "valid keys: lr, weight_decay"],
        ),
        ("optim: {weight_decey: 1}", ["optim.weight_decey", "did you mean 'weight_decay'?"]),
        ("opitm: {lr: 1}", ["opitm", "did you mean 'optim'?"]),
        ("3: 4", ["unknown key '3'"]),
        ("optim: {lr: fast}", ["optim.lr", "valid number", "(got 'fast')"]),
        ("optim: {lr: -1}", ["optim.lr", "greater than 0", "(got -1)"]),
        ("optim: {layer_decay: 1.5}", ["optim.layer_decay", "less than or equal to 1", "(got 1.5)"]),
        ("train: {precision: fp8}", ["train.precision", "'auto', 'fp32' or 'bf16'", "(got 'fp8')"]),
        ("train: {seed: 0.5}", ["train.seed", "valid integer", "(got 0.5)"]),
        ("train:", ["train", "(got None)"]),
        ("optim: 3", ["optim", "(got 3)"]),
    ],
)
def test_a_wrong_key_or_value_is_named_with_its_file_and_remedy(write, addition, words):
    path = write(MINIMAL + addition)
    text = message(load_config, path)
    assert text.startswith(f"{path}: ")
    assert all(word in text for word in words), text


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ("resolutions: [64, 32]", "resolutions: [64]", "2 branches need as many resolutions, got 64"),
        ("resolutions: [64, 32]", "resolutions: [32, 64]", "finest resolution first, got 32/64"),
        ("resolutions: [64, 32]", "resolutions: [64, 0]", "model.backbone.resolutions.1"),
        ("resolutions: [64, 32]", "", "model.backbone.resolutions: Field required"),
        ("{size: T}", "{size: X}", "model.backbone.branches.0.size"),
        ("{size: T}", "{embed_dim: 100, depth: 2}", "model.backbone.branches.0.num_heads: Field required"),
        ("{size: T}", "{size: T, num_heads: 5}", "embed_dim 192 is not divisible by num_heads 5"),
        ("{size: T}", "{size: T, window: 7}", "did you mean 'window_size'?"),
        ("branches: [{size: T}, {size: S}]", "branches: []", "model.backbone.branches"),
        ("{type: shapes, images: 4}", "{type: shape, images: 4}", "data.train"),
        ("{type: shapes, images: 4}", "{images: 4}", "data.train"),
        ("{type: shapes, images: 4}", "{type: shapes}", "data.train.images: Field required"),
        ("{type: shapes, images: 4}", "{type: shapes, sise: 8}", "data.train.sise: unknown key 'sise'; did you mean"),
        ("{type: shapes, images: 4}", "{type: coco, images: a, annotation: b}", "did you mean 'annotations'?"),
        ("schedule: {iterations: 2}", "schedule: {}", "schedule: give exactly one of epochs and iterations"),
        ("schedule: {iterations: 2}", "schedule: {epochs: 1, iterations: 2}", "exactly one of epochs and iterations"),
        ("schedule: {iterations: 2}", "", "schedule: Field required"),
    ],
)  # fmt: skip
def test_a_network_or_schedule_that_cannot_be_is_refused_in_plain_words(write, old, new, words):
    assert old in MINIMAL
    path = write(MINIMAL.replace(old, new))
    text = message(load_config, path)
    assert words in text
    assert str(path) in text


def test_every_mistake_is_reported_not_only_the_first(write):
    text = message(load_config, write(MINIMAL + "optim: {lr: fast, weight_decay: slow}"))
    assert len(text.splitlines()) == 2
    assert "optim.lr" in text
    assert "optim.weight_decay" in text


def test_size_fills_the_widths_and_each_may_be_overridden():
    small = ViTConfig.model_validate({"size": "S"})
    assert (small.embed_dim, small.depth, small.num_heads) == (384, 12, 6)
    shallow = ViTConfig.model_validate({"size": "S", "depth": 3})
    assert (shallow.embed_dim, shallow.depth) == (384, 3)


def test_configs_cannot_be_changed_after_they_were_checked():
    config = load_config(TSB)
    with pytest.raises(ValidationError):
        config.optim.lr = -1.0


def test_config_from_dict_names_the_source_it_was_given():
    assert message(lambda: config_from_dict({}, source="checkpoint")).startswith("checkpoint: name: Field required")


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


def test_backbone_may_be_a_single_branch():
    backbone = BackboneConfig.model_validate({"branches": [{"size": "B"}], "resolutions": [1024]})
    assert len(backbone.branches) == 1


def test_experiment_needs_nothing_beyond_the_minimal_keys(write):
    assert isinstance(load_config(write(MINIMAL)), Config)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("base: 3", "'base' must be a file, a shipped name, or a list of these"),
        ("base: null", "'base' must be a file"),
        ("base: [1]", "'base' must be a file"),
        ("model: &m\n  backbone: *m", "an anchor refers to itself"),
    ],
)
def test_a_malformed_file_is_refused(text: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "odd.yaml").write_text(text)
    with pytest.raises(ConfigError, match=message):
        load_config(tmp_path / "odd.yaml")


@pytest.mark.parametrize("key", ["model.head", "model.neck", "model.backbone.branches.0", "data.train",
                                 "data.train_transforms"])  # fmt: skip
@pytest.mark.parametrize("name", [TSB, UPERNET, CLASSIFIER])
@pytest.mark.parametrize("unknown", ["colour", "vit", "shapes", "none"])
def test_an_unknown_key_is_named_as_written_whatever_the_type_of_the_part(name: str, key: str, unknown: str) -> None:
    text = message(load_config, name, [f"{key}.{unknown}=red"])
    assert text.startswith(f"command line: {key}.{unknown}: unknown key '{unknown}'; ")


@pytest.mark.parametrize(
    ("name", "key", "value"),
    [
        (TSB, "data.train.keep_empty", "perhaps"),
        (UPERNET, "data.train.reduce_zero_label", "perhaps"),
        (CLASSIFIER, "data.val.max_image_pixels", "0"),
        (SHAPES, "data.val.size", "8"),
        (TSB, "data.train_transforms.resize.0.1", "wide"),
        (UPERNET, "data.val_transforms.pad_divisor", "0"),
        (CLASSIFIER, "data.train_transforms.mixup", "-1"),
        (TSB, "model.neck.levels", "0"),
        (DINO, "model.neck.out_channels", "7"),
        (TSB, "model.head.nms", "2"),
        (DINO, "model.head.points", "0"),
        (UPERNET, "model.head.window", "0"),
        (CLASSIFIER, "model.head.token", "last"),
        (TSB, "model.backbone.branches.2.drop_path", "1"),
        (CONVNEXT, "model.backbone.branches.1.model", "3"),
        # Unions without a type.
        (TSB, "model.backbone.interactions", "many"),
        (UPERNET, "data.train.class_names", "3"),
    ],
)
def test_a_wrong_value_is_named_by_its_key_as_written_and_nothing_else_is(name: str, key: str, value: str) -> None:
    lines = message(load_config, name, [f"{key}={value}"]).splitlines()
    assert {line.split(": ")[1] for line in lines} == {key}


@pytest.mark.parametrize("name", [TSB, UPERNET, CLASSIFIER])
@pytest.mark.parametrize(
    ("key", "near", "types"),
    [
        ("model.head", "upernet", "mask_rcnn, dino, upernet, classifier"),
        ("model.neck", "channel_mapper", "fpn, channel_mapper, none"),
        ("model.backbone.branches.1", "convnext", "vit, convnext"),
        ("data.val", "label_maps", "coco, label_maps, image_folder, shapes"),
        ("data.train_transforms", "segmentation", "detection, segmentation, classification"),
    ],
)
def test_an_unknown_type_is_named_with_the_valid_ones_and_the_nearest(
    name: str, key: str, near: str, types: str
) -> None:
    given, start = near[:-1], f"command line: {key}.type: unknown type"
    text = message(load_config, name, [f"{key}.type={given}"])
    assert text == f"{start} '{given}', not among {types}; did you mean '{near}'?"
    text = message(load_config, name, [f"{key}.type=zzz"])
    assert text == f"{start} 'zzz', not among {types}; name one of these"


def test_data_without_a_type_is_told_the_valid_ones() -> None:
    text = message(load_config, TSB, ["data.val={images: a}"])
    assert text == "command line: data.val.type: Field required, one of coco, label_maps, image_folder, shapes"


@pytest.mark.parametrize("key", ["model.head", "model.backbone.branches.0", "data.train", "data.train_transforms"])
@pytest.mark.parametrize("value", ["3", "null", "[]", "coco"])
def test_a_part_of_several_types_that_is_no_mapping_is_named(key: str, value: str) -> None:
    text = message(load_config, TSB, [f"{key}={value}"])
    assert text.startswith(f"command line: {key}: Input should be a mapping of keys (got ")


@pytest.mark.parametrize(
    ("setting", "words"),
    [
        ("window_sise: 4", "window_sise: unknown key 'window_sise'; did you mean 'window_size'?"),
        ("drop_path: 1", "drop_path: Input should be less than 1 (got 1)"),
        ("type: vitt", "type: unknown type 'vitt', not among vit, convnext; did you mean 'vit'?"),
    ],
)
def test_a_mistake_in_every_branch_is_named_there_and_once(write, setting, words):
    base = write(MINIMAL, "base.yaml")
    path = write(f"base: {base}\nmodel: {{backbone: {{every_branch: {{{setting}}}}}}}")
    assert message(load_config, path) == f"{path}: model.backbone.every_branch.{words}"


def test_a_mistake_of_a_branch_is_named_there_although_every_branch_has_the_key(write):
    every = "{backbone: {every_branch: {drop_path: 0.5}, branches: [{size: T}, {size: S, drop_path: 1}]}}"
    path = write(f"base: {write(MINIMAL, 'base.yaml')}\nmodel: {every}")
    assert message(load_config, path).startswith(f"{path}: model.backbone.branches.1.drop_path: ")
    assert len(message(load_config, path).splitlines()) == 1


def test_a_key_that_a_replaced_mapping_lacks_is_missing_where_it_was_replaced(write):
    base = write(MINIMAL, "base.yaml")
    path = write(f"base: {base}\ndata: {{val: {{type: coco, annotations: a.json}}}}")
    assert message(load_config, path) == f"{path}: data.val.images: Field required"


def test_a_key_may_be_called_like_a_type(monkeypatch: pytest.MonkeyPatch) -> None:
    class Square(Strict):
        type: Literal["square"]
        square: int
        round: int

    class Round(Strict):
        type: Literal["round"]

    class Form(Strict):
        square: list[Annotated[Square | Round, Field(discriminator="type")]]

    monkeypatch.setattr(config_module.load, "Config", Form)
    data = {"square": [{"type": "square", "square": "x"}, {"type": "round", "square": 1}]}
    keys = [line.split(": ")[1] for line in message(config_from_dict, data).splitlines()]
    assert keys == ["square.0.square", "square.0.round", "square.1.square"]


def test_a_list_index_is_plain_decimal() -> None:
    with pytest.raises(ConfigError, match=r"branches\.² does not exist|branches\.²"):
        load_config("detection/mask_rcnn_piip_nano_shapes", ["model.backbone.branches.².depth=3"])
