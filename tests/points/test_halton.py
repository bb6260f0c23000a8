from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import qmc

from optuna_ext.points import halton


PRIMES = [2, 3, 5, 7, 11, 13, 17, 19, 23, 29, 31, 37]


def radical_inverse(i: int, base: int) -> float:
    """Return the digits of ``i`` mirrored at the point (Halton, 1960)."""
    value, weight = 0.0, 1.0 / base
    while i:
        i, digit = divmod(i, base)
        value += digit * weight
        weight /= base
    return value


def test_unscrambled_is_the_radical_inverse() -> None:
    expected = [[radical_inverse(i, base) for base in PRIMES] for i in range(300)]
    np.testing.assert_allclose(halton(300, 12, seed=0, scramble=False), expected, atol=1e-14)


def test_unscrambled_is_scipy_in_every_tier() -> None:
    expected = qmc.Halton(40, scramble=False).random(50)
    np.testing.assert_array_equal(halton(50, 40, seed=0, scramble=False), expected)


@pytest.mark.parametrize("scramble", [True, False])
def test_every_column_is_stratified_in_its_base(scramble: bool) -> None:
    rows = halton(2500, 12, seed=4, scramble=scramble)
    for column, base in enumerate(PRIMES):
        for size in (base, base**2):
            for start in range(0, 2500 - size, size):
                # An edge of a stratum is not a double, and a row may be on it.
                strata = rows[start : start + size, column] * size
                strata = np.sort(np.floor(strata + 1e-9).astype(int))
                np.testing.assert_array_equal(strata, np.arange(size))


def test_scrambling_removes_the_correlation_of_large_bases() -> None:
    def worst(scramble: bool) -> float:
        rows = halton(60, 16, seed=0, scramble=scramble)[:, 8:]
        return float(abs(np.corrcoef(rows.T) - np.eye(8)).max())

    assert worst(scramble=False) > 0.8
    assert worst(scramble=True) < 0.6


def test_limits() -> None:
    assert halton(2, 1024, seed=0, scramble=False).shape == (2, 1024)
    with pytest.raises(ValueError, match="`d` must be at most 1024, but got 1025"):
        halton(2, 1025, seed=0)
