"""Parameter-Inverted Image Pyramid Networks: the smallest of several backbones sees the finest image."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from piip import ops
    from piip.load import build_model, create_model
    from piip.model import Model, draw

__version__ = "0.1.0"
__all__ = ["Model", "build_model", "create_model", "draw", "ops"]


def __getattr__(name: str) -> Any:
    # Loaded on first use, so that `import piip` and `piip --help` do not import torch.
    import importlib

    if name == "ops":
        return importlib.import_module("piip.ops")
    if name in __all__:
        return getattr(importlib.import_module("piip.model" if name in ("Model", "draw") else "piip.load"), name)
    raise AttributeError(f"module 'piip' has no attribute '{name}'")
