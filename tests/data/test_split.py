"""Sets without a split are divided by the names of their images alone."""

from __future__ import annotations

import pytest

from piip.data.split import names_in_part

NAMES = [f"a/{number}.jpg" for number in range(1000)]


def test_the_parts_are_a_fifth_and_the_rest_and_hold_every_image_once() -> None:
    train, val = names_in_part(NAMES, "train"), names_in_part(NAMES, "val")
    assert not train & val
    assert train | val == {*NAMES} == names_in_part(NAMES, "all")
    assert 160 <= len(val) <= 240


def test_an_image_stays_in_its_part_when_others_come() -> None:
    assert names_in_part(NAMES[:500], "val") == names_in_part(NAMES, "val") & {*NAMES[:500]}


def test_copies_of_an_augmented_image_stay_together() -> None:
    names = [f"{number}.rf.{copy}.jpg" for number in range(200) for copy in ("0a1b", "ff00", "9c9c")]
    stems = [{name.split(".")[0] for name in names_in_part(names, part)} for part in ("train", "val")]
    assert not stems[0] & stems[1]


@pytest.mark.parametrize("count", [2, 3, 4, 5, 6])
def test_neither_part_of_a_small_set_is_empty(count: int) -> None:
    for start in range(0, 200, count):
        names = NAMES[start : start + count]
        assert names_in_part(names, "train")
        assert names_in_part(names, "val")
