"""Pretrained vision transformers, as DeiT, DeiT III and timm publish them, loaded into a ViT branch."""

from __future__ import annotations

import re
from pathlib import Path

import timm
import torch.nn.functional as F
from torch import Tensor, nn

from piip.convert.sources import read_state_dict
from piip.errors import CheckpointError

# Parts of a published classifier that a branch does not have.
_UNUSED = re.compile(r"(cls|dist|reg|mask)_token$|(norm|fc_norm|head|head_dist|pre_logits)\.")
_LAYER_SCALE = re.compile(r"(blocks\.\d+)\.gamma_(\d)$")


def load_pretrained(branch: nn.Module, source: str) -> None:
    """Loads pretrained weights into a ViT branch, in place.

    source: a checkpoint file, or the name of a pretrained timm model, which timm downloads. The position embedding and
    the patch projection are resampled (bicubic) to the branch's grid and patch size; layer scales that the source
    lacks keep their initial value. Raises CheckpointError naming what to fetch, or what does not fit.
    """
    tensors = read_state_dict(Path(source))[0] if Path(source).suffix else _from_timm(source)
    expected = branch.state_dict()
    state: dict[str, Tensor] = {}
    for key, tensor in tensors.items():
        if _UNUSED.match(key):
            continue
        name = _LAYER_SCALE.sub(r"\1.ls\2.gamma", key)
        if name == "pos_embed":
            tensor = resample_pos_embed(tensor, expected[name].shape[1])
        elif name == "patch_embed.proj.weight" and tensor.shape[2:] != expected[name].shape[2:]:
            size = tuple(expected[name].shape[2:])
            tensor = F.interpolate(tensor.float(), size=size, mode="bicubic", align_corners=False)
        state[name] = tensor
    missing = [key for key in expected if key not in state and ".ls" not in key]
    unknown = [key for key in state if key not in expected]
    wrong = [key for key in state if key in expected and state[key].shape != expected[key].shape]
    if missing or unknown or wrong:
        found = "; ".join(
            f"{len(keys)} {what} ({', '.join(keys[:3])}{', ...' if len(keys) > 3 else ''})"
            for what, keys in (("missing", missing), ("unknown", unknown), ("of another shape", wrong))
            if keys
        )
        raise CheckpointError(f"pretrained weights '{source}' do not fit the branch: {found}")
    branch.load_state_dict(state, strict=False)


def resample_pos_embed(pos_embed: Tensor, tokens: int) -> Tensor:
    """A learned (1, L, C) position embedding, without prefix tokens, resized (bicubic) to `tokens` square cells."""
    length = pos_embed.shape[1]
    side = int(length**0.5)
    patches = pos_embed[:, length - side * side :].float()
    target = int(tokens**0.5)
    if side == target:
        return patches
    grid = patches.unflatten(1, (side, side)).permute(0, 3, 1, 2)
    grid = F.interpolate(grid, size=(target, target), mode="bicubic", align_corners=False)
    return grid.flatten(2).transpose(1, 2)


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
