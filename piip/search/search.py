"""The paper's guideline as a search: which resolutions give the most for a budget."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import combinations_with_replacement
from typing import NamedTuple

from piip.config.letters import backbone_from_letters
from piip.errors import ConfigError
from piip.official.flops.scripts import paper_count
from piip.search.published import ROWS, fit, near

# As in the published rows: multiples of 14 patches, the window of their branches.
_STEP, _LARGEST = 224, 1792
SETS = tuple(dict.fromkeys(row.letters for row in ROWS))


class Candidate(NamedTuple):
    """box_ap: by the fit. known: whether a published row is near, so that the fit has something to say of it."""

    letters: str
    resolutions: tuple[int, ...]
    gmacs: float
    box_ap: float
    known: bool

    @property
    def name(self) -> str:
        """'tsb 1568/1120/672'."""
        return f"{self.letters} {'/'.join(map(str, self.resolutions))}"


def candidates(letters: Sequence[str]) -> list[Candidate]:
    """All resolutions of these sets of branches, finest first, on the grid of the published ones.

    Raises ConfigError for branches whose resolutions were not varied in the paper.
    """
    model, found = fit(), []
    for name in letters:
        if name not in SETS:
            raise ConfigError(f"the paper varies the resolutions of {', '.join(SETS)}, not of '{name}'")
        sizes = range(_LARGEST, 0, -_STEP)
        for resolutions in combinations_with_replacement(sizes, len(name)):
            gmacs = paper_count(backbone_from_letters(name, resolutions)).total.macs / 1e9
            known = near(name, resolutions)
            found.append(Candidate(name, resolutions, gmacs, model.predict(resolutions, gmacs), known))
    return found


def frontier(found: Sequence[Candidate]) -> list[Candidate]:
    """Those of which no cheaper one is as good, the cheapest first."""
    best: list[Candidate] = []
    for one in sorted(found, key=lambda one: (one.gmacs, -one.box_ap)):
        if not best or one.box_ap > best[-1].box_ap:
            best.append(one)
    return best


def fastest_within(
    found: Sequence[Candidate], limit: float, measure: Callable[[Candidate], float]
) -> tuple[list[Candidate], dict[str, float]]:
    """Those on a frontier that take at most `limit`, by measuring few of them, and what was measured by name.

    The more a network on the frontier costs, the longer it takes, so that the border is found by halving.
    """
    low, high, measured = 0, len(found), {}
    while low < high:
        middle = (low + high) // 2
        measured[found[middle].name] = measure(found[middle])
        low, high = (middle + 1, high) if measured[found[middle].name] <= limit else (low, middle)
    return list(found[:low]), measured


def as_config(one: Candidate) -> str:
    """The YAML of a Mask R-CNN with this backbone, on the recipe of the released rows."""
    long = one.resolutions[0]
    resize = f"[[{long}, {round(0.6 * long)}]]"
    return f"""# Found by piip search: {one.gmacs:.0f} GMACs of the backbone, box AP {one.box_ap:.1f} by its fit.
base: [base/piip_{one.letters}, base/coco_1x]
model:
  backbone: {{resolutions: [{", ".join(map(str, one.resolutions))}]}}
data:
  train_transforms: {{resize: {resize}}}
  val_transforms: {{resize: {resize}}}
"""
