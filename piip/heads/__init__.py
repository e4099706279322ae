"""Task heads: from a feature pyramid to losses and results."""

from piip.heads.base import Head
from piip.heads.mask_rcnn import MaskRCNN

__all__ = ["Head", "MaskRCNN"]
