"""Branches by letter."""

from __future__ import annotations

import pytest

from piip.config.letters import backbone_from_letters
from piip.errors import ConfigError


def test_letters_may_be_of_either_case_and_default_to_the_released_resolutions():
    assert backbone_from_letters("TSB") == backbone_from_letters("tsb", (1568, 1120, 672))
    assert backbone_from_letters("b").resolutions == (1024,)
    assert backbone_from_letters("tsbl").branch_names == ["T 1568", "S 1120", "B 672", "L 448"]


@pytest.mark.parametrize(
    ("letters", "resolutions", "words"),
    [
        ("txb", None, "branches 'txb': use the letters t, s, b and l"),
        ("", None, "use the letters"),
        ("tb", None, "no row of branches 'tb' was released; give 2 with --resolutions"),
        ("tsb", (1568, 1120), "3 branches need as many resolutions, got 1568/1120"),
        ("tsb", (672, 1120, 1568), "finest resolution first, got 672/1120/1568"),
        ("ts", (64, -64), "branches 'ts': resolutions.1: give a number greater than 0 (got -64)"),
    ],
)
def test_branches_that_cannot_be_are_refused_in_plain_words(letters, resolutions, words):
    with pytest.raises(ConfigError) as caught:
        backbone_from_letters(letters, resolutions)
    assert words in str(caught.value)
