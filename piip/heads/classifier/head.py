"""The classifiers of the released classification networks: one a branch, whose logits are averaged."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
import torch.nn.functional as F
from timm.layers import trunc_normal_
from torch import Tensor, nn

from piip.features import FeatureSpec
from piip.heads.base import Head

SHOWN = 5  # classes an image's result names


class Classifier(Head):
    """One class an image: per branch a norm and a linear layer on one token, and the mean over their logits.

    specs: the branches' maps, finest first; none of them merged. The other settings are those of `ClassifierConfig`.
    The released networks have class tokens in the branches, but classify the top-left patch.
    """

    task = "classification"
    needs = frozenset({"label"})

    def __init__(
        self,
        *,
        specs: Sequence[FeatureSpec],
        num_classes: int = 1000,
        token: Literal["first_patch", "class", "mean"] = "first_patch",
        norm_eps: float = 1e-6,
    ) -> None:
        super().__init__()
        self.token = token
        self.norms = nn.ModuleList(nn.LayerNorm(spec.channels, eps=norm_eps) for spec in specs)
        linears = [nn.Linear(spec.channels, num_classes) for spec in specs]
        for linear in linears:
            trunc_normal_(linear.weight, std=0.02)
            nn.init.zeros_(linear.bias)
        self.linears = nn.ModuleList(linears)

    def forward(self, features: list[Tensor]) -> Tensor:
        """The branches' maps (B, C, H, W), then the class tokens (B, C, 1, 1) they have -> logits (B, n)."""
        count = len(self.norms)
        read = features[-count:] if self.token == "class" else features[:count]
        if self.token != "mean":
            read = [x[:, :, :1, :1] for x in read]
        tokens = [norm(x.flatten(2).mT).mean(dim=1) for norm, x in zip(self.norms, read, strict=True)]
        return torch.stack([linear(x) for linear, x in zip(self.linears, tokens, strict=True)]).mean(dim=0)

    def pretrained(self, branch: int) -> dict[str, nn.Module]:
        """The norm and the linear layer of a branch."""
        return {"norm": self.norms[branch], "head": self.linears[branch]}

    def parts(self) -> dict[str, str]:
        """The norms and linear layers as one."""
        return {"classifiers": ""}

    def loss(
        self, features: list[Tensor], image_sizes: list[tuple[int, int]], targets: list[dict[str, Tensor]]
    ) -> dict[str, Tensor]:
        """Cross-entropy with each image's label, or with the probabilities (n,) that mixing and smoothing gave it."""
        name = "probabilities" if "probabilities" in targets[0] else "label"
        return {"loss_cls": F.cross_entropy(self(features), torch.stack([target[name] for target in targets]))}

    def detect(self, features: list[Tensor], image_sizes: list[tuple[int, int]]) -> Tensor:
        """Logits (B, n)."""
        return self(features)

    def in_batch(self, outputs: Tensor, image_sizes: list[tuple[int, int]]) -> Tensor:
        """Logits (B, n), which know no pixels."""
        return outputs

    def restore(
        self, outputs: Tensor, image_sizes: list[tuple[int, int]], original_sizes: list[tuple[int, int]]
    ) -> list[dict[str, Tensor]]:
        """Per image the likeliest classes, five at most: labels int64 and scores, their probabilities, descending."""
        scores, labels = outputs.float().softmax(dim=1).topk(min(SHOWN, outputs.shape[1]), dim=1)
        return [{"labels": image, "scores": score} for image, score in zip(labels, scores, strict=True)]
