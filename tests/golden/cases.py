"""The recorded cases: which config each one is, and how far our network is from what was recorded.

`python -m tests.golden.cases FOLDER [CASE ...]` prints the table for recordings in FOLDER: per case and stage the worst
error, in standard deviations of the recorded tensor.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from piip.config.experiment import Config
from piip.config.load import load_config
from piip.load import build_model
from piip.model import Model
from piip.official.checkpoints import convert_state_dict
from piip.official.keys import key_table
from tests.golden.rule import golden_image, golden_value, recorded_positions
from tests.official.recorded import official_keys

FOLDER = Path(__file__).parent
DETECTION = "detection/mask_rcnn_"

# What the recorded H6B networks have less than the real one, so that they run on a small machine.
_REDUCED = [
    "model.backbone.branches.0={size: H, embed_dim: 160, depth: 6, num_heads: 2, drop_path_schedule: linear, "
    "activation: ACTIVATION}",
    "model.backbone.branches.1={size: 6B, embed_dim: 320, depth: 4, num_heads: 5, drop_path_schedule: linear, "
    "norm: rms, qkv_bias: none, qk_norm: true, layer_scale: 0.1, activation: ACTIVATION}",
    "model.backbone.interactions=[[0, 2, 4, 5], [0, 1, 2, 3]]",
]

# Case -> shipped config and what is overridden in it.
CASES: dict[str, tuple[str, list[str]]] = {
    "baseline_vit_b": (DETECTION + "vit_b", []),
    "baseline_convnext_b_bb": (DETECTION + "convnext_b", []),
    "tsb_1120_896_448": (DETECTION + "piip_tsb_1120_896_448", []),
    "tsb_1568_896_448_bb": (DETECTION + "piip_tsb_1568_896_448", []),
    "sbl_1120_672_448_bb": (DETECTION + "piip_sbl_1120_672_448", []),
    "tsbl_1344_896_672_448_fulldepth_bb": (DETECTION + "piip_tsbl_1344_896_672_448_released", []),
    "h6b_reduced_maskrcnn": (
        DETECTION + "piip_h6b_1024_512",
        [text.replace("ACTIVATION", "gelu") for text in _REDUCED],
    ),
    "h6b_reduced_speedup_bb": (
        DETECTION + "piip_h6b_1024_512_speedup",
        [text.replace("ACTIVATION", "gelu_tanh") for text in _REDUCED],
    ),
    "augreg_sbl_speedup_bb": (DETECTION + "piip_augreg_sbl_1568_1120_672_speedup", []),
    "beit_sbl_bb": (DETECTION + "piip_beitv2_sbl_1568_1120_672", []),
    "uniperceiver_sbl_bb": (DETECTION + "piip_uniperceiver_sbl_1568_1120_672", []),
    "convnext_tsb_bb": (DETECTION + "piip_ct_cs_cb_1024_672_448", []),
    "convnext_vt_cs_vb_bb": (DETECTION + "piip_vt_cs_vb_1024_672_448", []),
    "seg_h6b_512_512_reduced": (
        "segmentation/upernet_piip_h6b_512_512",
        [
            *(text.replace("ACTIVATION", "gelu_tanh, pretrain_size: 512") for text in _REDUCED),
            "model.head.channels=96",
        ],
    ),
}


@dataclass(frozen=True)
class Case:
    """One recording: `<name>.json` (input, key list, shapes and deviations) and `<name>.npz` (values)."""

    name: str
    folder: Path = FOLDER

    @cached_property
    def info(self) -> dict[str, Any]:
        return json.loads((self.folder / f"{self.name}.json").read_text())

    @cached_property
    def values(self) -> dict[str, np.ndarray]:
        return dict(np.load(self.folder / f"{self.name}.npz"))

    @cached_property
    def whole(self) -> bool:
        """Whether the end of the backbone is recorded, or only what its first interactions give."""
        return "out0" in self.values or "backbone/out0" in self.values

    @cached_property
    def config(self) -> Config:
        """The case's config, with no more interactions and blocks than are recorded."""
        name, overrides = CASES[self.name]
        config = load_config(name, overrides)
        if self.whole:
            return config
        recorded = len({key.split("/")[1] for key in self.values if key.startswith("mid/interactions.")})
        backbone = config.model.backbone
        depths = [branch.depth * recorded // int(backbone.interactions) for branch in backbone.branches]
        cut = [f"model.backbone.branches.{index}.depth={depth}" for index, depth in enumerate(depths)]
        return load_config(name, [*overrides, *cut, f"model.backbone.interactions={recorded}"])

    @property
    def sizes(self) -> list[tuple[int, int]]:
        """Valid (h, w) of every image."""
        return [(height, width) for height, width in self.info["input"]["valid_hw"]]

    def images(self) -> Tensor:
        """The input batch (B, 3, H, W), as normalised images."""
        return torch.from_numpy(golden_image(self.info["input"]["shape"], self.sizes))

    def official_state(self, own: Collection[str]) -> dict[str, Tensor]:
        """The weights under their official keys, as far as the network with the keys `own` takes them.

        Index tables are no weights, and are left out; the counters of batch norm are kept.
        """
        keys = self.info.get("keys") or official_keys()[str(self.official)]
        table = key_table(self.config.model.backbone)
        taken = [(key, tuple(shape)) for key, shape in keys if table.to_ours(key) in own]
        state = {key: torch.from_numpy(np.asarray(golden_value(key, shape))) for key, shape in taken}
        return state | {key: torch.tensor(0) for key in state if key.endswith("num_batches_tracked")}

    @property
    def official(self) -> str | None:
        """The official config's file stem; that of the published form where the case is of another one."""
        return self.config.official or load_config(str(self.config.alternative)).official

    def error(self, name: str, value: Tensor) -> float:
        """Greatest distance from the recorded values, in standard deviations of the recorded tensor."""
        recorded, digest = self.values[name], self.info["digests"][name]
        assert list(value.shape) == digest["shape"], f"{name}: {list(value.shape)}, recorded {digest['shape']}"
        flat = value.detach().contiguous().float().numpy().reshape(-1)
        difference = np.abs(flat[recorded_positions(flat.size, recorded.size)] - recorded.reshape(-1))
        return float(difference.max() / digest["std"])


def load_official(module: nn.Module, state: dict[str, Tensor], config: Config, *, prefix: str = "") -> None:
    """Converts official weights and loads them; every tensor of ours must be there.

    prefix: what the module's own names lack, such as "backbone.".
    """
    own = {prefix + key: value for key, value in module.state_dict().items()}
    converted, report = convert_state_dict(state, own, table=key_table(config.model.backbone))
    assert not report.missing, report.missing[:5]
    assert not report.unknown, report.unknown[:5]
    assert not report.resized, report.resized[:5]
    module.load_state_dict({key.removeprefix(prefix): value for key, value in converted.items()}, assign=True)


def backbone_errors(case: Case, model: Model, images: Tensor | None = None) -> Iterator[tuple[str, float]]:
    """Runs backbone and neck on the recorded input; yields the error of every recorded stage that both have.

    images: what to run them on instead.
    """
    backbone, count = model.backbone, len(model.backbone.branches)
    stages: dict[str, Tensor] = {}
    hooks = []

    def note(module: nn.Module, name: str) -> None:
        def hook(_: nn.Module, __: Any, output: Any) -> None:
            if isinstance(output, list):  # recorded coarsest branch first, as rows of tokens
                stages.update({f"{name}/{b}": x.flatten(1, 2) for b, x in enumerate(reversed(output))})
            else:
                stages[f"{name}/0"] = output.clone()

        hooks.append(module.register_forward_hook(hook))

    for index, interaction in enumerate(backbone.interactions):
        note(interaction, f"mid/interactions.{index}")
    merges = {"merge": backbone.merge} | {f"intermediate_merging_{i}": m for i, m in backbone.intermediate.items()}
    for name, merge in merges.items():
        for index, projection in enumerate(getattr(merge, "projections", ())):
            note(projection, f"mid/{name}_branch{count - index}")
    if images is None:
        images = case.images()
        yield "input", case.error("input", images)
    with torch.inference_mode():
        features = backbone(images)
        maps = model.neck(features) if "neck/out0" in case.values else []
    for hook in hooks:
        hook.remove()
    outputs = "backbone/out" if "backbone/out0" in case.values else "out"
    if case.whole:
        stages |= {f"{outputs}{level}": x for level, x in enumerate(features)}
    stages |= {f"neck/out{level}": x for level, x in enumerate(maps)}
    for name, value in stages.items():
        if name in case.values:
            yield name, case.error(name, value)


def build(case: Case) -> Model:
    """The case's network with the recorded weights; what is not recorded keeps its own."""
    model = build_model(case.config.model)
    if "neck/out0" in case.values:
        load_official(model, case.official_state(model.state_dict().keys()), case.config)
    else:
        own = {f"backbone.{key}" for key in model.backbone.state_dict()}
        load_official(model.backbone, case.official_state(own), case.config, prefix="backbone.")
    return model.eval()


def main(folder: Path, names: list[str]) -> None:
    write = sys.stdout.write
    write(f"{'case':36s} {'stage':14s} {'recorded':>8s} {'worst error':>12s}\n")
    for name in names or [name for name in CASES if (folder / f"{name}.npz").is_file()]:
        start = time.perf_counter()
        case = Case(name, folder)
        worst: dict[str, list[float]] = {}
        for stage, error in backbone_errors(case, build(case)):
            kind = stage.removeprefix("mid/").split("/")[0].split(".")[0].rstrip("0123456789_") or stage
            worst.setdefault(kind.split("_branch")[0], []).append(error)
        for kind, errors in worst.items():
            write(f"{name:36s} {kind:14.14s} {len(errors):8d} {max(errors):12.1e}\n")
        write(f"{name:36s} {time.perf_counter() - start:.0f} s\n")


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2:])
