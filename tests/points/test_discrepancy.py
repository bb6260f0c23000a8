from __future__ import annotations

import itertools
import math

import numpy as np
import pytest

from optuna_ext.points import centered_l2
from optuna_ext.points import max_gap_1d
from optuna_ext.points import min_distance


def hickernell(rows: np.ndarray) -> float:
    """Return eq. (5.1c) of Hickernell (1998), term by term."""
    n, d = rows.shape
    z = abs(rows - 0.5)
    single = sum(
        math.prod(1 + 0.5 * z[i, k] - 0.5 * z[i, k] ** 2 for k in range(d)) for i in range(n)
    )
    double = sum(
        math.prod(
            1 + 0.5 * z[i, k] + 0.5 * z[j, k] - 0.5 * abs(rows[i, k] - rows[j, k])
            for k in range(d)
        )
        for i in range(n)
        for j in range(n)
    )
    return float((13 / 12) ** d - 2 / n * single + double / n**2)


@pytest.mark.parametrize("shape", [(1, 1), (5, 1), (7, 3), (12, 6)])
def test_centered_l2_is_hickernells(shape: tuple[int, int]) -> None:
    rows = np.random.default_rng(0).random(shape)
    assert centered_l2(rows) == pytest.approx(hickernell(rows), rel=1e-9)


def test_centered_l2_is_least_at_the_centers_of_one_axis() -> None:
    # 1 / (12 n^2) for the midpoints (Fang, Ma and Winker, 2002).
    for n in (1, 2, 10):
        centers = (np.arange(n)[:, None] + 0.5) / n
        assert centered_l2(centers) == pytest.approx(1 / (12 * n**2))
        assert centered_l2(centers * 0.9) > centered_l2(centers)


def test_max_gap_1d() -> None:
    assert max_gap_1d(np.array([[0.3]])) == 0.7
    assert max_gap_1d(np.array([[0.9, 0.5], [0.1, 0.6], [0.5, 0.4]])) == 0.4
    assert max_gap_1d(np.array([[0.0], [1.0]])) == 1.0
    assert max_gap_1d(np.arange(1, 10)[:, None] / 10) == pytest.approx(0.1)


@pytest.mark.parametrize("toroidal", [False, True])
@pytest.mark.parametrize("d", [1, 2, 6])
def test_min_distance_of_all_pairs(d: int, toroidal: bool) -> None:
    rows = np.random.default_rng(d).random((40, d))
    rows[3] = 1.0  # the same place as 0.0 on a torus
    rows[4] = 0.01
    expected = math.inf
    for a, b in itertools.combinations(rows, 2):
        difference = abs(a - b)
        if toroidal:
            difference = np.minimum(difference, 1 - difference)
        expected = min(expected, float(np.linalg.norm(difference)))
    assert min_distance(rows, toroidal=toroidal) == pytest.approx(expected)


def test_min_distance_of_few_rows() -> None:
    assert min_distance(np.array([[0.5, 0.5]])) == math.inf
    assert min_distance(np.array([[0.5], [0.5], [0.1]])) == 0.0
    assert min_distance(np.array([[0.0], [0.9]])) == 0.9
    assert min_distance(np.array([[0.0], [0.9]]), toroidal=True) == pytest.approx(0.1)


@pytest.mark.parametrize("measure", [centered_l2, max_gap_1d, min_distance])
def test_wrong_rows(measure: object) -> None:
    assert callable(measure)
    for shape in ((3,), (0, 3), (3, 0), (2, 2, 2)):
        with pytest.raises(ValueError, match=r"shape \(n, d\)"):
            measure(np.zeros(shape))
    for value in (-0.1, 1.1, math.nan):
        with pytest.raises(ValueError, match=r"in \[0, 1\]"):
            measure(np.array([[0.5, value]]))
