from __future__ import annotations

import csv
import math
from pathlib import Path
import statistics

import numpy as np
import pytest

from studies._race import incumbents
from studies._race import Run
from studies._standings import as_json
from studies._standings import by_sampler
from studies._standings import number
from studies._standings import standings
from studies._standings import write_csv


def _run(sampler: str, seed: int, values: list[float], *, maximize: bool = False) -> Run:
    array = np.asarray(values, dtype=float)
    return Run(sampler, seed, array, incumbents(array, maximize=maximize), 0.4, 0.1)


@pytest.mark.parametrize(("maximize", "expected"), [(True, [3, 3, 5, 5]), (False, [3, 1, 1, 0])])
def test_incumbents_are_the_best_so_far(maximize: bool, expected: list[float]) -> None:
    assert incumbents(np.array([3.0, 1, 5, 0]), maximize=maximize).tolist() == expected


def test_trials_without_a_value_change_no_incumbent() -> None:
    best = incumbents(np.array([math.nan, 4, math.nan, 2]), maximize=False)
    assert math.isnan(best[0])
    assert best[1:].tolist() == [4, 4, 2]


def test_standings_are_means_and_medians_over_the_seeds() -> None:
    runs = by_sampler(
        [
            _run("b", 1, [5, 4, 2, 2]),
            _run("a", 0, [9, 8, 7, 6]),
            _run("a", 1, [3, 3, 3, 2]),
            _run("b", 0, [9, 9, 1, 3]),
        ],
        ["a", "b"],
    )
    a, b = standings(runs, maximize=False, at=[2], targets=[2, 1])
    assert list(a.at) == [2, 4]
    assert a.at[2].mean == statistics.mean([8, 3])
    assert a.final.median == statistics.median([6, 2])
    assert a.final.se == pytest.approx(statistics.stdev([6, 2]) / math.sqrt(2))
    assert (a.rank, b.rank) == (1.75, 1.25)  # b wins seed 0; seed 1 is a tie
    assert (a.wins, b.wins) == (0.5, 0.75)
    assert [(r.evaluations, r.share) for r in a.targets] == [(4, 0.5), (math.inf, 0)]
    assert [(r.evaluations, r.share) for r in b.targets] == [(3, 1.0), (3, 0.5)]
    assert (a.trial_ms, a.sampler_ms) == (100, 25)


def test_larger_is_better_when_maximizing() -> None:
    runs = {
        "a": [_run("a", 0, [80, 81, 82], maximize=True)],
        "b": [_run("b", 0, [84, 70, 70], maximize=True)],
    }
    a, b = standings(runs, maximize=True, at=[], targets=[82])
    assert (a.rank, b.rank) == (2, 1)
    assert b.wins == 1
    assert [s.targets[0].evaluations for s in (a, b)] == [3, 1]


def test_runs_without_a_value_are_the_worst_and_have_no_mean() -> None:
    runs = {"a": [_run("a", 0, [math.nan] * 2)], "b": [_run("b", 0, [math.nan, 1e9])]}
    a, b = standings(runs, maximize=False, at=[1], targets=[0])
    assert (a.rank, b.rank) == (2, 1)
    assert math.isnan(a.final.mean)
    assert as_json(a)["at"]["2"] == {"median": None, "mean": None, "se": None}


def test_csv_has_a_row_per_trial(tmp_path: Path) -> None:
    write_csv(tmp_path / "c.csv", [_run("a", 5, [0.1, math.nan]), _run("b", 5, [1, 0.5])])
    with (tmp_path / "c.csv").open(newline="") as file:
        rows = list(csv.reader(file))
    assert rows == [
        ["sampler", "seed", "trial", "value", "best"],
        ["a", "5", "0", "0.1", "0.1"],
        ["a", "5", "1", "", "0.1"],
        ["b", "5", "0", "1.0", "1.0"],
        ["b", "5", "1", "0.5", "0.5"],
    ]


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (84, "84.00"),
        (203.4, "203.4"),
        (123456.7, "123457"),
        (0.0023814, "0.002381"),
        (3e-9, "3.000e-09"),
        (0, "0"),
        (math.inf, "inf"),
        (math.nan, "-"),
    ],
)
def test_numbers_are_short(value: float, text: str) -> None:
    assert number(value) == text
