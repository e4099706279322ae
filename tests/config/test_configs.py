"""What is shipped, how it is found, and what a config holds."""

from __future__ import annotations

import pytest
import yaml
from pydantic import ValidationError

from piip.backbone.config import BackboneConfig
from piip.branches.vit.config import ViTConfig
from piip.config import load as load_module
from piip.config.experiment import Config
from piip.config.load import config_from_dict, dump_config, find_config, load_config, shipped_configs
from tests.config.cases import MINIMAL, TSB, message

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
    monkeypatch.setattr(load_module, "_CONFIG_DIRS", (tmp_path,))
    assert "reinstall piip" in message(load_module.config_dir)


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


def test_backbone_may_be_a_single_branch():
    backbone = BackboneConfig.model_validate({"branches": [{"size": "B"}], "resolutions": [1024]})
    assert len(backbone.branches) == 1


def test_experiment_needs_nothing_beyond_the_minimal_keys(write):
    assert isinstance(load_config(write(MINIMAL)), Config)


def test_size_fills_the_widths_and_each_may_be_overridden():
    small = ViTConfig.model_validate({"size": "S"})
    assert (small.embed_dim, small.depth, small.num_heads) == (384, 12, 6)
    shallow = ViTConfig.model_validate({"size": "S", "depth": 3})
    assert (shallow.embed_dim, shallow.depth) == (384, 3)


def test_configs_cannot_be_changed_after_they_were_checked():
    config = load_config(TSB)
    with pytest.raises(ValidationError):
        config.optim.lr = -1.0
