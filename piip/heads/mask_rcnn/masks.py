"""The mask head (He et al., 2017, "Mask R-CNN"), its targets, and pasting its small masks into an image."""

from __future__ import annotations

from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.ops import roi_align

from piip import host
from piip.heads.mask_rcnn.config import MaskRCNNConfig

POOLED = 14
SIDE = 2 * POOLED  # of a predicted mask, in cells
THRESHOLD = 0.5

# Pixels of all masks together that are pasted at once: 256 MiB of float32.
PASTE_PIXELS = 2**26


class MaskHead(nn.Module):
    """Convolutions, an upsampling by two, and one mask per class. channels: of the pyramid."""

    def __init__(self, config: MaskRCNNConfig, channels: int) -> None:
        super().__init__()
        widths = [channels] + [config.mask_channels] * config.mask_convs
        self.convs = nn.ModuleList(nn.Conv2d(before, after, 3, padding=1) for before, after in pairwise(widths))
        self.upsample = nn.ConvTranspose2d(widths[-1], config.mask_channels, 2, stride=2)
        self.logits = nn.Conv2d(config.mask_channels, config.num_classes, 1)
        for name, parameter in self.named_parameters():
            if name.endswith("bias"):
                nn.init.zeros_(parameter)
            else:
                nn.init.kaiming_normal_(parameter, mode="fan_out", nonlinearity="relu")

    def forward(self, x: Tensor) -> Tensor:
        """Pooled boxes (R, C, 14, 14) -> float32 logits (R, classes, 28, 28)."""
        for conv in self.convs:
            x = F.relu(conv(x))
        return self.logits(F.relu(self.upsample(x))).float()

    def loss(self, logits: Tensor, labels: Tensor, targets: Tensor) -> dict[str, Tensor]:
        """Binary cross-entropy of logits (R, classes, 28, 28), at the classes labels (R,), with targets (R, 28, 28)."""
        chosen = logits[torch.arange(len(labels), device=labels.device), labels]
        entropy = F.binary_cross_entropy_with_logits(chosen, targets, reduction="sum")
        return {"loss_mask": entropy / max(targets.numel(), 1)}


def mask_targets(masks: Tensor, boxes: Tensor, objects: Tensor, canvas: tuple[int, int]) -> Tensor:
    """What the mask head should predict in boxes (n, 4) that hold the objects (n,) of masks (g, h, w).

    canvas: (H, W) of the padded batch. Returns (n, 28, 28) float32 of zeros and ones.
    """
    if not len(boxes):
        return boxes.new_zeros(0, SIDE, SIDE)
    height, width = masks.shape[1:]
    # Interpolation sees zeros beyond an image that is smaller than the canvas, and the last pixel repeated beyond one
    # that is not: the masks that checkpoints were trained with are padded with their image.
    masks = F.pad(masks.float(), (0, int(width < canvas[1]), 0, int(height < canvas[0])))
    rois = torch.cat([objects[:, None].to(boxes), boxes], dim=1)
    cropped = roi_align(masks[:, None], rois, SIDE, spatial_scale=1.0, sampling_ratio=0, aligned=True)
    return (cropped[:, 0] >= THRESHOLD).float()


@torch.no_grad()
def paste_masks(probabilities: Tensor, boxes: Tensor, size: tuple[int, int]) -> Tensor:
    """Resizes each of probabilities (n, 28, 28) to its box of boxes (n, 4), and thresholds it.

    Bilinear between the centres of mask cells, and towards zero beyond the outermost; evaluated at pixel centres.
    Returns (n, h, w) bool for size (h, w).
    """
    probabilities, boxes = probabilities.float(), boxes.float()
    masks = torch.zeros(len(boxes), *size, dtype=torch.bool, device=boxes.device)
    with torch.autocast(boxes.device.type, enabled=False):
        if host.is_host(boxes.device):
            rows, columns = _bilinear_weights(boxes, size)
            # Each mask only where its box is: beyond it, interpolation with zero stays below the threshold.
            for index, (left, top, right, bottom) in enumerate(pixel_bounds(boxes, size).tolist()):
                resampled = rows[index, top:bottom] @ probabilities[index] @ columns[index, left:right].T
                torch.ge(resampled, THRESHOLD, out=masks[index, top:bottom, left:right])
            return masks
        # A device would have to be waited for until the boxes are on the host: whole images, several at a time.
        step = max(1, PASTE_PIXELS // max(1, size[0] * size[1]))
        for start in range(0, len(boxes), step):
            part = slice(start, start + step)
            masks[part] = paste_whole(probabilities[part], boxes[part], size)
    return masks


def paste_whole(probabilities: Tensor, boxes: Tensor, size: tuple[int, int]) -> Tensor:
    """The masks (n, h, w) of `paste_masks`, in one operation for all."""
    rows, columns = _bilinear_weights(boxes, size)
    return rows @ probabilities @ columns.mT >= THRESHOLD


def pixel_bounds(boxes: Tensor, size: tuple[int, int]) -> Tensor:
    """The pixels of an image of size (h, w) that boxes (n, 4) touch: first column and row, one past the last ones."""
    limits = torch.tensor([size[1], size[0]] * 2, device=boxes.device)
    return torch.cat([boxes[:, :2].floor(), boxes[:, 2:].ceil()], dim=1).clamp(min=0).minimum(limits).int()


def _bilinear_weights(boxes: Tensor, size: tuple[int, int]) -> tuple[Tensor, Tensor]:
    """Share of each mask cell in each row of pixels (n, h, 28) and in each column (n, w, 28).

    Bilinear resampling is separable: a pasted mask is rows @ mask @ columns.T.
    """
    rows, columns = (torch.arange(side, dtype=torch.float32, device=boxes.device) + 0.5 for side in size)
    left, top, right, bottom = boxes.T[..., None]
    return cell_weights(rows, top, bottom), cell_weights(columns, left, right)


def cell_weights(centres: Tensor, low: Tensor, high: Tensor) -> Tensor:
    """Share (..., 28) of each mask cell, along one axis, in pixels with these centres, in boxes from low to high."""
    cells = torch.arange(SIDE, dtype=torch.float32, device=centres.device)
    extent = (high - low).clamp(min=torch.finfo(torch.float32).tiny)  # 0 / 0 would be NaN
    position = (centres - low) / extent * SIDE - 0.5
    return (1 - (position[..., None] - cells).abs()).clamp(min=0)
