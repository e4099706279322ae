"""Prediction heads for class and box, and mixed query selection (Zhang et al., 2023, section 3.4)."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor, nn

from piip.heads.deformable.maps import Maps

# Boxes this close to a border of the image are moved as if they were this far away, so that logits stay finite.
EPSILON = 1e-3
# What classifiers start from: the rate of objects that balances the focal loss (Lin et al., 2017).
PRIOR = 0.01
# Side of the box that a cell of the finest map proposes, as a share of the image; twice as large on every next map.
FINEST_SIDE = 0.05
# Cells whose centre, or boxes whose side, come closer than this to 0 or 1 of the image propose nothing.
PROPOSAL_MARGIN = 0.01


class Predictions(NamedTuple):
    """Of queries: logits (..., B, Q, classes) and boxes (..., B, Q, 4) xywh, centre first, in [0, 1]; float32."""

    logits: Tensor
    boxes: Tensor


def inverse_sigmoid(x: Tensor) -> Tensor:
    """Logits of numbers in [0, 1]; both the number and what is missing to 1 count as at least EPSILON."""
    return (x.clamp(EPSILON, 1.0) / (1 - x).clamp(EPSILON, 1.0)).log()


class Predictor(nn.Module):
    """The class logits of a query, and how its box is to be moved, in logits of its coordinates."""

    mixed_precision = False  # not even where the layers around it are

    def __init__(self, *, dim: int, num_classes: int) -> None:
        super().__init__()
        last = nn.Linear(dim, 4)
        self.cls = nn.Linear(dim, num_classes)
        self.reg = nn.Sequential(nn.Linear(dim, dim), nn.ReLU(), nn.Linear(dim, dim), nn.ReLU(), last)
        nn.init.constant_(self.cls.bias, -math.log(1 / PRIOR - 1))
        nn.init.zeros_(last.weight)
        nn.init.zeros_(last.bias)

    def forward(self, x: Tensor, boxes: Tensor) -> Predictions:
        """Queries (B, Q, C) float32 with boxes (B, Q, 4) in [0, 1] -> predictions."""
        return Predictions(self.cls(x), (self.reg(x) + inverse_sigmoid(boxes)).sigmoid())


class QuerySelector(nn.Module):
    """Selects the cells of the encoder that most likely hold an object, of any class; their boxes start the queries."""

    mixed_precision = False  # not even where the layers around it are

    def __init__(self, *, dim: int, num_classes: int) -> None:
        super().__init__()
        self.project = nn.Linear(dim, dim)
        self.norm = nn.LayerNorm(dim)
        self.predictor = Predictor(dim=dim, num_classes=num_classes)

    def forward(self, memory: Tensor, maps: Maps, num_queries: int) -> Predictions:
        """The at most `num_queries` best cells of memory (B, S, C) float32, best first, each with a box around it."""
        sides = [FINEST_SIDE * 2.0**level for level in range(len(maps.shapes))]
        side = torch.cat([memory.new_full((tokens, 2), s) for s, tokens in zip(sides, maps.levels, strict=True)])
        anchors = torch.cat([maps.centres, side.expand(memory.shape[0], -1, -1)], dim=-1)
        valid = ((anchors > PROPOSAL_MARGIN) & (anchors < 1 - PROPOSAL_MARGIN)).all(-1, keepdim=True)
        valid &= ~maps.padding[..., None]
        # A box at infinity stays there, whatever is added: the image's size, centred on its lower right corner.
        anchors = torch.where(valid, (anchors / (1 - anchors)).log(), math.inf)
        hidden = self.norm(self.project(torch.where(valid, memory, 0)))
        logits = self.predictor.cls(hidden)
        best = logits.amax(dim=-1).topk(min(num_queries, logits.shape[1]), dim=1).indices[..., None]
        # Boxes are computed for the selected cells only.
        moves = self.predictor.reg(hidden.gather(1, best.expand(-1, -1, hidden.shape[-1])))
        boxes = (moves + anchors.gather(1, best.expand(-1, -1, 4))).sigmoid()
        return Predictions(logits.gather(1, best.expand(-1, -1, logits.shape[-1])), boxes)
