"""What the backbone knows of a branch.

A branch is one pretrained backbone cut into blocks. The backbone embeds an image, runs the blocks in groups, and lets
neighbouring branches interact between groups; it asks a branch nothing else.

To add a branch type, subclass `Branch` and, for its settings, `BranchConfig`, whose `build` makes the branch. In this
package they are a folder beside this file, with the settings in its `config.py`; elsewhere they are anywhere, and an
entry point of the group `piip.branches` names the config. Nothing else has to know of them. docs/extending.md shows it.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor, nn

from piip.branches.pretrained import load_pretrained
from piip.errors import ConfigError
from piip.features import FeatureSpec


class Tokens(NamedTuple):
    """The state of a branch between blocks: a feature map (B, H, W, C), and tokens (B, P, C) that belong to no patch.

    prefix: the class token, where there is one, and then the registers; None where a branch has neither.
    """

    map: Tensor
    prefix: Tensor | None = None

    def float(self) -> Tokens:
        """The same in float32."""
        return Tokens(self.map.float(), None if self.prefix is None else self.prefix.float())

    def row(self) -> Tensor:
        """All tokens in one row (B, P + H * W, C), the prefix first."""
        patches = self.map.flatten(1, 2)
        return patches if self.prefix is None else torch.cat((self.prefix, patches), dim=1)

    def replace_row(self, row: Tensor) -> Tokens:
        """The inverse of `row`: tokens of the same shapes from a row of them."""
        if self.prefix is None:
            return Tokens(row.view(self.map.shape))
        count = self.prefix.shape[1]
        return Tokens(row[:, count:].view(self.map.shape), row[:, :count])


class Branch(nn.Module):
    """A backbone cut into blocks; between blocks its state is one feature map, perhaps with prefix tokens beside it."""

    specs: list[FeatureSpec]  # channels and stride of the map after each block
    # Where the pretrained weights come from that timm does not have: how a file's name begins -> its address.
    origins: ClassVar[Mapping[str, str]] = {}

    @property
    def depth(self) -> int:
        """Number of blocks."""
        return len(self.specs)

    def units(self) -> list[nn.Module]:
        """The blocks as modules: what is compiled, sharded and checkpointed one by one. By default there are none."""
        return []

    @abstractmethod
    def embed(self, images: Tensor) -> Tokens:
        """Images (B, 3, H, W), normalised, to the first feature map (B, H/s, W/s, C)."""

    @abstractmethod
    def run_blocks(self, x: Tokens, start: int, stop: int) -> Tokens:
        """Applies blocks start to stop - 1 to a feature map (B, H, W, C) -> (B, H', W', C'), see `specs`."""

    def freeze(self, what: bool | str | int) -> None:
        """Takes parameters out of training, as `BranchConfig.freeze` says.

        Raises ConfigError for more blocks than there are, or where the branch has no `units`.
        """
        units = self.units()
        blocks = len(units) if what is True else 0 if what in (False, "embed") else int(what)
        if blocks > len(units) or (what and not units and what is not True):
            raise ConfigError(f"freeze: {what} does not fit a branch that has {len(units)} blocks to freeze")
        trained = {id(parameter) for unit in units[blocks:] for parameter in unit.parameters()}
        for parameter in self.parameters():
            if what and id(parameter) not in trained:
                parameter.requires_grad_(False)

    def layer_of(self, parameter: str) -> int | None:
        """Depth of a parameter for layer-wise learning-rate decay.

        parameter: its name inside the branch. Returns 0 for the embedding, i + 1 for block i, None for what trains at
        the full rate, as by default everything does.
        """
        return None

    def load_pretrained(self, source: str, *, head: Mapping[str, nn.Module] | None = None) -> None:
        """Loads the weights of a pretrained network, in place.

        source: a checkpoint file, or the name of a pretrained timm model, which timm downloads; `fit_pretrained` says
        which networks are understood. head: the `norm` and the classifier, `head`, of the model, into which the
        network's own are loaded where they fit; a log line says what became of them.
        Raises CheckpointError naming what to fetch, or what does not fit; nothing is then changed.
        """
        load_pretrained(self, source, head=head)

    def fit_pretrained(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The tensors of a published network under the names of this branch and in its shapes.

        What this branch does not have is left out or keeps its name: final norms, classifiers and tokens in timm's
        naming are passed over, all else is refused. By default the names and shapes must be those of the branch.
        """
        return dict(tensors)
