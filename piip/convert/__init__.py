"""Checkpoints of others, converted to ours: official PIIP networks, and pretrained single branches."""

from piip.convert.official import ConversionReport, convert_checkpoint
from piip.convert.vit import load_pretrained

__all__ = ["ConversionReport", "convert_checkpoint", "load_pretrained"]
