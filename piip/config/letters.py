"""Branches by letter, as the papers name their rows: 'tsb' is DeiT-T, -S and -B."""

from __future__ import annotations

from pydantic import ValidationError

from piip.backbone.config import BackboneConfig
from piip.branches.vit.config import VIT_SIZES
from piip.config.mistakes import explain
from piip.errors import ConfigError

# The resolutions of `--branches` when none are given: those of the largest released rows, 1024 for a single branch.
DEFAULT_RESOLUTIONS = {
    **dict.fromkeys("tsbl", (1024,)),
    "tsb": (1568, 1120, 672),
    "sbl": (1568, 1120, 672),
    "tsbl": (1568, 1120, 672, 448),
}


def backbone_from_letters(letters: str, resolutions: tuple[int, ...] | None = None) -> BackboneConfig:
    """DeiT branches by letter ('tsb'), finest resolution first, with the attention windows of the released rows.

    resolutions: pixels per branch; without them, those of the largest released row are taken.
    Raises ConfigError for an unknown letter or resolutions that do not fit.
    """
    letters = letters.lower()
    unknown = sorted(set(letters) - set("tsbl"))
    if unknown or not letters:
        raise ConfigError(f"branches '{letters}': use the letters t, s, b and l, one per branch, as in 'tsb'")
    if resolutions is None:
        if letters not in DEFAULT_RESOLUTIONS:
            raise ConfigError(f"no row of branches '{letters}' was released; give {len(letters)} with --resolutions")
        resolutions = DEFAULT_RESOLUTIONS[letters]
    # As released: windows of 14 x 14, or 28 x 28 in a pyramid with an L branch; every third block of a single branch is
    # global.
    window = 28 if "l" in letters and len(letters) > 1 else 14
    branches = []
    for letter in letters.upper():
        depth = VIT_SIZES[letter]["depth"]
        global_blocks = tuple(range(2, depth, 3)) if len(letters) == 1 else ()
        branches.append({"size": letter, "window_size": window, "global_blocks": global_blocks})
    settings = {"branches": branches, "resolutions": resolutions}
    try:
        return BackboneConfig.model_validate(settings)
    except ValidationError as error:
        raise ConfigError(explain(error, BackboneConfig, settings, {}, f"branches '{letters}'")) from None
