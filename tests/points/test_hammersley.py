from __future__ import annotations

import numpy as np
import pytest

from optuna_ext.points import centered_l2
from optuna_ext.points import halton
from optuna_ext.points import hammersley


@pytest.mark.parametrize("scramble", [True, False])
def test_grid_beside_halton(scramble: bool) -> None:
    rows = hammersley(50, 6, seed=3, scramble=scramble)
    rows = rows[rows[:, 0].argsort()]
    np.testing.assert_allclose(rows[:, 0], np.arange(0.01, 1.0, 0.02))
    np.testing.assert_array_equal(rows[:, 1:], halton(50, 5, seed=3, scramble=scramble))


def test_rows_are_shuffled_by_the_seed() -> None:
    orders = [hammersley(64, 1, seed=seed)[:, 0] for seed in range(20)]
    assert len({tuple(order) for order in orders}) == 20
    first_halves = [float(order[:32].mean()) for order in orders]
    assert 0.4 < min(first_halves) < 0.5 < max(first_halves) < 0.6  # sorted would be 0.25


@pytest.mark.parametrize("d", [2, 5, 8])
@pytest.mark.parametrize("n", [16, 64, 256])
def test_to_know_n_lowers_the_discrepancy(n: int, d: int) -> None:
    known = np.median([centered_l2(hammersley(n, d, seed=seed)) for seed in range(60)])
    unknown = np.median([centered_l2(halton(n, d, seed=seed)) for seed in range(60)])
    assert known <= unknown


def test_limits() -> None:
    assert hammersley(3, 1025, seed=0, scramble=False).shape == (3, 1025)
    with pytest.raises(ValueError, match="`d` must be at most 1025, but got 1026"):
        hammersley(3, 1026, seed=0)
