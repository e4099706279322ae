"""Pretrained single backbones, as their authors and timm publish them, loaded into a branch.

Read are DeiT, DeiT III, MAE, DINOv2, BEiTv2, AugReg (`.npz` and `.pth`), Uni-Perceiver, InternViT-6B and ConvNeXt.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping
from pathlib import Path

import timm
import torch
from torch import Tensor, nn

from piip.branches.vit.resample import resample_patches, resample_pos_embed, resample_position_bias
from piip.errors import CheckpointError, MissingFile
from piip.official.keys import branch_key
from piip.weights.files import warn_of_non_finite
from piip.weights.read import read_state_dict

_log = logging.getLogger(__name__)

# Parts of a published network that a branch does not have: tokens, the final norm, classifiers, decoders.
_UNUSED = re.compile(
    r"(cls|dist|reg|register|mask)_tokens?$|(norm|fc_norm|norm_pre|layernorm|head|head_dist|pre_logits|classifier)\."
    r"|(lm_head|clip_projector)\.|decoder_|.*relative_position_index$|convnext(_model)?\.layernorm\."
)

# What published networks call their final norm and their classifier.
_HEADS = {
    "norm": ("norm", "fc_norm", "head.norm", "convnext.layernorm"),
    "head": ("head", "head.fc", "classifier"),
}

# Where the files come from that timm does not have.
_PUBLISHED = {
    "intern_vit_6b_224px.pth": "https://huggingface.co/OpenGVLab/InternVL",
    "uni-perceiver": "https://github.com/czczup/ViT-Adapter/releases/tag/v0.3.1",
}


def load_pretrained(branch: nn.Module, source: str, *, head: Mapping[str, nn.Module] | None = None) -> None:
    """Loads pretrained weights into a branch, in place.

    source: a checkpoint file, or the name of a pretrained timm model, which timm downloads. Position embeddings, patch
    projections and relative position biases are resampled to the branch's grid, patches and windows; layer scales
    that the source lacks keep their initial value.
    head: the `norm` and the classifier, `head`, of the model that the source's own are loaded into where they fit; a
    log line says what became of them.
    Raises CheckpointError naming what to fetch, or what does not fit.
    """
    tensors = _read_file(Path(source)) if Path(source).suffix in _SUFFIXES else _from_timm(source)
    expected = branch.state_dict()
    state: dict[str, Tensor] = {}
    for key, tensor in _unshared(tensors, expected).items():
        name = key if key in expected else branch_key(key)
        if name in expected:
            try:
                state[name] = _fit(name, tensor, expected[name])
            except (RuntimeError, IndexError, ValueError):
                # No shape that could be resampled.
                state[name] = tensor
        elif not _UNUSED.match(key):
            state[key] = tensor
    missing = [key for key in expected if key not in state and not re.search(r"\.ls\d\.", key)]
    unknown = [key for key in state if key not in expected]
    wrong = [key for key in state if key in expected and state[key].shape != expected[key].shape]
    if missing or unknown or wrong:
        found = "; ".join(
            f"{len(keys)} {what} ({', '.join(keys[:3])}{', ...' if len(keys) > 3 else ''})"
            for what, keys in (("missing", missing), ("unknown", unknown), ("of another shape", wrong))
            if keys
        )
        raise CheckpointError(f"pretrained weights '{source}' do not fit the branch: {found}")
    warn_of_non_finite(source, state)
    branch.load_state_dict(state, strict=False)
    for part, module in (head or {}).items():
        _load_head(part, module, tensors, source)


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


_SUFFIXES = (".pth", ".pt", ".bin", ".ckpt", ".safetensors", ".npz")


def _fit(name: str, tensor: Tensor, target: Tensor) -> Tensor:
    if name == "pos_embed":
        return resample_pos_embed(tensor.view(1, *tensor.shape[-2:]), target.shape[1])
    if name == "frame_embed":
        return tensor.view(1, -1, tensor.shape[-1])[:, :1]
    if name.endswith("position_bias.table"):
        return resample_position_bias(tensor, target.shape[0])
    if name == "patch_embed.proj.weight" and tensor.shape[2:] != target.shape[2:]:
        return resample_patches(tensor, (target.shape[2], target.shape[3]))
    return tensor


def _unshared(tensors: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Gives every block its own copy of a position bias that the source shares between blocks, as BEiT does."""
    tensors = dict(tensors)
    shared = tensors.pop("rel_pos_bias.relative_position_bias_table", None)
    if shared is not None:
        tensors |= {key: shared for key in expected if key.endswith("position_bias.table")}
    return tensors


def _read_file(path: Path) -> dict[str, Tensor]:
    if not path.is_file():
        origin = next((url for name, url in _PUBLISHED.items() if path.name.startswith(name)), "its publisher")
        raise MissingFile(f"checkpoint not found: {path}; fetch {path.name} from {origin} and put it there")
    tensors = read_state_dict(path)[0]
    return _from_jax(tensors) if path.suffix == ".npz" else tensors


# AugReg's names inside one of its blocks, and timm's.
_JAX_BLOCK = {
    "LayerNorm_0": "norm1",
    "LayerNorm_2": "norm2",
    "MlpBlock_3/Dense_0": "mlp.fc1",
    "MlpBlock_3/Dense_1": "mlp.fc2",
}
_JAX_LEAVES = {"kernel": "weight", "scale": "weight", "bias": "bias"}


def _from_jax(arrays: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """AugReg's arrays (Steiner et al., 2021) under timm's names: kernels are transposed, q, k and v are stacked.

    Raises CheckpointError if the file is another one.
    """
    try:
        state = {
            "pos_embed": arrays["Transformer/posembed_input/pos_embedding"],
            "patch_embed.proj.weight": arrays["embedding/kernel"].permute(3, 2, 0, 1),
            "patch_embed.proj.bias": arrays["embedding/bias"],
        }
        if "cls" in arrays:
            state["cls_token"] = arrays["cls"]
        names = {"Transformer/encoder_norm": "norm", "head": "head"}
        depth = len({key.split("/")[1] for key in arrays if key.startswith("Transformer/encoderblock_")})
        for block in range(depth):
            theirs, ours = f"Transformer/encoderblock_{block}/", f"blocks.{block}."
            names |= {theirs + name: ours + renamed for name, renamed in _JAX_BLOCK.items()}
            attention = f"{theirs}MultiHeadDotProductAttention_1/"
            kernels = [arrays[f"{attention}{part}/kernel"].flatten(1).T for part in ("query", "key", "value")]
            biases = [arrays[f"{attention}{part}/bias"].flatten() for part in ("query", "key", "value")]
            state[f"{ours}attn.qkv.weight"] = torch.cat(kernels)
            state[f"{ours}attn.qkv.bias"] = torch.cat(biases)
            state[f"{ours}attn.proj.weight"] = arrays[f"{attention}out/kernel"].flatten(0, 1).T
            state[f"{ours}attn.proj.bias"] = arrays[f"{attention}out/bias"]
        for name, renamed in names.items():
            for leaf, last in _JAX_LEAVES.items():
                if (array := arrays.get(f"{name}/{leaf}")) is not None:
                    state[f"{renamed}.{last}"] = array.T if array.dim() == 2 else array
    except KeyError as error:
        raise CheckpointError(f"the file holds no vision transformer of AugReg: {error} is missing") from None
    except (RuntimeError, IndexError) as error:
        raise CheckpointError(f"the file holds no vision transformer of AugReg: {error}") from None
    return state


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
