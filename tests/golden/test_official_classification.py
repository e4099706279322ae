"""A classification network with official weights computes what the official code computed.

For the TSB network every recorded stage is compared, class tokens included; for the SBL ones, the logits and the maps
after the first and the last interaction. Weights and images follow the rule of `tests.golden.rule`.
"""

from __future__ import annotations

from functools import cached_property

import pytest
import torch
from torch import Tensor

from piip.branches.base import Branch, Tokens
from piip.config.experiment import Config
from piip.config.load import load_config
from piip.load import build_model
from tests.golden.cases import Case, load_official

TOLERANCE = 1e-4  # of a tensor's standard deviation


class Recorded(Case):
    """Weights are those of the whole network, logits are recorded."""

    @cached_property
    def config(self) -> Config:
        return load_config("classification/" + self.name.replace("cls_", "piip_"))


@pytest.mark.parametrize(
    "name",
    [
        "cls_tsb_368_192_128",
        pytest.param("cls_sbl_320_160_96", marks=pytest.mark.slow),
        pytest.param("cls_sbl_384_192_128", marks=pytest.mark.slow),
    ],
)
def test_every_recorded_stage_of_a_classification_network(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    case = Recorded(name)
    with torch.device("meta"):
        model = build_model(case.config.model).eval()
    load_official(model, case.official_state(model.state_dict().keys()), case.config)
    branches = list(reversed(model.backbone.branches))  # recorded coarsest first
    stages: dict[str, Tensor] = {}
    for index, branch in enumerate(branches):
        watch(monkeypatch, branch, index, stages)
    for index, interaction in enumerate(model.backbone.interactions):

        def note(_: object, __: object, maps: list[Tensor], index: int = index) -> None:
            stages.update({f"mid/interactions.{index}/{b}": x.flatten(1, 2) for b, x in enumerate(reversed(maps))})

        interaction.register_forward_hook(note)
    images = case.images()
    stages["input"] = images
    stages["logits"] = model.infer(images, case.sizes)

    errors = {stage: case.error(stage, stages[stage]) for stage in case.values}
    assert max(errors.values()) < TOLERANCE, errors
    assert torch.equal(stages["logits"].argmax(dim=1), torch.from_numpy(case.values["logits"]).argmax(dim=1))


def watch(monkeypatch: pytest.MonkeyPatch, branch: Branch, index: int, stages: dict[str, Tensor]) -> None:
    """Notes the embedded patches of a branch, still without positions, and its class token after every group."""
    run_blocks, groups = branch.run_blocks, iter(range(branch.depth))

    def run(x: Tokens, start: int, stop: int) -> Tokens:
        x = run_blocks(x, start, stop)
        stages[f"mid/interactions.{next(groups)}/{index + 3}"] = x.prefix
        return x

    monkeypatch.setattr(branch, "run_blocks", run)
    branch.patch_embed.register_forward_hook(
        lambda _, __, patches: stages.update({f"mid/branch{index + 1}.patch_embed/0": patches.flatten(1, 2)})
    )
