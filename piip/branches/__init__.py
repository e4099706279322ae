"""The branch types. A branch is one file; nothing outside asks which type it is."""

from piip.branches.base import Branch, Tokens
from piip.branches.convnext import ConvNeXt
from piip.branches.vit import ViT

__all__ = ["Branch", "ConvNeXt", "Tokens", "ViT"]
