"""The repeated parts of a network, which are compiled, sharded and checkpointed one by one."""

from __future__ import annotations

from typing import Any

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


def compile_regions(network: nn.Module, **options: Any) -> None:
    """Compiles every region of a network in place, so that code is made once for all blocks of a kind.

    Compiling the network as a whole makes code for every block anew, which takes minutes. Names in the state dict stay;
    copies of the network are not compiled. options: of `torch.compile`. Where sizes change, the second size is compiled
    for any size (`dynamic` None, as by default in torch).
    """
    for region in regions(network).values():
        region.compile(**options)
