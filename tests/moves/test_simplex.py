from __future__ import annotations

from collections.abc import Callable

from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
import numpy as np
import pytest
from scipy import optimize

from optuna_ext.moves import History
from optuna_ext.moves.replay import Evaluation
from optuna_ext.moves.replay import Search
from optuna_ext.moves.simplex import local_search
from optuna_ext.moves.simplex import nelder_mead
from optuna_ext.moves.simplex import poll_choices
from optuna_ext.moves.simplex import reflect_at_bounds


Function = Callable[[np.ndarray], float]


def rosenbrock(u: np.ndarray) -> float:
    return float(optimize.rosen(2 * u + 0.1))


def kinks(u: np.ndarray) -> float:
    """A function that makes the simplex shrink."""
    return float(np.abs(u - 0.5).sum() + 0.1 * np.abs(np.sin(20 * u)).sum())


def quadratic(u: np.ndarray) -> float:
    return float(((u - 0.4) ** 2 * np.arange(1, len(u) + 1)).sum())


def corner(d: int) -> np.ndarray:
    """Return a simplex without symmetries: scipy does not sort equal values by age."""
    edges = 0.1 + 0.1 * np.random.default_rng(d).random(d)
    return np.vstack([np.full(d, 0.4), np.full(d, 0.4) + np.diag(edges)])


def follow(search: Search[object], function: Function, n: int = 10**6) -> list[np.ndarray]:
    """Return the first ``n`` rows that a search needs."""
    rows: list[np.ndarray] = []
    try:
        wanted = next(search)
        while len(rows) < n:
            rows.append(wanted[0].copy())
            wanted = search.send(Evaluation(wanted[0], function(wanted[0])))
    except StopIteration:
        pass
    return rows


def scipys(simplex: np.ndarray, function: Function, n: int, adaptive: bool) -> list[np.ndarray]:
    rows: list[np.ndarray] = []

    def record(u: np.ndarray) -> float:
        rows.append(u.copy())
        return function(u)

    options = {
        "initial_simplex": simplex,
        "adaptive": adaptive,
        "maxfev": n,
        "xatol": 0,
        "fatol": 0,
    }
    optimize.minimize(record, simplex[0], method="Nelder-Mead", options=options)
    return rows


@pytest.mark.parametrize("adaptive", [True, False])
@pytest.mark.parametrize("d", [2, 3, 6])
@pytest.mark.parametrize("function", [rosenbrock, kinks, quadratic])
def test_evaluates_the_points_that_scipy_does(function: Function, d: int, adaptive: bool) -> None:
    search = nelder_mead(corner(d), adaptive=adaptive, tolerance=0.0)
    expected = np.array(scipys(corner(d), function, 150, adaptive))
    assert ((expected >= 0) & (expected < 1)).all()
    np.testing.assert_allclose(follow(search, function, 150), expected, rtol=0, atol=1e-9)


def test_evaluates_the_points_that_scipy_does_up_to_the_first_bound() -> None:
    def slope(u: np.ndarray) -> float:
        return float(u @ [1.0, 2.0, 0.5])

    expected = np.array(scipys(corner(3), slope, 100, adaptive=True))
    first = int(np.argmax((expected < 0).any(axis=1)))
    assert 5 < first < 100
    rows = follow(nelder_mead(corner(3), adaptive=True), slope, first + 1)
    np.testing.assert_allclose(rows[:first], expected[:first], rtol=0, atol=1e-9)
    np.testing.assert_allclose(rows[first], np.abs(expected[first]), rtol=0, atol=1e-9)


def test_one_dimension_converges_too() -> None:
    rows = follow(nelder_mead(corner(1), tolerance=1e-6), lambda u: abs(u[0] - 0.123))
    assert rows[-1] == pytest.approx(0.123, abs=1e-5)


def test_known_corners_are_not_evaluated_again() -> None:
    values = np.array([quadratic(u) for u in corner(2)])
    expected = follow(nelder_mead(corner(2)), quadratic)[3:]
    np.testing.assert_array_equal(
        follow(nelder_mead(corner(2), values=values), quadratic), expected
    )


@pytest.mark.parametrize("value", [0.0, np.inf])
def test_ends_on_a_plateau(value: float) -> None:
    assert len(follow(nelder_mead(corner(4)), lambda u: value)) == 5


def test_a_step_wants_reflection_expansion_and_both_contractions() -> None:
    simplex = np.array([[0.4, 0.4], [0.6, 0.4], [0.4, 0.6]])
    search = nelder_mead(simplex, values=np.array([0.0, 1.0, 2.0]))
    center, worst = np.array([0.5, 0.4]), np.array([0.4, 0.6])
    expected = [center + t * (center - worst) for t in (1.0, 2.0, 0.5, -0.5)]
    np.testing.assert_allclose(next(search), expected, atol=1e-12)


@given(arrays(float, 5, elements=st.floats(-5, 5)))
def test_reflection_at_the_bounds(u: np.ndarray) -> None:
    mirrored = reflect_at_bounds(u)
    assert ((mirrored >= 0) & (mirrored < 1)).all()
    np.testing.assert_allclose(reflect_at_bounds(-u), mirrored)
    np.testing.assert_allclose(reflect_at_bounds(u + 2), mirrored, atol=1e-12)
    inside = (u >= 0) & (u < 1)
    np.testing.assert_array_equal(mirrored[inside], u[inside])


def test_poll_ends_where_no_other_choice_is_better() -> None:
    table = np.random.default_rng(0).random((3, 4, 5))

    def value(u: np.ndarray) -> float:
        return float(table[tuple((u * table.shape).astype(int))])

    start = Evaluation(np.array([0.5, 0.5, 0.5]) / table.shape, float(table[0, 0, 0]))
    search = poll_choices(start, dict(enumerate(table.shape)))
    rows = follow(search, value)
    best = min([start.row, *rows], key=value)
    k = (best * table.shape).astype(int)
    neighbors = [table[:, k[1], k[2]], table[k[0], :, k[2]], table[k[0], k[1]]]
    assert value(best) == min(map(np.min, neighbors))


def local_search_from(start: np.ndarray, function: Function) -> list[float]:
    """Return all values of a search over continuous columns."""
    d = len(start)
    nothing = History(
        rows=np.empty((0, d)),
        values=np.empty(0),
        ties=np.empty(0),
        numbers=np.empty(0, int),
        pending=np.empty((0, d)),
        pending_numbers=np.empty(0, int),
        n_values=(None,) * d,
        ordered=(True,) * d,
    )
    first = Evaluation(start, function(start))
    return [first.value, *map(function, follow(local_search(first, nothing), function))]


@pytest.mark.parametrize("seed", range(10))
def test_does_not_stay_in_cells_of_noise(seed: int) -> None:
    rng = np.random.default_rng(seed)
    noise = rng.random((4, 4, 4))
    values = local_search_from(rng.random(3), lambda u: float(noise[tuple((4 * u).astype(int))]))
    assert len(values) <= 20  # many would otherwise shrink on within their cell


def test_passes_over_steps_downhill() -> None:
    values = local_search_from(np.full(3, 0.9), lambda u: float(np.floor(20 * abs(u - 0.3)).sum()))
    assert min(values) == 0 < values[0]
    assert len(set(values)) < len(values) / 2  # it came by many equal ones


def test_a_column_that_does_not_matter_does_not_end_the_search() -> None:
    values = local_search_from(
        np.full(3, 0.9), lambda u: float((u[1] - 0.3) ** 2 + (u[2] - 0.6) ** 2)
    )
    assert min(values) < 1e-4
