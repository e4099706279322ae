"""The two ops of the extension, and what exported programs need beside them; usable without the rest of the package."""

from __future__ import annotations

from piip.ops._registration import register_flop_formulas
from piip.ops.deform_attn import deform_attn, ms_deform_attn
from piip.ops.module import MSDeformAttn
from piip.ops.nms import nms
from piip.ops.pyramid_resize import pyramid_resize

__all__ = ["MSDeformAttn", "deform_attn", "ms_deform_attn", "nms", "pyramid_resize", "register_flop_formulas"]
