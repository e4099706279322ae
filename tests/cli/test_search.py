"""`piip search`: the fit and its errors, the budget, the config and the picture."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from piip.config.load import load_config
from piip.official.flops.scripts import paper_count
from piip.search.published import ROWS, fit, near
from piip.search.search import SETS, candidates, fastest_within, frontier
from tests.cli.chain import run, succeed


def test_the_error_is_that_of_rows_left_out_one_by_one() -> None:
    """Each fitted anew without the row, where the package takes a formula."""
    x = np.array([[1, np.log(r.gmacs), np.log(r.resolutions[0]), 1000 / r.resolutions[0]] for r in ROWS])
    y = np.array([row.box_ap for row in ROWS])
    errors = []
    for index in range(len(ROWS)):
        others = np.arange(len(ROWS)) != index
        weights = np.linalg.lstsq(x[others], y[others], rcond=None)[0]
        errors.append(y[index] - x[index] @ weights)
    found = fit()
    assert found.rms == pytest.approx(np.sqrt(np.mean(np.square(errors))))
    assert found.worst == pytest.approx(np.abs(errors).max())
    assert found.rms < 0.3
    assert len(ROWS) == 25


def test_candidates_cost_what_the_paper_says() -> None:
    costs = {one.name: one.gmacs for one in candidates(SETS)}
    for row in ROWS:
        assert costs[f"{row.letters} {'/'.join(map(str, row.resolutions))}"] == pytest.approx(row.gmacs, rel=0.03)
        assert near(row.letters, row.resolutions)
    assert not near("sbl", (1792, 448, 224))  # far from all rows, though each size was published
    assert not near("tsb", (1120, 672, 224))  # never so small


def test_a_frontier_has_the_best_for_every_cost() -> None:
    found = [one for one in candidates(["tsb", "sbl"]) if one.known]
    best = frontier(found)
    for one in found:
        assert any(other.gmacs <= one.gmacs and other.box_ap >= one.box_ap for other in best)
    assert [one.box_ap for one in best] == sorted(one.box_ap for one in best)


def test_the_slowest_that_is_fast_enough_is_found_by_few_measurements() -> None:
    best = frontier([one for one in candidates(SETS) if one.known])
    asked = []

    def measure(one: object) -> float:
        asked.append(one)
        return one.gmacs / 10  # type: ignore[attr-defined]

    found, measured = fastest_within(best, 80.0, measure)
    assert found == [one for one in best if one.gmacs <= 800]
    assert len(asked) == len(measured) <= 6


def test_a_budget_gives_a_config_that_keeps_it(tmp_path: Path) -> None:
    path, chart = tmp_path / "mine.yaml", tmp_path / "frontier.png"
    done = succeed("search", "tsb", "--budget", "300G", "--output", path, "--frontier", chart, "--json")
    document = json.loads(done.stdout)
    config = load_config(path)
    macs = paper_count(config.model.backbone).total.macs
    assert macs <= 300e9
    assert document["best"]["gmacs"] == pytest.approx(macs / 1e9)
    assert list(config.model.backbone.resolutions) == document["best"]["resolutions"]
    assert config.data.train_transforms.long_side == document["best"]["resolutions"][0]
    assert document["frontier"][-1] == document["best"]
    assert Image.open(chart).size[0] > 800
    text = succeed("search", "--budget", "0.5T").stdout
    assert "at most by 0.4" in text
    assert max(map(len, text.splitlines())) <= 100


def test_a_latency_is_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("piip.cli.search._clock", lambda device: lambda one: one.gmacs)
    document = json.loads(succeed("search", "tsb", "--latency", "0.4s", "--json").stdout)
    assert 300 < document["best"]["gmacs"] <= 400


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["tsb", "--budget", "100G"], "the cheapest that the fit knows is tsb 896/672/448 with 175G"),
        (["tb", "--budget", "300G"], "varies the resolutions of tsb, sbl, tsbl, not of 'tb'"),
        (["--budget", "many"], "--budget 'many': give a number with G or T"),
        (["--latency", "40h"], "give a number with ms or s"),
        ([], "give either --budget"),
        (["--budget", "1T", "--latency", "2s"], "give either --budget"),
    ],
)
def test_what_cannot_be_searched_is_told(words: list[str], message: str) -> None:
    done = run("search", *words)
    assert done.exit_code == 2
    assert message in " ".join(done.stderr.replace("│", " ").split())
