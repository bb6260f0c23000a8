from __future__ import annotations

import itertools
from typing import get_args

import numpy as np
import pytest

from optuna_ext.points import centered_l2
from optuna_ext.points import latin_hypercube
from optuna_ext.points import LatinHypercubeKind
from optuna_ext.points.latin_hypercube import check_latin_hypercube


KINDS: tuple[LatinHypercubeKind, ...] = get_args(LatinHypercubeKind)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("n", "d"), [(4, 3), (25, 6), (49, 2), (121, 5)])
def test_one_row_in_every_stratum(kind: LatinHypercubeKind, n: int, d: int) -> None:
    rows = latin_hypercube(n, d, seed=n, kind=kind)
    np.testing.assert_array_equal(
        np.sort((rows * n).astype(int), axis=0), np.arange(n)[:, None].repeat(d, axis=1)
    )


def test_strata_hold_for_a_large_plain_sample() -> None:
    rows = latin_hypercube(2**18 + 1, 1, seed=0)[:, 0]
    np.testing.assert_array_equal(np.sort((rows * rows.size).astype(int)), np.arange(rows.size))


def test_centered_rows_are_centers() -> None:
    rows = latin_hypercube(10, 4, seed=1, kind="centered")
    np.testing.assert_allclose(np.sort(rows, axis=0)[:, 2], np.arange(0.05, 1.0, 0.1))


def test_plain_rows_are_anywhere_in_their_stratum() -> None:
    places = latin_hypercube(500, 4, seed=2).ravel() * 500 % 1.0
    quantiles = np.quantile(places, [0.0, 0.25, 0.5, 0.75, 1.0])
    np.testing.assert_allclose(quantiles, [0.0, 0.25, 0.5, 0.75, 1.0], atol=0.04)


@pytest.mark.parametrize("p", [2, 3, 5, 7, 11])
def test_strength_2_has_one_row_in_every_square(p: int) -> None:
    rows = latin_hypercube(p * p, p + 1, seed=p, kind="strength-2")
    for pair in itertools.combinations(range(p + 1), 2):
        squares = {tuple(square) for square in (rows[:, pair] * p).astype(int)}
        assert len(squares) == p * p


@pytest.mark.parametrize("kind", ["plain", "centered", "strength-2"])
def test_wider_samples_contain_the_narrower(kind: LatinHypercubeKind) -> None:
    wide = latin_hypercube(49, 8, seed=3, kind=kind)
    for d in range(9):
        np.testing.assert_array_equal(latin_hypercube(49, d, seed=3, kind=kind), wide[:, :d])


@pytest.mark.parametrize("kind", KINDS)
def test_rows_are_in_random_order(kind: LatinHypercubeKind) -> None:
    n_sets = 5 if kind == "random-cd" else 40  # it is slow
    rows = np.array([latin_hypercube(49, 3, seed=seed, kind=kind) for seed in range(n_sets)])
    index_correlation = [np.corrcoef(np.arange(49), row.T)[0, 1:] for row in rows]
    assert abs(np.mean(index_correlation, axis=0)).max() < 4.5 / np.sqrt(49 * len(rows))


def test_random_cd_lowers_the_discrepancy() -> None:
    def median(kind: LatinHypercubeKind) -> float:
        sets = (latin_hypercube(30, 4, seed=seed, kind=kind) for seed in range(5))
        return float(np.median([centered_l2(rows) for rows in sets]))

    assert median("random-cd") < 0.5 * median("plain")


@pytest.mark.parametrize("shape", [(0, 3), (1, 3), (3, 0), (5, 1)])
def test_random_cd_has_nothing_to_exchange(shape: tuple[int, int]) -> None:
    np.testing.assert_array_equal(
        latin_hypercube(*shape, seed=1, kind="random-cd"), latin_hypercube(*shape, seed=1)
    )


@pytest.mark.parametrize(
    ("n", "near"),
    [(0, "4,"), (1, "4,"), (5, "4 or 9,"), (16, "9 or 25,"), (64, "49 or 121,"), (26, "25 or 49")],
)
def test_strength_2_needs_the_square_of_a_prime(n: int, near: str) -> None:
    with pytest.raises(ValueError, match=f"square of a prime .* such as {near}.* but got {n}"):
        latin_hypercube(n, 2, seed=0, kind="strength-2")


def test_wrong_arguments() -> None:
    with pytest.raises(ValueError, match="`d` must be at most 6 at strength 2 and n=25, but got"):
        latin_hypercube(25, 7, seed=0, kind="strength-2")
    with pytest.raises(ValueError, match="one of .*'plain', 'centered'.*, but got 'orthogonal'"):
        latin_hypercube(25, 7, seed=0, kind="orthogonal")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="square of a prime"):
        check_latin_hypercube(10, 2, kind="strength-2")
    check_latin_hypercube(2**30, 10**6, kind="plain")  # does no work
