"""The N-branch network: branches, interactions between them, and their merging."""

from piip.backbone.interaction import CrossBranchAttention, Interaction, InteractionUnit
from piip.backbone.merge import Merge, OnlyBranch
from piip.backbone.piip import PIIP

__all__ = ["PIIP", "CrossBranchAttention", "Interaction", "InteractionUnit", "Merge", "OnlyBranch"]
