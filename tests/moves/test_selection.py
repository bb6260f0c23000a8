from __future__ import annotations

from collections.abc import Callable
import functools
import math

from hypothesis import given
from hypothesis import strategies as st
import numpy as np
import pytest
from scipy import stats
from scipy.special import softmax as scipy_softmax

from optuna_ext.moves.selection import rank
from optuna_ext.moves.selection import SELECTIONS
from optuna_ext.moves.selection import softmax
from optuna_ext.moves.selection import tournament
from optuna_ext.moves.selection import truncation


VALUES = np.array([-1.0, 0.0, 3.0, 4.0, 5.0, 7.0])


@given(
    values=st.lists(
        st.one_of(st.integers(-3, 3), st.floats(allow_nan=False), st.just(math.inf)),
        min_size=1,
        max_size=12,
    ),
    name=st.sampled_from(sorted(SELECTIONS)),
)
def test_probabilities_follow_the_order(values: list[float], name: str) -> None:
    y = np.sort(np.array(values, dtype=float))
    p = SELECTIONS[name](y)
    assert p.shape == y.shape
    assert (p >= 0).all()
    assert p.sum() == pytest.approx(1)
    assert (np.diff(p) <= 1e-12).all()


@pytest.mark.parametrize("size", [1, 2, 5])
def test_tournament_is_as_selective_as_real_tournaments(size: int) -> None:
    rng = np.random.default_rng(size)
    n = 20_000
    entrants = rng.integers(len(VALUES), size=(n, size))
    winners = entrants[np.arange(n), VALUES[entrants].argmin(axis=1)]
    observed = np.bincount(winners, minlength=len(VALUES))
    assert stats.chisquare(observed, n * tournament(VALUES, size=size)).pvalue > 1e-3


def test_binary_tournament_follows_the_binomial_law() -> None:
    # The r-th best wins if nobody better enters: (1 - r/m)^2 - (1 - (r+1)/m)^2, r = 0, 1, ...
    assert tournament(np.arange(5.0)) == pytest.approx(np.array([9, 7, 5, 3, 1]) / 25)


@pytest.mark.parametrize("pressure", [1.0, 1.5, 2.0])
def test_rank_is_linear_with_the_given_pressure(pressure: float) -> None:
    p = rank(np.arange(11.0), pressure=pressure)
    assert p[0] == pytest.approx(pressure / 11)
    assert p[-1] == pytest.approx((2 - pressure) / 11)
    assert np.diff(p) == pytest.approx(np.full(10, p[1] - p[0]))


@pytest.mark.parametrize(("fraction", "n"), [(0.01, 1), (0.34, 3), (0.5, 3), (1.0, 6)])
def test_truncation_draws_the_best_alike(fraction: float, n: int) -> None:
    p = truncation(VALUES, fraction=fraction)
    assert p == pytest.approx([1 / n] * n + [0.0] * (6 - n))


def test_softmax_is_that_of_the_standardized_values() -> None:
    z = stats.zscore(VALUES)
    assert softmax(VALUES, temperature=0.7) == pytest.approx(scipy_softmax(-z / 0.7))


@pytest.mark.parametrize("values", [VALUES, -VALUES[::-1], VALUES - 100])
def test_softmax_does_not_see_units(values: np.ndarray) -> None:
    assert softmax(1e-6 * values + 3) == pytest.approx(softmax(values))


def test_softmax_never_draws_the_worst_value() -> None:
    p = softmax(np.array([1.0, 2.0, math.inf, math.inf]))
    assert (p > 0).tolist() == [True, True, False, False]
    assert softmax(np.full(4, math.inf)) == pytest.approx(0.25)


@pytest.mark.parametrize(
    ("select", "message"),
    [
        (functools.partial(rank, pressure=2.5), r"`pressure` must be in \[1, 2\], but got 2.5"),
        (functools.partial(tournament, size=0), "`size` must be at least 1, but got 0"),
        (
            functools.partial(truncation, fraction=0.0),
            r"`fraction` must be in \(0, 1\], but got 0",
        ),
        (
            functools.partial(softmax, temperature=-1.0),
            "`temperature` must be positive, but got -1",
        ),
    ],
)
def test_bad_arguments(select: Callable[[np.ndarray], np.ndarray], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        select(VALUES)
