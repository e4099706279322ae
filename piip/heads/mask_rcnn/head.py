"""Mask R-CNN (He et al., 2017) as the released PIIP detectors have it: mmdetection 2's settings and arithmetic."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from piip.errors import ConfigError
from piip.features import FeatureSpec
from piip.heads.base import Head, restore_boxes
from piip.heads.mask_rcnn import masks, roi
from piip.heads.mask_rcnn.mask_runs import encode_pasted
from piip.heads.mask_rcnn.masks import MaskHead, mask_targets, paste_masks
from piip.heads.mask_rcnn.roi import BoxHead, pool
from piip.heads.mask_rcnn.rpn import RPN, Proposals, RPNOutputs

__all__ = ["MaskRCNN", "Stages"]

# Of the pyramid, from the finest; what is coarser only serves the region proposal network.
POOLED_LEVELS = 4


class Stages(NamedTuple):
    """Everything on the way from features to detections, for B images with R proposals and D detections altogether.

    R: B times as many as the image with the most has.
    pooled: (R, C, 7, 7); logits: (R, classes + 1), background last; deltas: (R, classes, 4).
    detections: per image boxes (n, 4), scores (n,), labels (n,); mask_logits: (D, classes, 28, 28).
    """

    rpn: RPNOutputs
    proposals: Proposals
    pooled: Tensor
    logits: Tensor
    deltas: Tensor
    detections: list[dict[str, Tensor]]
    mask_logits: Tensor


class MaskRCNN(Head):
    """Boxes, classes and masks of objects from a feature pyramid.

    specs: the pyramid, finest first, one width for all levels. The other settings are those of `MaskRCNNConfig`.
    Raises ConfigError if the levels differ in width.
    """

    task = "detection"
    needs = frozenset({"boxes", "labels", "masks"})

    def __init__(
        self,
        *,
        specs: Sequence[FeatureSpec],
        num_classes: int = 80,
        anchor_scale: float = 8.0,
        anchor_ratios: Sequence[float] = (0.5, 1.0, 2.0),
        rpn_batch: int = 256,
        rpn_pre_nms_train: int = 2000,
        rpn_pre_nms_test: int = 1000,
        rpn_proposals: int = 1000,
        rpn_nms: float = 0.7,
        roi_batch: int = 512,
        fc_channels: int = 1024,
        mask_channels: int = 256,
        mask_convs: int = 4,
        score_threshold: float = 0.05,
        nms: float = 0.5,
        max_detections: int = 100,
    ) -> None:
        super().__init__()
        if len({spec.channels for spec in specs}) != 1:
            got = ", ".join(str(spec.channels) for spec in specs)
            raise ConfigError(f"Mask R-CNN needs pyramid levels of one width, as from an FPN, got {got} channels")
        self.strides = [spec.stride for spec in specs[:POOLED_LEVELS]]
        channels = specs[0].channels
        self.pre_nms_train, self.pre_nms_test = rpn_pre_nms_train, rpn_pre_nms_test
        self.rpn = RPN(
            specs=specs,
            anchor_scale=anchor_scale,
            anchor_ratios=anchor_ratios,
            batch=rpn_batch,
            proposals=rpn_proposals,
            nms=rpn_nms,
        )
        self.box = BoxHead(
            channels=channels,
            num_classes=num_classes,
            fc_channels=fc_channels,
            batch=roi_batch,
            score_threshold=score_threshold,
            nms=nms,
            max_detections=max_detections,
        )
        self.mask = MaskHead(channels=channels, num_classes=num_classes, width=mask_channels, num_convs=mask_convs)

    def loss(
        self, features: list[Tensor], image_sizes: list[tuple[int, int]], targets: list[dict[str, Tensor]]
    ) -> dict[str, Tensor]:
        """Training losses, float32 scalars; their sum is to be minimised.

        features: pyramid maps (B, C, H, W), finest first; image_sizes: valid (h, w) of each image in the batch;
        targets: per image boxes (n, 4), labels (n,) and masks (n, h, w). Crowd regions play no part, as in the released
        recipes. Every parameter gets a gradient, if of zeros, whatever the images hold. It waits for the device twice,
        and once for every four images.
        """
        objects = [target["boxes"] for target in targets]
        outputs = self.rpn(features)
        losses = self.rpn.loss(outputs, objects)
        proposals = [boxes for boxes, _ in self.rpn.propose(outputs, image_sizes, pre_nms=self.pre_nms_train)]
        samples = self.box.sample(proposals, objects, [target["labels"] for target in targets])
        logits, deltas = self.box(self._pool(features, [image.boxes for image in samples], roi.POOLED))
        losses |= self.box.loss(logits, deltas, samples, objects)

        held = [image.boxes[: image.held] for image in samples]
        height, width = (cells * self.strides[0] for cells in features[0].shape[2:])
        wanted = [
            mask_targets(target["masks"], boxes, image.objects[: image.held], canvas=(height, width))
            for target, boxes, image in zip(targets, held, samples, strict=True)
        ]
        labels = torch.cat([image.labels[: image.held] for image in samples])
        return losses | self.mask.loss(self.mask(self._pool(features, held, masks.POOLED)), labels, torch.cat(wanted))

    @torch.no_grad()
    def stages(self, features: list[Tensor], image_sizes: list[tuple[int, int]]) -> Stages:
        """Runs inference and returns every intermediate result."""
        outputs = self.rpn(features)
        proposals = self.rpn.propose_padded(outputs, image_sizes, pre_nms=self.pre_nms_test)
        pooled = self._pool(features, proposals.boxes.unbind(), roi.POOLED)
        logits, deltas = self.box(pooled)
        detections = self.box.select(logits, deltas, proposals, image_sizes)
        mask_logits = self.mask(self._pool(features, [image["boxes"] for image in detections], masks.POOLED))
        return Stages(outputs, proposals, pooled, logits, deltas, detections, mask_logits)

    def detect(self, features: list[Tensor], image_sizes: list[tuple[int, int]]) -> list[dict[str, Tensor]]:
        """Detections in batch pixels with masks still small, which `restore` brings to the original images.

        Returns per image boxes (n, 4) xyxy within its valid size, scores (n,) descending, labels (n,) and
        mask_probabilities (n, 28, 28), each spanning its box.
        """
        stages = self.stages(features, image_sizes)
        labels = torch.cat([image["labels"] for image in stages.detections])
        probabilities = stages.mask_logits[torch.arange(len(labels), device=labels.device), labels].sigmoid()
        parts = probabilities.split([len(image["labels"]) for image in stages.detections])
        return [image | {"mask_probabilities": part} for image, part in zip(stages.detections, parts, strict=True)]

    def infer(self, features: list[Tensor], image_sizes: list[tuple[int, int]]) -> list[dict[str, Tensor]]:
        """Detections in batch pixels.

        Returns per image boxes (n, 4), scores (n,), labels (n,) and masks (n, h, w) bool at its valid size.
        """
        return self.restore(self.detect(features, image_sizes), image_sizes, image_sizes)

    def restore(
        self,
        outputs: list[dict[str, Tensor]],
        image_sizes: list[tuple[int, int]],
        original_sizes: list[tuple[int, int]],
    ) -> list[dict[str, Tensor]]:
        """Detections in each image's original pixels, from what `detect` returned.

        image_sizes, original_sizes: (h, w) of each image in the batch and as it was read.
        Returns per image boxes (n, 4), scores (n,), labels (n,) and masks (n, h, w) bool at its original size.
        """
        results = _restore_boxes(outputs, image_sizes, original_sizes)
        for image, result, size in zip(outputs, results, original_sizes, strict=True):
            result["masks"] = paste_masks(image["mask_probabilities"], result["boxes"], size)
        return results

    def restore_encoded(
        self,
        outputs: list[dict[str, Tensor]],
        image_sizes: list[tuple[int, int]],
        original_sizes: list[tuple[int, int]],
    ) -> list[dict[str, Any]]:
        """What `restore` returns, but masks as n compressed run lengths, `rles`."""
        results: list[dict[str, Any]] = [*_restore_boxes(outputs, image_sizes, original_sizes)]
        for image, result, size in zip(outputs, results, original_sizes, strict=True):
            result["rles"] = encode_pasted(image["mask_probabilities"], result["boxes"], size)
        return results

    def run_for_count(self, features: list[Tensor], image_sizes: list[tuple[int, int]]) -> None:
        """As many proposals and detections as the config allows, without RoIAlign and NMS."""
        images, channels = features[0].shape[:2]
        self.rpn(features)
        self.box(features[0].new_empty(images * self.rpn.proposals, channels, roi.POOLED, roi.POOLED))
        self.mask(features[0].new_empty(images * self.box.max_detections, channels, masks.POOLED, masks.POOLED))

    def _pool(self, features: list[Tensor], boxes: Sequence[Tensor], size: int) -> Tensor:
        return pool(features[: len(self.strides)], self.strides, boxes, size)


def _restore_boxes(
    outputs: list[dict[str, Tensor]], image_sizes: list[tuple[int, int]], original_sizes: list[tuple[int, int]]
) -> list[dict[str, Tensor]]:
    """Per image boxes (n, 4) in its original pixels, scores (n,) and labels (n,)."""
    return [
        {
            "boxes": restore_boxes(image["boxes"], size, original),
            "scores": image["scores"],
            "labels": image["labels"],
        }
        for image, size, original in zip(outputs, image_sizes, original_sizes, strict=True)
    ]
