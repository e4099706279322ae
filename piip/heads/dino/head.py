"""DINO (Zhang et al., 2023) as the released PIIP detectors have it: mmdetection's "4scale" settings and arithmetic."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torchvision.ops import box_convert, clip_boxes_to_image

from piip.errors import ConfigError
from piip.features import FeatureSpec
from piip.heads.base import Exported, Sizes
from piip.heads.deformable.encoder import Encoder, EncoderLayer, initialise
from piip.heads.deformable.maps import flatten
from piip.heads.detection import DetectionHead
from piip.heads.dino.config import DINOConfig
from piip.heads.dino.decoder import Decoder, DecoderLayer
from piip.heads.dino.denoising import Denoising, Noise, add_noise, attention_mask, draw_noise, number_of_groups
from piip.heads.dino.losses import Matching, average_over_processes, losses
from piip.heads.dino.objects import Objects, gather_objects
from piip.heads.dino.predictions import Predictions, QuerySelector
from piip.precision import full_precision

# Of the encoding of the cells' positions; the decoder has the 10000 of other transformers for its boxes.
TEMPERATURE = 20


class Stages(NamedTuple):
    """Every intermediate result from features to predictions, in float32, of N decoder layers.

    memory: (B, S, C). proposals: the predictions for the cells that became queries. states: (N, B, Q, C). references:
    (N + 1, B, Q, 4), the boxes before each layer and after the last. predictions: of every layer. Denoising queries, if
    any, come first.
    """

    memory: Tensor
    proposals: Predictions
    states: Tensor
    references: Tensor
    predictions: Predictions


class DINO(DetectionHead):
    """Boxes and classes of objects: queries that start at the encoder's best cells and are refined by a decoder.

    specs: the pyramid, finest first, one width for all levels.
    Under autocast the layers of encoder and decoder, a sixth of a released network's work, run in lower precision, but
    with `mixed_precision` false, as released; positions, boxes, scores, matching and losses stay float32.
    Raises ConfigError if the levels differ in width, or the width does not suit the heads.
    """

    def __init__(self, config: DINOConfig, specs: Sequence[FeatureSpec]) -> None:
        super().__init__()
        dim, num_classes = specs[0].channels, config.num_classes
        if any(spec.channels != dim for spec in specs) or dim % config.num_heads or dim % 4:
            got = ", ".join(str(spec.channels) for spec in specs)
            raise ConfigError(
                "DINO needs levels of one width, as from a channel_mapper neck, that is a multiple of 4 and of "
                f"head.num_heads ({config.num_heads}); got {got} channels"
            )
        self.config, self.stride = config, specs[0].stride
        self.mixed_precision = config.mixed_precision
        layer = {
            "dim": dim,
            "levels": len(specs),
            "num_heads": config.num_heads,
            "points": config.points,
            "ffn_dim": config.ffn_dim,
        }
        self.level_embed = nn.Parameter(torch.randn(len(specs), dim))
        self.encoder = Encoder(
            [EncoderLayer(**layer) for _ in range(config.encoder_layers)],
            checkpoint_activations=config.checkpoint_activations,
        )
        self.decoder = Decoder(
            [DecoderLayer(**layer) for _ in range(config.decoder_layers)], dim=dim, num_classes=num_classes
        )
        for part in (self.encoder.layers, self.decoder.layers, self.decoder.box_encoding):
            initialise(part)
        # State dicts know the query selection by this name.
        self.proposer = QuerySelector(dim=dim, num_classes=num_classes)
        nn.init.xavier_uniform_(self.proposer.project.weight)
        self.query_embed = nn.Embedding(config.num_queries, dim)
        self.label_embed = nn.Embedding(num_classes, dim)

    def class_layers(self) -> dict[nn.Module, int]:
        """The classifiers of every decoder layer and of the proposals, and the label embeddings of denoising."""
        predictors = [*self.decoder.predictors, self.proposer.predictor]
        return {self.label_embed: 1} | {predictor.cls: 1 for predictor in predictors}

    def loss(self, features: list[Tensor], image_sizes: Sizes, targets: list[dict[str, Tensor]]) -> dict[str, Tensor]:
        """Training losses, float32 scalars; their sum is to be minimised.

        targets: per image boxes (n, 4) and labels (n,). Masks and crowd regions play no part. Names are those of the
        released code: of the last decoder layer plain, of an earlier one with "d0." and so on before them, of the
        proposals with "interm_", of denoising with "dn_". Every parameter gets a gradient, whatever the images hold.
        """
        objects = gather_objects(targets, image_sizes)
        copies = 2 * number_of_groups(objects, self.config.denoising_queries)
        noise = draw_noise(
            (copies, len(targets), objects.labels.shape[1]),
            num_classes=self.config.num_classes,
            label_noise=self.config.label_noise,
            device=objects.boxes.device,
        )
        return self.loss_with_noise(features, image_sizes, objects, noise)

    def loss_with_noise(
        self, features: list[Tensor], image_sizes: Sizes, objects: Objects, noise: Noise
    ) -> dict[str, Tensor]:
        """The losses under given denoising noise."""
        denoising = add_noise(objects, noise, box_noise=self.config.box_noise)
        stages = self.stages(features, image_sizes, denoising)
        with full_precision(stages.memory):
            return self._losses(stages, objects, denoising)

    def _losses(self, stages: Stages, objects: Objects, denoising: Denoising) -> dict[str, Tensor]:
        count = denoising.labels.shape[1]
        logits, boxes = stages.predictions
        # The proposals learn from the same objects by the same rule, as one more stage.
        predictions = Predictions(
            torch.cat([logits[:, :, count:], stages.proposals.logits[None]]),
            torch.cat([boxes[:, :, count:], stages.proposals.boxes[None]]),
        )
        matching = Matching(predictions, objects)
        copies = objects.repeat(denoising.groups)
        matched = sum(min(image, logits.shape[2] - count) for image in objects.counts)
        normalisers = average_over_processes([matched, sum(copies.counts)], logits.device)
        # Denoising needs no matching: a device is busy with its losses while the host solves the matching.
        positives = denoising.positives.expand(1, len(objects.labels), -1)
        denoised = Predictions(logits[:, :, :count], boxes[:, :, :count])
        denoising_losses = losses(denoised, positives, copies, normalisers[1])
        matching_losses = losses(predictions, matching.solve(), objects, normalisers[0])
        named = {f"interm_{name}": values[-1] for name, values in matching_losses.items()}
        last = len(logits) - 1
        for layer in (last, *range(last)):
            prefix = "" if layer == last else f"d{layer}."
            named |= {f"{prefix}{name}": values[layer] for name, values in matching_losses.items()}
            named |= {f"{prefix}dn_{name}": values[layer] for name, values in denoising_losses.items()}
        return named

    def stages(self, features: list[Tensor], image_sizes: Sizes, denoising: Denoising | None = None) -> Stages:
        """Runs the network and returns every intermediate result; denoising: queries to put before the others."""
        maps = flatten([x.float() for x in features], image_sizes, stride=self.stride, temperature=TEMPERATURE)
        levels = [embed.expand(tokens, -1) for embed, tokens in zip(self.level_embed, maps.levels, strict=True)]
        memory = self.encoder(maps, maps.positions + torch.cat(levels)).float()
        with full_precision(memory):
            proposals = self.proposer(memory, maps, self.query_embed.num_embeddings)

        boxes = proposals.boxes.detach()
        queries = self.query_embed.weight[: boxes.shape[1]].expand(boxes.shape[0], -1, -1)
        attn_mask = None
        if denoising is not None:
            noised = torch.where(denoising.valid[..., None], self.label_embed(denoising.labels), 0)
            attn_mask = attention_mask(denoising, queries.shape[1])
            queries = torch.cat([noised, queries], dim=1)
            boxes = torch.cat([denoising.boxes, boxes], dim=1)
        return Stages(memory, proposals, *self.decoder(queries, boxes, memory, maps, attn_mask=attn_mask))

    def detect(self, features: list[Tensor], image_sizes: Sizes) -> list[dict[str, Tensor]]:
        """Detections in batch pixels: per image boxes (n, 4) xyxy within its valid size, scores (n,) descending,
        labels (n,). A query may be detected as several classes.
        """
        logits, boxes = (x[-1] for x in self.stages(features, image_sizes).predictions)
        num_classes = self.config.num_classes
        scores, best = logits.sigmoid().flatten(1).topk(min(self.config.max_detections, logits[0].numel()), dim=1)
        chosen = boxes.gather(1, (best // num_classes)[..., None].expand(-1, -1, 4))
        results = []
        for image, (height, width) in enumerate(image_sizes):
            pixels = torch.tensor([width, height, width, height]).to(boxes.device, non_blocking=True)
            corners = clip_boxes_to_image(box_convert(chosen[image], "cxcywh", "xyxy") * pixels, (height, width))
            results.append({"boxes": corners, "scores": scores[image], "labels": best[image] % num_classes})
        return results

    def export(self, features: list[Tensor], size: tuple[int, int], *, final: bool) -> Exported:
        """boxes (B, Q, 4) xyxy in pixels and scores (B, Q, classes) of all queries; there is nothing to suppress.

        Finally boxes (n, 4), scores (n,) descending, and labels (n,) of the best pairs of query and class.
        """
        if final:
            return Exported(self.detect(features, [size])[0], rows=True)
        logits, boxes = (x[-1] for x in self.stages(features, [size]).predictions)
        height, width = size
        corners = box_convert(boxes, "cxcywh", "xyxy") * boxes.new_tensor([width, height, width, height])
        corners = torch.minimum(corners.clamp(min=0), boxes.new_tensor([width, height, width, height]))
        return Exported({"boxes": corners, "scores": logits.sigmoid()}, rows=True)

    def run_for_count(self, features: list[Tensor], image_sizes: Sizes) -> None:
        """The network alone: what `detect` does with its predictions needs their values."""
        self.stages(features, image_sizes)
