"""Official PIIP checkpoints, converted to ours."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor

from piip.config import Config
from piip.convert.keys import KeyTable
from piip.convert.sources import read_state_dict
from piip.convert.vit import resample_pos_embed
from piip.engine.files import replacing
from piip.engine.weights import write_weights
from piip.errors import CheckError
from piip.model import build_model


@dataclass
class ConversionReport:
    """What became of every key. loaded, resized and missing are our keys; unused and unknown are the source's."""

    loaded: list[str] = field(default_factory=list)
    resized: list[str] = field(default_factory=list)
    unused: list[str] = field(default_factory=list)
    unknown: list[str] = field(default_factory=list)
    missing: list[str] = field(default_factory=list)


def convert_checkpoint(source: Path, output: Path, *, config: Config, strict: bool = True) -> ConversionReport:
    """Converts an official checkpoint to a safetensors file that `--weights` takes.

    source: a file of the official training (plain or DeepSpeed module state, with or without prefixes).
    output: written atomically, with the resolved config and the class names in its metadata.
    strict: refuse to write when a learned tensor is missing, unknown, or of another shape.
    Raises CheckpointError for an unreadable source, CheckError when strict and something does not match.
    """
    tensors, beside = read_state_dict(source)
    with torch.device("meta"):
        expected = build_model(config.model).state_dict()
    state, report = convert_state_dict(tensors, expected, num_branches=len(config.model.backbone.branches))
    if strict and (report.missing or report.unknown):
        raise CheckError(_explain(report, source))
    meta = beside.get("meta")
    names = meta.get("CLASSES") if isinstance(meta, dict) else None
    with replacing(output) as temporary:
        class_names = list(names) if names else None
        write_weights(temporary, state, config=config.model_dump(mode="json"), class_names=class_names)
    return report


def convert_state_dict(
    tensors: dict[str, Tensor], expected: dict[str, Tensor], *, num_branches: int
) -> tuple[dict[str, Tensor], ConversionReport]:
    """Renames an official state dict and fits it to the shapes of ours.

    expected: our state dict, for its keys and shapes only. A tensor of another shape counts as unknown, except position
    embeddings, which are resampled to the expected grid.
    """
    table = KeyTable(num_branches)
    state: dict[str, Tensor] = {}
    report = ConversionReport()
    for key, tensor in tensors.items():
        ours = table.to_ours(key)
        if ours is None or ours not in expected:
            report.unknown.append(key)
            continue
        shape = expected[ours].shape
        if tensor.shape == shape:
            report.loaded.append(ours)
        elif ours.endswith("pos_embed") and tensor.shape[-1] == shape[-1]:
            tensor = resample_pos_embed(tensor, shape[1])
            report.resized.append(ours)
        else:
            report.unknown.append(f"{key} {tuple(tensor.shape)}, expected {tuple(shape)}")
            continue
        state[ours] = tensor.contiguous()
    report.missing = [key for key in expected if key not in state]
    return state, report


def _explain(report: ConversionReport, source: Path) -> str:
    lines = [f"{source} does not match the config, nothing was written (--no-strict converts what matches)"]
    for name, keys in (("missing", report.missing), ("unknown or of another shape", report.unknown)):
        if keys:
            more = f" and {len(keys) - 5} more" if len(keys) > 5 else ""
            lines.append(f"  {len(keys)} {name}: {', '.join(keys[:5])}{more}")
    return "\n".join(lines)
