"""COCO's crowds: regions of objects that nobody has counted, and what else tools mark as such."""

from __future__ import annotations

from collections import Counter
from typing import Literal

from piip.data.findings import Findings
from piip.data.sets.instances.records import Annotation

Crowds = Literal["auto", "objects", "regions"]

# Crowd regions are rare: shares of all annotations that are worth a look, and a warning.
_SOME_CROWDS, _MANY_CROWDS = 0.1, 0.5


def settle_crowds(
    objects: list[list[Annotation]],
    drawn: set[tuple[bool, bool]],
    names: list[str],
    crowds: Crowds,
    findings: Findings,
) -> list[list[Annotation]]:
    """The objects with crowds among them, where crowds are to be objects; says what the flag does where it is frequent.

    drawn: which of (crowd, has a segmentation) the file holds.
    """
    counts = [Counter(a.label for own in objects for a in own if a.crowd is crowd) for crowd in (True, False)]
    regions, others = counts[0].total(), counts[1].total()
    share = regions / max(regions + others, 1)
    if not regions or (share <= _SOME_CROWDS and crowds != "objects"):
        return objects
    shares = ", ".join(
        f"{names[label]} {count} of {count + counts[1][label]}" for label, count in counts[0].most_common(10)
    )  # fmt: skip
    brushed = (True, True) in drawn and (False, True) not in drawn
    if crowds == "objects" or (crowds == "auto" and (brushed or not others)):
        kind = (
            "annotation with iscrowd 1 read as an object: exports of brush and SAM masks set the flag on every mask "
            "(crowds: regions keeps crowds)"
        )
        findings.add(kind, shares, "repaired", count=regions)
        return [[a._replace(crowd=False) for a in own] for own in objects]
    kind = (
        "annotation with iscrowd 1, a crowd that nothing is learned from and no figure counts (exports of brush and "
        "SAM masks set the flag on every mask; crowds: objects reads them as objects)"
    )
    findings.add(kind, shares, "left out" if share > _MANY_CROWDS else "suspect", count=regions)
    return objects
