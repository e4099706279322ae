"""Task heads: from a feature pyramid to losses and results."""

from piip.heads.base import Head
from piip.heads.classifier import Classifier
from piip.heads.dino import DINO
from piip.heads.mask_rcnn import MaskRCNN
from piip.heads.upernet import UperNet

__all__ = ["DINO", "Classifier", "Head", "MaskRCNN", "UperNet"]
