"""Published vision transformers, under the names and in the shapes of a branch.

Read are DeiT, DeiT III, MAE, DINOv2, BEiTv2, AugReg (`.npz` and `.pth`), Uni-Perceiver and InternViT-6B.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

import torch
from torch import Tensor

from piip.branches.vit.resample import resample_patches, resample_pos_embed, resample_position_bias
from piip.errors import CheckpointError
from piip.weights.names import Names

# Names of each author's code, where they are not timm's, and ours.
DEIT = [("blocks.{i}.gamma_{k}", "blocks.{i}.ls{k}.gamma")]
BEIT = [("blocks.{i}.attn.relative_position_bias_table", "blocks.{i}.attn.position_bias.table"), *DEIT]
UNIPERCEIVER = [
    ("visual_embed.patch_embed.spatial_pos_embed.weight", "pos_embed"),
    ("visual_embed.patch_embed.temporal_pos_embed.weight", "frame_embed"),
    ("visual_embed.patch_embed.proj.{rest}", "patch_embed.proj.{rest}"),
    ("visual_embed.embeddings_norm.{rest}", "embed_norm.{rest}"),
    ("layers.{i}.gamma_{k}", "blocks.{i}.ls{k}.gamma"),
    ("layers.{i}.self_attn.in_proj.{rest}", "blocks.{i}.attn.qkv.{rest}"),
    ("layers.{i}.self_attn.out_proj.{rest}", "blocks.{i}.attn.proj.{rest}"),
    ("layers.{i}.linear{k}.{rest}", "blocks.{i}.mlp.fc{k}.{rest}"),
    ("layers.{i}.norm{k}.{rest}", "blocks.{i}.norm{k}.{rest}"),
]
INTERNVIT_HUB = [  # as transformers has it
    ("embeddings.position_embedding", "pos_embed"),
    ("embeddings.patch_embedding.{rest}", "patch_embed.proj.{rest}"),
    ("encoder.layers.{i}.ls{k}", "blocks.{i}.ls{k}.gamma"),
    ("encoder.layers.{i}.{rest}", "blocks.{i}.{rest}"),
]
_NAMES = Names([*BEIT, *UNIPERCEIVER, *INTERNVIT_HUB])

# Where the files come from that timm does not have.
ORIGINS = {
    "intern_vit_6b_224px.pth": "https://huggingface.co/OpenGVLab/InternVL",
    "uni-perceiver": "https://github.com/czczup/ViT-Adapter/releases/tag/v0.3.1",
}


def fit_pretrained(tensors: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A published network's tensors under our names and, as far as they can be resampled, in our shapes.

    expected: the state dict of the branch. Layer scales that the source lacks keep their value there. What a branch
    does not know keeps its name. Raises CheckpointError for arrays of JAX that are no vision transformer of AugReg.
    """
    if any("/" in key for key in tensors):
        tensors = _from_jax(tensors)
    state = {key: value for key, value in expected.items() if re.search(r"\.ls\d\.", key)}
    for key, tensor in _unshared(tensors, expected).items():
        name = key if key in expected else _NAMES.get(key) or key
        if name in expected:
            try:
                state[name] = _fit(name, tensor, expected[name])
            except (RuntimeError, IndexError, ValueError):
                # No shape that could be resampled.
                state[name] = tensor
        else:
            state[key] = tensor
    return state


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
