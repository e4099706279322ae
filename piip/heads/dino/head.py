"""DINO (Zhang et al., 2023) as the released PIIP detectors have it: mmdetection's "4scale" settings and arithmetic."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torchvision.ops import box_convert, clip_boxes_to_image

from piip.errors import ConfigError
from piip.features import FeatureSpec
from piip.heads.base import Head, restore_boxes
from piip.heads.deformable.encoder import Encoder, EncoderLayer
from piip.heads.deformable.maps import flatten
from piip.heads.dino.answers import Answers, Proposer
from piip.heads.dino.decoder import Decoder, DecoderLayer
from piip.heads.dino.denoising import Denoising, Noise, disturb, draw_noise, hidden_queries, number_of_groups
from piip.heads.dino.losses import Matching, average_over_processes, losses
from piip.heads.dino.objects import Objects, gather_objects
from piip.ops import MSDeformAttn
from piip.precision import full_precision

__all__ = ["DINO", "Stages"]


class Stages(NamedTuple):
    """Everything on the way from features to answers, in float32, for N decoder layers.

    memory: (B, S, C). proposals: of the cells that became queries. states: (N, B, Q, C). references: (N + 1, B, Q, 4),
    the boxes before each layer and after the last. answers: of every layer. Queries of denoising, if any, come first.
    """

    memory: Tensor
    proposals: Answers
    states: Tensor
    references: Tensor
    answers: Answers


class DINO(Head):
    """Boxes and classes of objects: queries that start from the encoder's best cells and are refined by a decoder.

    specs: the pyramid, finest first, one width for all levels. The other settings are those of `DINOConfig`.
    Under autocast the layers of encoder and decoder, a sixth of a released network's work, run in lower precision, but
    with `mixed_precision` false, as released; positions, boxes, scores, matching and losses stay float32.
    Raises ConfigError if the levels differ in width, or the width does not suit the heads.
    """

    task = "detection"
    needs = frozenset({"boxes", "labels"})

    def __init__(
        self,
        *,
        specs: Sequence[FeatureSpec],
        num_classes: int = 80,
        num_queries: int = 900,
        encoder_layers: int = 6,
        decoder_layers: int = 6,
        num_heads: int = 8,
        points: int = 4,
        ffn_dim: int = 2048,
        denoising_queries: int = 100,
        label_noise: float = 0.5,
        box_noise: float = 1.0,
        max_detections: int = 300,
        mixed_precision: bool = True,
        checkpoint_activations: bool = False,
    ) -> None:
        super().__init__()
        dim = specs[0].channels
        if any(spec.channels != dim for spec in specs) or dim % num_heads or dim % 4:
            got = ", ".join(str(spec.channels) for spec in specs)
            raise ConfigError(
                "DINO needs levels of one width, as from a channel_mapper neck, that is a multiple of 4 and of "
                f"head.num_heads ({num_heads}); got {got} channels"
            )
        self.stride = specs[0].stride
        self.mixed_precision = mixed_precision
        self.num_classes, self.max_detections = num_classes, max_detections
        self.denoising_queries, self.label_noise, self.box_noise = denoising_queries, label_noise, box_noise
        layer = {"dim": dim, "levels": len(specs), "num_heads": num_heads, "points": points, "ffn_dim": ffn_dim}
        self.level_embed = nn.Parameter(torch.randn(len(specs), dim))
        self.encoder = Encoder(
            [EncoderLayer(**layer) for _ in range(encoder_layers)], checkpoint_activations=checkpoint_activations
        )
        self.decoder = Decoder([DecoderLayer(**layer) for _ in range(decoder_layers)], dim=dim, num_classes=num_classes)
        for part in (self.encoder.layers, self.decoder.layers, self.decoder.box_encoding):
            _initialise(part)
        self.proposer = Proposer(dim=dim, num_classes=num_classes)
        nn.init.xavier_uniform_(self.proposer.project.weight)
        self.query_embed = nn.Embedding(num_queries, dim)
        self.label_embed = nn.Embedding(num_classes, dim)

    def loss(
        self, features: list[Tensor], image_sizes: list[tuple[int, int]], targets: list[dict[str, Tensor]]
    ) -> dict[str, Tensor]:
        """Training losses, float32 scalars; their sum is to be minimised.

        features: pyramid maps (B, C, H, W), finest first; image_sizes: valid (h, w) of each image in the batch;
        targets: per image boxes (n, 4) and labels (n,). Masks and crowd regions play no part. Names are those of the
        released code: of the last decoder layer plain, of an earlier one with "d0." and so on before them, of the
        proposals with "interm_", of denoising with "dn_". Every parameter gets a gradient, whatever the images hold.
        """
        objects = gather_objects(targets, image_sizes)
        copies = 2 * number_of_groups(objects, self.denoising_queries)
        noise = draw_noise(
            (copies, len(targets), objects.places),
            num_classes=self.num_classes,
            label_noise=self.label_noise,
            device=objects.boxes.device,
        )
        return self.loss_with_noise(features, image_sizes, objects, noise)

    def loss_with_noise(
        self, features: list[Tensor], image_sizes: list[tuple[int, int]], objects: Objects, noise: Noise
    ) -> dict[str, Tensor]:
        """The losses under given denoising noise."""
        denoising = disturb(objects, noise, box_noise=self.box_noise)
        stages = self.stages(features, image_sizes, denoising)
        with full_precision(stages.memory):
            return self._losses(stages, objects, denoising)

    def _losses(self, stages: Stages, objects: Objects, denoising: Denoising) -> dict[str, Tensor]:
        count = denoising.labels.shape[1]
        logits, boxes = stages.answers
        # The proposals learn from the same objects by the same rule, as one more stage.
        answers = Answers(
            torch.cat([logits[:, :, count:], stages.proposals.logits[None]]),
            torch.cat([boxes[:, :, count:], stages.proposals.boxes[None]]),
        )
        matching = Matching(answers, objects)
        copies = objects.repeat(denoising.groups)
        matched = sum(min(image, logits.shape[2] - count) for image in objects.counts)
        normalisers = average_over_processes([matched, sum(copies.counts)], logits.device)
        # These need no matching: a device is busy with them while the host solves it.
        positives = denoising.positives.expand(1, len(objects.held), -1)
        known = losses(Answers(logits[:, :, :count], boxes[:, :, :count]), positives, copies, normalisers[1])
        found = losses(answers, matching.solve(), objects, normalisers[0])
        named = {f"interm_{name}": values[-1] for name, values in found.items()}
        last = len(logits) - 1
        for layer in (last, *range(last)):
            prefix = "" if layer == last else f"d{layer}."
            named |= {f"{prefix}{name}": values[layer] for name, values in found.items()}
            named |= {f"{prefix}dn_{name}": values[layer] for name, values in known.items()}
        return named

    def stages(
        self, features: list[Tensor], image_sizes: list[tuple[int, int]], denoising: Denoising | None = None
    ) -> Stages:
        """Runs the network and returns every intermediate result; denoising: queries to put before the others."""
        maps = flatten([x.float() for x in features], image_sizes, self.stride)
        levels = [embed.expand(tokens, -1) for embed, tokens in zip(self.level_embed, maps.levels, strict=True)]
        memory = self.encoder(maps, maps.positions + torch.cat(levels)).float()
        with full_precision(memory):
            proposals = self.proposer(memory, maps, self.query_embed.num_embeddings)

        boxes = proposals.boxes.detach()
        queries = self.query_embed.weight[: boxes.shape[1]].expand(len(boxes), -1, -1)
        hidden = None
        if denoising is not None:
            known = torch.where(denoising.held[..., None], self.label_embed(denoising.labels), 0)
            hidden = hidden_queries(denoising, queries.shape[1])
            queries = torch.cat([known, queries], dim=1)
            boxes = torch.cat([denoising.boxes, boxes], dim=1)
        return Stages(memory, proposals, *self.decoder(queries, boxes, memory, maps, hidden=hidden))

    def detect(self, features: list[Tensor], image_sizes: list[tuple[int, int]]) -> list[dict[str, Tensor]]:
        """Detections in batch pixels: per image boxes (n, 4) xyxy within its valid size, scores (n,) descending,
        labels (n,). A query may be detected as several classes.
        """
        logits, boxes = (x[-1] for x in self.stages(features, image_sizes).answers)
        scores, best = logits.sigmoid().flatten(1).topk(min(self.max_detections, logits[0].numel()), dim=1)
        chosen = boxes.gather(1, (best // self.num_classes)[..., None].expand(-1, -1, 4))
        results = []
        for image, (height, width) in enumerate(image_sizes):
            pixels = torch.tensor([width, height, width, height]).to(boxes.device, non_blocking=True)
            corners = clip_boxes_to_image(box_convert(chosen[image], "cxcywh", "xyxy") * pixels, (height, width))
            results.append({"boxes": corners, "scores": scores[image], "labels": best[image] % self.num_classes})
        return results

    def run_for_count(self, features: list[Tensor], image_sizes: list[tuple[int, int]]) -> None:
        """The network alone: what `detect` does with its predictions needs their values."""
        self.stages(features, image_sizes)

    def infer(self, features: list[Tensor], image_sizes: list[tuple[int, int]]) -> list[dict[str, Tensor]]:
        """Detections in batch pixels, as from `detect`."""
        return self.detect(features, image_sizes)

    def restore(
        self,
        outputs: list[dict[str, Tensor]],
        image_sizes: list[tuple[int, int]],
        original_sizes: list[tuple[int, int]],
    ) -> list[dict[str, Tensor]]:
        """Detections in each image's original pixels, from what `detect` returned.

        image_sizes, original_sizes: (h, w) of each image in the batch and as it was read.
        """
        return [
            image | {"boxes": restore_boxes(image["boxes"], size, original)}
            for image, size, original in zip(outputs, image_sizes, original_sizes, strict=True)
        ]


def _initialise(part: nn.Module) -> None:
    """As released: uniform weights by fan-in and fan-out, except in deformable attention, which has its own."""
    for parameter in part.parameters():
        if parameter.dim() > 1:
            nn.init.xavier_uniform_(parameter)
    for module in part.modules():
        if isinstance(module, MSDeformAttn):
            module.reset_parameters()
