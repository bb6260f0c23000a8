from __future__ import annotations

import itertools

import numpy as np
import pytest
from scipy.stats import qmc

from optuna_ext.points import sobol


def counts(rows: np.ndarray, parts: tuple[int, ...]) -> np.ndarray:
    """Return how many rows are in each box of a grid with so many parts per axis."""
    boxes = np.ravel_multi_index(tuple((rows * parts).astype(int).T), parts)
    return np.bincount(boxes, minlength=int(np.prod(parts)))


def test_first_rows_of_joe_and_kuo() -> None:
    # The table that comes with their direction numbers.
    expected = [
        [0.0, 0.0, 0.0],
        [0.5, 0.5, 0.5],
        [0.75, 0.25, 0.25],
        [0.25, 0.75, 0.75],
        [0.375, 0.375, 0.625],
        [0.875, 0.875, 0.125],
        [0.625, 0.125, 0.875],
        [0.125, 0.625, 0.375],
        [0.1875, 0.3125, 0.9375],
        [0.6875, 0.8125, 0.4375],
    ]
    np.testing.assert_array_equal(sobol(10, 3, seed=0, scramble=False), expected)


def test_unscrambled_is_scipy_in_every_tier() -> None:
    expected = qmc.Sobol(40, scramble=False).random(64)
    np.testing.assert_array_equal(sobol(64, 40, seed=0, scramble=False), expected)


@pytest.mark.parametrize("scramble", [True, False])
@pytest.mark.parametrize("seed", [0, 1])
def test_every_column_is_balanced(scramble: bool, seed: int) -> None:
    rows = sobol(256, 70, seed=seed, scramble=scramble)
    for m in range(9):
        for start in range(0, 256, 2**m):
            strata = np.sort((rows[start : start + 2**m] * 2**m).astype(int), axis=0)
            np.testing.assert_array_equal(strata, np.arange(2**m)[:, None].repeat(70, axis=1))


@pytest.mark.parametrize("scramble", [True, False])
def test_first_two_columns_fill_every_elementary_interval(scramble: bool) -> None:
    for m in range(9):
        rows = sobol(2**m, 2, seed=m, scramble=scramble)
        for a in range(m + 1):
            assert (counts(rows, (2**a, 2 ** (m - a))) == 1).all()


def test_scrambling_keeps_the_balance_of_all_pairs_also_across_tiers() -> None:
    # The quality of other pairs is a property of the direction numbers: a scramble keeps it.
    m = 6
    plain = qmc.Sobol(18, scramble=False).random_base2(m)
    rows = sobol(2**m, 18, seed=3)
    n_balanced = 0
    for pair in itertools.combinations([0, 1, 2, 5, 7, 8, 11, 15, 16, 17], 2):
        for a, b in itertools.product(range(m + 1), repeat=2):
            parts = (2**a, 2**b)
            if a + b <= m and np.ptp(counts(plain[:, pair], parts)) == 0:
                n_balanced += 1
                assert np.ptp(counts(rows[:, pair], parts)) == 0
    assert n_balanced > 900


def test_scrambles_are_uniform_and_independent_over_seeds() -> None:
    rows = np.array([sobol(1, 17, seed=seed)[0] for seed in range(400)])
    assert (abs(rows.mean(axis=0) - 0.5) < 4 * np.sqrt(1 / 12 / 400)).all()
    correlation = np.corrcoef(rows.T) - np.eye(17)
    assert abs(correlation).max() < 4.5 / np.sqrt(400)
    assert np.unique(rows).size > 6790  # of 6800: columns and seeds do not share scrambles


def test_limits() -> None:
    assert sobol(2, 21201, seed=0, scramble=False).shape == (2, 21201)
    with pytest.raises(ValueError, match="`d` must be at most 21201, but got 21202"):
        sobol(2, 21202, seed=0)
    with pytest.raises(ValueError, match="`n` must be at most 1, but got 2"):
        sobol(2, 1, seed=0, start=2**30 - 1)
