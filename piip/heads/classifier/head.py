"""The classifiers of the released classification networks: one per branch, whose logits are averaged."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from timm.layers import trunc_normal_
from torch import Tensor, nn

from piip.branches.base import Tokens
from piip.features import FeatureSpec
from piip.heads.base import Exported, Head, Sizes
from piip.heads.classifier.config import ClassifierConfig


class Classifier(Head):
    """One class per image: per branch a norm and a linear layer on one token, and the mean over their logits.

    specs: the branches' maps, finest first, or the merged map alone.
    The released networks have class tokens in the branches, but classify the top-left patch.
    """

    def __init__(self, config: ClassifierConfig, specs: Sequence[FeatureSpec]) -> None:
        super().__init__()
        self.token = config.token
        self.norms = nn.ModuleList(nn.LayerNorm(spec.channels, eps=config.norm_eps) for spec in specs)
        linears = [nn.Linear(spec.channels, config.num_classes) for spec in specs]
        for linear in linears:
            trunc_normal_(linear.weight, std=0.02)
            nn.init.zeros_(linear.bias)
        self.linears = nn.ModuleList(linears)

    def forward(self, features: Sequence[Tokens | Tensor]) -> Tensor:
        """The tokens of every branch, or the merged map (B, C, H, W) -> logits (B, n)."""
        tokens = [norm(self._select(x)).mean(dim=1) for norm, x in zip(self.norms, features, strict=True)]
        return torch.stack([linear(x) for linear, x in zip(self.linears, tokens, strict=True)]).mean(dim=0)

    def _select(self, x: Tokens | Tensor) -> Tensor:
        """The tokens (B, L, C) of a branch, or of the merged map, that are classified, by their mean."""
        if isinstance(x, Tensor):
            return x.flatten(2).transpose(1, 2)
        if self.token == "class":
            assert x.prefix is not None  # see ClassifierConfig.check_network
            return x.prefix[:, :1]
        patches = x.map.flatten(1, 2)
        return patches if self.token == "mean" else patches[:, :1]

    def pretrained(self, branch: int) -> dict[str, nn.Module]:
        """The norm and the linear layer of a branch."""
        return {"norm": self.norms[branch], "head": self.linears[branch]}

    def class_layers(self) -> dict[nn.Module, int]:
        """The linear layer of every branch."""
        return dict.fromkeys(self.linears, 1)

    def parts(self) -> dict[str, str]:
        """The norms and linear layers as one."""
        return {"classifiers": ""}

    def loss(
        self, features: Sequence[Tokens | Tensor], image_sizes: Sizes, targets: list[dict[str, Tensor]]
    ) -> dict[str, Tensor]:
        """Cross-entropy with each image's label, or with the probabilities (n,) that mixing and smoothing gave it."""
        name = "probabilities" if "probabilities" in targets[0] else "label"
        return {"loss_cls": F.cross_entropy(self(features), torch.stack([target[name] for target in targets]))}

    def detect(self, features: Sequence[Tokens | Tensor], image_sizes: Sizes) -> Tensor:
        """Logits (B, n)."""
        return self(features)

    def export(self, features: Sequence[Tokens | Tensor], size: tuple[int, int], *, final: bool) -> Exported:
        """logits (B, n); finally labels (n,), the likeliest first, and scores (n,), their probabilities."""
        logits = self(features)
        if not final:
            return Exported({"logits": logits}, rows=False)
        scores, labels = logits[0].float().softmax(dim=0).topk(logits.shape[1])
        return Exported({"labels": labels, "scores": scores}, rows=True)

    def in_batch(self, outputs: Tensor, image_sizes: Sizes) -> Tensor:
        """Logits (B, n), which know no pixels."""
        return outputs

    def restore(self, outputs: Tensor, image_sizes: Sizes, original_sizes: Sizes) -> list[dict[str, Tensor]]:
        """Per image the classes, the likeliest first: labels (n,) int64 and scores (n,), their probabilities."""
        scores, labels = outputs.float().softmax(dim=1).sort(dim=1, descending=True, stable=True)
        return [{"labels": image, "scores": score} for image, score in zip(labels, scores, strict=True)]
