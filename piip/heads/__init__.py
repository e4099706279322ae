"""Task heads: from a feature pyramid to losses and results."""

from piip.heads.mask_rcnn import MaskRCNN

__all__ = ["MaskRCNN"]
