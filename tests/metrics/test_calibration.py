"""The expected calibration error, against a loop over the bins."""

from __future__ import annotations

import numpy as np
import pytest

from piip.metrics.calibration import calibrate


@pytest.mark.parametrize("count", [1, 7, 1000])
def test_the_error_is_that_of_a_loop_over_ten_bins(count: int) -> None:
    rng = np.random.default_rng(count)
    scores = rng.random(count).round(2)
    right = rng.random(count) < scores**2
    error = 0.0
    for number in range(10):
        low, high = number / 10, (number + 1) / 10
        inside = [index for index in range(count) if low <= scores[index] and (scores[index] < high or number == 9)]
        if inside:
            share = sum(bool(right[index]) for index in inside) / len(inside)
            mean = sum(float(scores[index]) for index in inside) / len(inside)
            error += len(inside) / count * abs(share - mean)
    found = calibrate(scores, right)
    assert found.counts.sum() == count
    assert found.error == pytest.approx(error, abs=0.02)  # a score such as 0.3 lies on the edge of two bins
    edges = np.isclose(scores * 10 % 1, 0) | np.isclose(scores * 10 % 1, 1)
    if not edges.any():
        assert found.error == pytest.approx(error, abs=1e-12)


def test_scores_that_are_right_as_often_as_they_say_have_no_error() -> None:
    found = calibrate(np.array([0.25, 0.25, 0.25, 0.25, 1.0]), np.array([True, False, False, False, True]))
    assert found.error == pytest.approx(0)
    assert found.counts.tolist() == [0, 0, 4, 0, 0, 0, 0, 0, 0, 1]
    assert found.right[2] == 0.25
    assert calibrate(np.zeros(0), np.zeros(0, dtype=bool)).error == 0


def test_scores_that_are_no_number_do_not_count() -> None:
    found = calibrate(np.array([np.nan, 0.5]), np.array([True, True]))
    assert (found.counts.sum(), found.error) == (1, 0.5)
