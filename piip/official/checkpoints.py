"""Official PIIP checkpoints, converted to ours and back."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor

from piip.backbone.config import BackboneConfig
from piip.branches.hierarchical.config import ConvNeXtConfig
from piip.branches.vit.config import ViTConfig
from piip.branches.vit.resample import resample_pos_embed
from piip.branches.vit.vit import expand_offsets
from piip.config.experiment import Config
from piip.config.load import load_config
from piip.errors import CheckError, ConfigError, PiipError, first_few
from piip.files import check_outputs, free_space, replacing
from piip.load import build_model
from piip.official.branch_class import branch_class, branch_classes
from piip.official.keys import KeyTable, key_table
from piip.weights.files import read_weights, warn_of_non_finite, write_weights
from piip.weights.find import find_weights
from piip.weights.read import read_state_dict


@dataclass
class ConversionReport:
    """What became of every key. loaded, resized and missing are our keys; unused and unknown are the source's.

    unused names keys known to have no counterpart, `reasons` why; config is the network that was converted for.
    """

    loaded: list[str] = field(default_factory=list)
    resized: list[str] = field(default_factory=list)
    unused: list[str] = field(default_factory=list)
    unknown: list[str] = field(default_factory=list)
    missing: list[str] = field(default_factory=list)
    reasons: dict[str, str] = field(default_factory=dict)
    config: str = ""


def convert_checkpoint(
    source: Path, output: Path, *, config: Config, strict: bool = True, ema: bool = False
) -> ConversionReport:
    """Converts an official checkpoint to a safetensors file that `--weights` takes, in the source's precision.

    source: a file of the official training (plain or DeepSpeed module state, with or without prefixes).
    output: a .safetensors file, written atomically, with the resolved config and the class names in its metadata.
    config: the network. Where the checkpoint does not fit it but fits the form that `config.alternative` names, that
    one is converted for instead, as the report says.
    strict: refuse to write when a learned tensor is missing, unknown, or of another shape.
    ema: take the averaged weights of the file.
    Raises CheckpointError for an unreadable source, CheckError when strict and something does not match, ConfigError
    for another ending, DataError for the source itself as output.
    """
    _check_output(source, output, ".safetensors")
    tensors, beside = read_state_dict(source, ema=ema)
    state, report = _convert_for(tensors, config)
    if config.alternative and (report.missing or report.unknown):
        other = load_config(config.alternative)
        other_state, other_report = _convert_for(tensors, other)
        if not other_report.missing and not other_report.unknown:
            state, report, config = other_state, other_report, other
    if strict and (report.missing or report.unknown):
        raise CheckError(_explain(report, source))
    meta = beside.get("meta")
    names = meta.get("CLASSES") if isinstance(meta, dict) else None
    # mmsegmentation's list for ADE20K has a name with a space behind it.
    class_names = [str(name).strip() for name in names] if isinstance(names, (list, tuple)) else None
    warn_of_non_finite(source, state)
    with _writing(output):
        write_weights(output, state, config=config.model_dump(mode="json"), class_names=class_names)
    return report


def _convert_for(tensors: Mapping[str, Tensor], config: Config) -> tuple[dict[str, Tensor], ConversionReport]:
    with torch.device("meta"):
        expected = build_model(config.model).state_dict()
    state, report = convert_state_dict(tensors, expected, table=key_table(config.model.backbone))
    report.config = config.name
    return state, report


def convert_state_dict(
    tensors: Mapping[str, Tensor], expected: Mapping[str, Tensor], *, table: KeyTable
) -> tuple[dict[str, Tensor], ConversionReport]:
    """Renames an official state dict and fits it to the shapes of ours.

    expected: our state dict, for its keys and shapes only. A tensor of another shape counts as unknown, except
    position embeddings, which are resampled to the expected grid.
    """
    state: dict[str, Tensor] = {}
    report = ConversionReport()
    for key, tensor in tensors.items():
        ours = table.to_ours(key)
        if ours is None or ours not in expected:
            reason = table.why_unused(key)
            if reason is None:
                report.unknown.append(key)
            else:
                report.unused.append(key)
                report.reasons[key] = reason
            continue
        shape = expected[ours].shape
        tensor = _without_unused_rows(ours.rpartition(".")[2], tensor)
        if tensor.shape == shape:
            report.loaded.append(ours)
        elif ours.endswith("pos_embed") and tensor.numel() and tensor.dim() == 3 and tensor.shape[::2] == shape[::2]:
            tensor = resample_pos_embed(tensor, shape[1])
            report.resized.append(ours)
        else:
            report.unknown.append(f"{key} {tuple(tensor.shape)}, expected {tuple(shape)}")
            continue
        state[ours] = tensor.contiguous()
    report.missing = [key for key in expected if key not in state]
    return state, report


def _without_unused_rows(name: str, tensor: Tensor) -> Tensor:
    """Cuts the official embeddings down to what is used: no slot of a class token, and a video's first frame only."""
    if name == "frame_embed" and tensor.dim() == 2:
        return tensor[None, :1]
    if name == "pos_embed" and tensor.dim() >= 2 and 0 < tensor.numel() == tensor.shape[-2] * tensor.shape[-1]:
        tensor = tensor.reshape(1, *tensor.shape[-2:])
        length = tensor.shape[1]
        if int((length - 1) ** 0.5) ** 2 == length - 1:
            return tensor[:, 1:]
    return tensor


