"""What timm's names of models stand for."""

from __future__ import annotations

from functools import cache
from typing import Any

from piip.config.strict import nearest
from piip.errors import ConfigError


def check_name(name: str) -> None:
    """Raises ConfigError with the nearest names for a model that timm does not know. A tag behind a dot is ignored."""
    import timm

    architecture = name.partition(".")[0]
    if not timm.is_model(architecture):
        hint = nearest(architecture, timm.list_models())
        raise ConfigError(f"timm has no model '{name}'" + (f"; {hint}" if hint else ""))


@cache
def timm_network(name: str, **settings: Any) -> Any:
    """timm's model of a name, on the meta device, without a classifier; None for a name that timm does not know."""
    import timm
    import torch

    architecture = name.partition(".")[0]
    if not timm.is_model(architecture):
        return None
    with torch.inference_mode(False), torch.device("meta"):
        return timm.create_model(architecture, pretrained=False, num_classes=0, **settings).eval()
