"""The repeated parts of a network, which are compiled, sharded and checkpointed one by one."""

from __future__ import annotations

from torch import nn

from piip.backbone.interaction import CrossBranchAttention
from piip.branches.base import Branch


def regions(network: nn.Module) -> dict[str, nn.Module]:
    """The blocks of every branch and the directions of every interaction, by their names in the network."""
    parts = {id(unit) for module in network.modules() if isinstance(module, Branch) for unit in module.units()}
    return {
        name: module
        for name, module in network.named_modules()
        if id(module) in parts or isinstance(module, CrossBranchAttention)
    }
