"""The decoder of DINO (Zhang et al., 2023): queries attend to the encoder's memory and refine their boxes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

import torch
from torch import Tensor, nn

from piip.heads.deformable.encoder import FeedForward
from piip.heads.deformable.maps import Maps, sine_encoding
from piip.heads.dino.predictions import Predictions, Predictor, inverse_sigmoid
from piip.ops import MSDeformAttn
from piip.precision import full_precision

# Of the encoding of the queries' boxes.
TEMPERATURE = 10000


class DecoderLayer(nn.Module):
    """Queries attend to each other, then each attends to a few points around its box in all maps."""

    def __init__(self, *, dim: int, levels: int, num_heads: int, points: int, ffn_dim: int) -> None:
        super().__init__()
        self.self_attn = nn.MultiheadAttention(dim, num_heads, batch_first=True)
        self.norm1 = nn.LayerNorm(dim)
        self.cross_attn = MSDeformAttn(dim, levels, num_heads, points)
        self.norm2 = nn.LayerNorm(dim)
        self.ffn = FeedForward(dim=dim, ffn_dim=ffn_dim)
        self.norm3 = nn.LayerNorm(dim)

    def forward(
        self, x: Tensor, positions: Tensor, references: Tensor, memory: Tensor, maps: Maps, attn_mask: Tensor | None
    ) -> Tensor:
        """Queries (B, Q, C) -> queries; references: boxes (B, Q, L, 4) xywh; attn_mask: (Q, Q), True to hide."""
        query = x + positions
        x = self.norm1(x + self.self_attn(query, query, x, attn_mask=attn_mask, need_weights=False)[0])
        attended = self.cross_attn(x + positions, references, memory, maps.shapes, input_padding_mask=maps.padding)
        return self.norm3(self.ffn(self.norm2(x + attended)))


class Decoder(nn.Module):
    """Layers that refine the queries' boxes one after the other; each has a predictor.

    The loss of a layer's boxes reaches the layer before, and none further ("look forward twice", section 3.5).
    """

    def __init__(self, layers: Sequence[DecoderLayer], *, dim: int, num_classes: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList(layers)
        predictors = [Predictor(dim=dim, num_classes=num_classes) for _ in layers]
        self.predictors = cast("list[Predictor]", nn.ModuleList(predictors))
        self.box_encoding = nn.Sequential(nn.Linear(2 * dim, dim), nn.ReLU(), nn.Linear(dim, dim))
        self.norm = nn.LayerNorm(dim)

    def forward(
        self, x: Tensor, boxes: Tensor, memory: Tensor, maps: Maps, *, attn_mask: Tensor | None = None
    ) -> tuple[Tensor, Tensor, Predictions]:
        """
        x: queries (B, Q, C), with boxes (B, Q, 4) xywh in [0, 1]; memory: (B, S, C) of the maps' cells.
        attn_mask: (Q, Q) bool, True where a query (row) must not attend to another one.
        Returns the normalised queries after every layer (N, B, Q, C), the boxes before each and after the last
        (N + 1, B, Q, 4), and the predictions of every layer.
        """
        ratios = maps.ratios.repeat(1, 1, 2)[:, None]
        states, references, predictions = [], [boxes], []
        for layer, predictor in zip(self.layers, self.predictors, strict=True):
            per_level = boxes[:, :, None] * ratios
            positions = self.box_encoding(encode_boxes(per_level[:, :, 0], x.shape[-1] // 2))
            x = layer(x, positions, per_level, memory, maps, attn_mask)
            states.append(self.norm(x).float())
            with full_precision(x):
                # The predictor reads the queries twice, as released: as they are to move the boxes that the next layer
                # starts from, and normalised for the predictions, whose boxes start from those before this layer.
                predictions.append(predictor(states[-1], references[-1]))
                moved = (predictor.reg(x.float()) + inverse_sigmoid(boxes)).sigmoid()
            references.append(moved)
            boxes = moved.detach()
        logits, predicted = zip(*predictions, strict=True)
        return torch.stack(states), torch.stack(references), Predictions(torch.stack(logits), torch.stack(predicted))


def encode_boxes(boxes: Tensor, channels: int) -> Tensor:
    """Sine encoding (B, Q, 4 * channels) of boxes (B, Q, 4) xywh in [0, 1], in the order y, x, w, h."""
    x, y, w, h = boxes.unbind(-1)
    return sine_encoding(torch.stack([y, x, w, h], dim=-1), channels, TEMPERATURE).flatten(-2)
