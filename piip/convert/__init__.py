"""Checkpoints of others, converted to ours: official PIIP networks (and back), and pretrained single branches."""

from piip.convert.official import ConversionReport, convert_back, convert_checkpoint
from piip.convert.pretrained import load_pretrained

__all__ = ["ConversionReport", "convert_back", "convert_checkpoint", "load_pretrained"]
