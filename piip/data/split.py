"""Which images of a set that has no split of its own are trained on, and which are evaluated."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable
from pathlib import PurePosixPath
from typing import Literal

Part = Literal["all", "train", "val"]

VAL_SHARE = 0.2

# What data sets say of their setting.
PART = "of the images: all; or train or val, four fifths and a fifth, as the hashes of their names divide them"

# What Roboflow puts behind the name of an image for each of its augmented copies, which must stay together.
_COPY = re.compile(r"\.rf\.[0-9a-zA-Z]+$")


def names_in_part(names: Iterable[str], part: Part) -> set[str]:
    """Those of the image names that a part has; of a set of two images or more neither part is empty.

    The hash of a name decides, without its ending, so that a part stays the same when images come or go.
    """
    names = set(names)
    if part == "all" or len(names) < 2:
        return names
    places = {name: _place(name) for name in names}
    limit = min(max(VAL_SHARE, min(places.values())), max(places.values()) - 1e-9)
    return {name for name, place in places.items() if (place <= limit) == (part == "val")}


def _place(name: str) -> float:
    """A number from 0 to 1."""
    stem = _COPY.sub("", PurePosixPath(name).with_suffix("").as_posix())
    return int.from_bytes(hashlib.sha256(stem.encode("utf-8", "surrogateescape")).digest()[:8], "big") / 2**64
