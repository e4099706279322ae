"""Mask R-CNN (He et al., 2017) as the released PIIP detectors have it: mmdetection 2's settings and arithmetic."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from piip.errors import ConfigError
from piip.features import FeatureSpec
from piip.heads.base import Exported, Sizes
from piip.heads.detection import DetectionHead
from piip.heads.mask_rcnn import masks, roi
from piip.heads.mask_rcnn.config import MaskRCNNConfig
from piip.heads.mask_rcnn.mask_runs import encode_pasted
from piip.heads.mask_rcnn.masks import MaskHead, mask_targets, paste_masks, paste_whole
from piip.heads.mask_rcnn.roi import BoxHead, Samples, pool, pool_rois
from piip.heads.mask_rcnn.rpn import RPN, Proposals, RPNOutputs

# Levels of the pyramid, from the finest, that boxes are pooled from; coarser ones only serve the proposal network.
POOLED_LEVELS = 4


class Stages(NamedTuple):
    """Every intermediate result from features to detections, of B images with R proposals and D detections altogether.

    R: B times as many as the image with the most has.
    pooled: (R, C, 7, 7); logits: (R, classes + 1), background last; deltas: (R, classes, 4).
    detections: per image boxes (n, 4), scores (n,), labels (n,); mask_logits: (D, classes, 28, 28), with a
    mask branch.
    """

    rpn: RPNOutputs
    proposals: Proposals
    pooled: Tensor
    logits: Tensor
    deltas: Tensor
    detections: list[dict[str, Tensor]]
    mask_logits: Tensor | None


class MaskRCNN(DetectionHead):
    """Boxes, classes and masks of objects from a feature pyramid.

    specs: the pyramid, finest first, one width for all levels.
    Raises ConfigError if the levels differ in width.
    """

    def __init__(self, config: MaskRCNNConfig, specs: Sequence[FeatureSpec]) -> None:
        super().__init__()
        if len({spec.channels for spec in specs}) != 1:
            got = ", ".join(str(spec.channels) for spec in specs)
            raise ConfigError(f"Mask R-CNN needs pyramid levels of one width, as from an FPN, got {got} channels")
        self.config = config
        self.strides = [spec.stride for spec in specs[:POOLED_LEVELS]]
        channels = specs[0].channels
        self.rpn = RPN(config, specs)
        self.box = BoxHead(config, channels)
        self.mask = MaskHead(config, channels) if config.masks else None

    def class_layers(self) -> dict[nn.Module, int]:
        """The classifier of boxes, with the background last; the boxes, of four numbers per class; and the masks."""
        layers: dict[nn.Module, int] = {self.box.cls: 1, self.box.reg: 4}
        return layers if self.mask is None else layers | {self.mask.logits: 1}

    def loss(self, features: list[Tensor], image_sizes: Sizes, targets: list[dict[str, Tensor]]) -> dict[str, Tensor]:
        """Training losses, float32 scalars; their sum is to be minimised.

        targets: per image boxes (n, 4), labels (n,) and, with a mask branch, masks (n, h, w), of which it learns only
        those that `has_mask` (n,) marks, where an image has that. Crowd regions play no part, as in the released
        recipes. Every parameter gets a gradient, if of zeros, whatever the images hold. It waits for the device twice,
        and once for every four images.
        """
        objects = [target["boxes"] for target in targets]
        outputs = self.rpn(features)
        losses = self.rpn.loss(outputs, objects)
        proposals = self.rpn.propose(outputs, image_sizes, pre_nms=self.config.rpn_pre_nms_train)
        samples = self.box.sample([boxes for boxes, _ in proposals], objects, [target["labels"] for target in targets])
        logits, deltas = self.box(self._pool(features, [image.boxes for image in samples], roi.POOLED))
        losses |= self.box.loss(logits, deltas, samples, objects)
        if self.mask is None:
            return losses

        rows = [_rows_with_masks(image, target) for image, target in zip(samples, targets, strict=True)]
        boxes = [image.boxes[chosen] for image, chosen in zip(samples, rows, strict=True)]
        height, width = (cells * self.strides[0] for cells in features[0].shape[2:])
        true_masks = [
            mask_targets(target["masks"], positives, image.objects[chosen], canvas=(height, width))
            for target, positives, image, chosen in zip(targets, boxes, samples, rows, strict=True)
        ]
        labels = torch.cat([image.labels[chosen] for image, chosen in zip(samples, rows, strict=True)])
        logits = self.mask(self._pool(features, boxes, masks.POOLED))
        return losses | self.mask.loss(logits, labels, torch.cat(true_masks))

    @torch.no_grad()
    def stages(self, features: list[Tensor], image_sizes: Sizes) -> Stages:
        """Runs inference and returns every intermediate result."""
        outputs = self.rpn(features)
        proposals = self.rpn.propose_padded(outputs, image_sizes, pre_nms=self.config.rpn_pre_nms_test)
        pooled = self._pool(features, proposals.boxes.unbind(), roi.POOLED)
        logits, deltas = self.box(pooled)
        detections = self.box.select(logits, deltas, proposals, image_sizes)
        mask_logits = None
        if self.mask is not None:
            mask_logits = self.mask(self._pool(features, [image["boxes"] for image in detections], masks.POOLED))
        return Stages(outputs, proposals, pooled, logits, deltas, detections, mask_logits)

    def detect(self, features: list[Tensor], image_sizes: Sizes) -> list[dict[str, Tensor]]:
        """Detections in batch pixels with masks still small, if any, which `restore` brings to the original images.

        Returns per image boxes (n, 4) xyxy within its valid size, scores (n,) descending, labels (n,) and
        mask_probabilities (n, 28, 28), each spanning its box.
        """
        stages = self.stages(features, image_sizes)
        if stages.mask_logits is None:
            return stages.detections
        labels = torch.cat([image["labels"] for image in stages.detections])
        probabilities = stages.mask_logits[torch.arange(len(labels), device=labels.device), labels].sigmoid()
        parts = probabilities.split([len(image["labels"]) for image in stages.detections])
        return [image | {"mask_probabilities": part} for image, part in zip(stages.detections, parts, strict=True)]

    def export(self, features: list[Tensor], size: tuple[int, int], *, final: bool) -> Exported:
        """boxes (B, P, classes, 4) xyxy and scores (B, P, classes) of all proposals; masks need chosen boxes.

        Finally boxes (n, 4), scores (n,) descending, labels (n,) and, with a mask branch, masks (n, h, w) bool, of at
        most max_detections objects.
        """
        proposals = self.rpn.propose_padded(self.rpn(features), [size], pre_nms=self.config.rpn_pre_nms_test)
        logits, deltas = self.box(self._pool_padded(features, proposals.boxes, roi.POOLED))
        boxes, scores = self.box.boxes(deltas, proposals, [size]), self.box.scores(logits, proposals)
        if not final:
            return Exported({"boxes": boxes, "scores": scores}, rows=True)
        keep, counts = self.box.suppress_all(boxes, scores)
        keep = keep[0, (torch.arange(keep.shape[1], device=keep.device) < counts[0]).nonzero()[:, 0]]
        labels = keep % self.config.num_classes
        found = {"boxes": boxes.flatten(0, 2)[keep], "scores": scores.flatten()[keep], "labels": labels}
        if self.mask is not None:
            mask_logits = self.mask(self._pool_padded(features, found["boxes"][None], masks.POOLED))
            chosen = mask_logits.gather(1, labels[:, None, None, None].expand(-1, 1, masks.SIDE, masks.SIDE))
            found["masks"] = paste_whole(chosen[:, 0].sigmoid(), found["boxes"], size)
        return Exported(found, rows=True)

    def restore(self, outputs: list[dict[str, Tensor]], image_sizes: Sizes, original_sizes: Sizes) -> list[Any]:
        """What every detector returns and, with a mask branch, masks (n, h, w) bool at an image's original size."""
        results = super().restore(outputs, image_sizes, original_sizes)
        if self.mask is not None:
            for image, result, size in zip(outputs, results, original_sizes, strict=True):
                result["masks"] = paste_masks(image["mask_probabilities"], result["boxes"], size)
        return results

    def restore_encoded(
        self, outputs: list[dict[str, Tensor]], image_sizes: Sizes, original_sizes: Sizes
    ) -> list[dict[str, Any]]:
        """What `restore` returns, but masks as n compressed run lengths, `rles`."""
        results = super().restore(outputs, image_sizes, original_sizes)
        if self.mask is not None:
            for image, result, size in zip(outputs, results, original_sizes, strict=True):
                result["rles"] = encode_pasted(image["mask_probabilities"], result["boxes"], size)
        return results

    def run_for_count(self, features: list[Tensor], image_sizes: Sizes) -> None:
        """As many proposals and detections as the config allows, without RoIAlign and NMS."""
        images, channels = features[0].shape[:2]
        self.rpn(features)
        self.box(features[0].new_empty(images * self.config.rpn_proposals, channels, roi.POOLED, roi.POOLED))
        if self.mask is not None:
            self.mask(features[0].new_empty(images * self.config.max_detections, channels, masks.POOLED, masks.POOLED))

    def _pool_padded(self, features: list[Tensor], boxes: Tensor, size: int) -> Tensor:
        """As `_pool`, of boxes (B, P, 4)."""
        image = torch.arange(boxes.shape[0], device=boxes.device)[:, None, None].expand(-1, boxes.shape[1], -1)
        rois = torch.cat([image.to(boxes), boxes], dim=-1).flatten(0, 1)
        return pool_rois(features[: len(self.strides)], self.strides, rois, size)

    def _pool(self, features: list[Tensor], boxes: Sequence[Tensor], size: int) -> Tensor:
        return pool(features[: len(self.strides)], self.strides, boxes, size)


def _rows_with_masks(samples: Samples, target: dict[str, Tensor]) -> slice | Tensor:
    """The samples of an image that the mask branch learns from: those that hold an object, if it has a mask."""
    positives = slice(samples.num_positives)
    if "has_mask" not in target:
        return positives
    return target["has_mask"][samples.objects[positives]].nonzero()[:, 0]
