"""Pretrained single backbones, as their authors and timm publish them, loaded into a branch."""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import timm
from torch import Tensor, nn

from piip.errors import CheckpointError, MissingFile, first_few
from piip.weights.files import warn_of_non_finite
from piip.weights.read import read_state_dict

if TYPE_CHECKING:
    from piip.branches.base import Branch

_log = logging.getLogger(__name__)

_SUFFIXES = (".pth", ".pt", ".bin", ".ckpt", ".safetensors", ".npz")

# Parts of published networks that a branch may do without, and why.
_UNUSED = {
    r"(cls|dist|reg|register)_tokens?$": "tokens that the branch does not carry",
    r"mask_token$|decoder_|lm_head\.": "used in pretraining",
    r"(norm|fc_norm|head|head_dist|pre_logits|classifier|attn_pool|layernorm|clip_projector)\.": "behind the blocks",
    r".*relative_position_index$": "follows from sizes",
    r"norm_pre\.": "a norm before the blocks, which this type of branch does not have; timm_vit has it",
}

# What timm's networks call their final norm and their classifier.
_HEADS = {"norm": ("norm", "fc_norm", "head.norm"), "head": ("head", "head.fc")}


def load_pretrained(branch: Branch, source: str, *, head: Mapping[str, nn.Module] | None = None) -> None:
    """Loads pretrained weights into a branch, as `Branch.load_pretrained` says."""
    state, expected = branch.fit_pretrained(_read(source, branch.origins)), branch.state_dict()
    faults = {
        "missing": [key for key in expected if key not in state],
        "unknown": [key for key in state if key not in expected and not _reason(key)],
        "of another shape": [
            key for key, tensor in expected.items() if key in state and state[key].shape != tensor.shape
        ],
    }
    if any(faults.values()):
        found = "; ".join(f"{len(keys)} {what} ({first_few(keys, 3)})" for what, keys in faults.items() if keys)
        raise CheckpointError(f"pretrained weights '{source}' do not fit the branch: {found}")
    loaded = {key: state[key] for key in expected}
    warn_of_non_finite(source, loaded)
    branch.load_state_dict(loaded)
    read = {f"{name}." for part in head or {} for name in _HEADS[part]}
    unused = [key for key in state if key not in expected and not key.startswith(tuple(read))]
    for reason in sorted({_reason(key) for key in unused}):
        parts = sorted({key.partition(".")[0] for key in unused if _reason(key) == reason})
        level = logging.WARNING if "norm_pre" in parts else logging.INFO
        _log.log(level, "'%s': not used, %s: %s", source, reason, ", ".join(parts))
    for part, module in (head or {}).items():
        _load_head(part, module, state, source)


def _reason(key: str) -> str:
    """Why a branch does without a tensor of a published network; empty where there is no good reason."""
    return next((reason for pattern, reason in _UNUSED.items() if re.match(pattern, key)), "")


def _load_head(part: str, module: nn.Module, tensors: Mapping[str, Tensor], source: str) -> None:
    expected = module.state_dict()
    for name in _HEADS[part]:
        state = {key: tensors[f"{name}.{key}"] for key in expected if f"{name}.{key}" in tensors}
        if state.keys() != expected.keys():
            continue
        if all(state[key].shape == value.shape for key, value in expected.items()):
            module.load_state_dict(state)
            _log.info("'%s': its %s is loaded too", source, part)
        else:
            shapes = [" x ".join(map(str, found["weight"].shape)) for found in (state, expected)]
            _log.warning("'%s': its %s, %s, does not fit %s, which starts afresh", source, part, *shapes)
        return
    _log.warning("'%s' has no %s for the classifier, which starts afresh", source, part)


def _read(source: str, origins: Mapping[str, str]) -> dict[str, Tensor]:
    path = Path(source)
    if path.suffix not in _SUFFIXES:
        return _from_timm(source)
    if not path.is_file():
        origin = next((url for name, url in origins.items() if path.name.startswith(name)), "its publisher")
        raise MissingFile(f"checkpoint not found: {path}; fetch {path.name} from {origin} and put it there")
    return read_state_dict(path)[0]


def _from_timm(name: str) -> dict[str, Tensor]:
    cfg = timm.get_pretrained_cfg(name)
    if cfg is None or not timm.is_model(name):
        raise CheckpointError(f"'{name}' is neither a file nor a timm model; a file needs a suffix, such as .pth")
    try:
        return timm.create_model(name, pretrained=True).state_dict()
    except (OSError, RuntimeError) as error:
        where = f"https://huggingface.co/{cfg.hf_hub_id}" if cfg.hf_hub_id else cfg.url
        raise CheckpointError(
            f"cannot download the pretrained weights '{name}' ({type(error).__name__}); fetch {where} on a machine "
            "with a network connection and set the branch's init to the file"
        ) from None