def convert_back(source: Path, output: Path, *, config: Config) -> None:
    """Writes weights of ours as an official checkpoint: a torch.save file with `state_dict` and `meta`.

    The classification code calls the first `model`.

    source: a run, a checkpoint or a weight file, of the network of `config`. output: a .pth file.
    What the official network holds beyond ours (slots of class tokens, index tables, norms that are never run) is
    filled in as the official code makes it.
    Raises CheckpointError for an unreadable source, CheckError for weights of another network, and the errors of
    `convert_checkpoint` for the output.
    """
    _check_output(source, output, ".pth")
    state, loaded = read_weights(find_weights(source))
    table = key_table(config.model.backbone)
    with torch.device("meta"):
        expected = build_model(config.model).state_dict()
    wrong = [key for key, value in expected.items() if key not in state or state[key].shape != value.shape]
    wrong += [key for key in state if key not in expected]
    official = {key: table.to_official(key) for key in state}
    wrong += [key for key, name in official.items() if name is None and key not in wrong]
    if wrong:
        raise CheckError(f"{source} does not hold the weights of {config.name}: {first_few(wrong)}")
    padded = _pad_embeddings(state, config.model.backbone)
    named = {str(official[key]): tensor for key, tensor in padded.items()}
    meta = {"CLASSES": tuple(loaded.class_names)} if loaded.class_names else {}
    weights = named | _computed(config.model.backbone, named)
    warn_of_non_finite(source, state)
    with _writing(output), replacing(output) as file:
        torch.save({"meta": meta, "state_dict" if config.model.backbone.merge else "model": weights}, file)


def _check_output(source: Path, output: Path, suffix: str) -> None:
    """Raises ConfigError if the name does not say what is written, DataError if it is that of the source."""
    if output.suffix != suffix:
        raise ConfigError(f"OUTPUT {output} must end in {suffix}, for that is what is written")
    check_outputs([output], [source])


@contextmanager
def _writing(output: Path) -> Iterator[None]:
    try:
        yield
    # torch.save's own writer turns a full disk into a RuntimeError.
    except (OSError, RuntimeError) as error:
        cause = error if isinstance(error, OSError) else error.__context__
        reason = (cause.strerror if isinstance(cause, OSError) else None) or str(error)
        raise PiipError(f"cannot write {output}: {reason}{free_space(output)}") from error


def _pad_embeddings(state: Mapping[str, Tensor], backbone: BackboneConfig) -> dict[str, Tensor]:
    """The embeddings in their official shapes: the way back of `_without_unused_rows`."""
    padded = dict(state)
    for index, found in enumerate(branch_classes(backbone)):
        prefix = f"backbone.branches.{index}."
        position = prefix + "pos_embed"
        if found == "internvit":
            padded[position] = torch.nn.functional.pad(state[position], (0, 0, 1, 0))
        elif found == "uniperceiver":
            padded[position] = state[position][0]
            padded[prefix + "frame_embed"] = torch.nn.functional.pad(state[prefix + "frame_embed"][0], (0, 0, 0, 7))
    return padded


def _computed(backbone: BackboneConfig, named: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Official tensors that we do not hold: the index tables of relative positions, and ConvNeXt's last norm."""
    made: dict[str, Tensor] = {}
    count = len(backbone.branches)
    for number, branch in enumerate(reversed(backbone.branches), start=1):
        prefix = ("backbone." if backbone.merge else "") + (f"branch{number}." if count > 1 else "")
        if isinstance(branch, ConvNeXtConfig):
            last = named[f"{prefix}convnext_model.encoder.stages.3.layers.0.layer_scale_parameter"]
            norm = f"{prefix}convnext_model.layernorm."
            made |= {f"{norm}weight": torch.ones_like(last), f"{norm}bias": torch.zeros_like(last)}
        elif isinstance(branch, ViTConfig) and branch_class(branch) == "beit":
            rows = torch.arange((2 * branch.window_size - 1) ** 2)
            (index,) = expand_offsets(rows[:, None], branch.window_size, rows.dtype)
            made |= {f"{prefix}blocks.{block}.attn.relative_position_index": index for block in range(branch.depth)}
    return made


def _explain(report: ConversionReport, source: Path) -> str:
    lines = [f"{source} does not match the config, nothing was written (--no-strict converts what matches)"]
    for name, keys in (("missing", report.missing), ("unknown or of another shape", report.unknown)):
        if keys:
            lines.append(f"  {len(keys)} {name}: {first_few(keys)}")
    return "\n".join(lines)
