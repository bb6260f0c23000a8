from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
import itertools

import numpy as np
import pytest

from optuna_ext.moves import History
from optuna_ext.moves.gradients import Gradient
from optuna_ext.moves.gradients import GRADIENTS
from optuna_ext.moves.neighborhood import Levels
from optuna_ext.moves.neighborhood import Neighborhood
from optuna_ext.moves.neighborhood import next_row
from optuna_ext.moves.neighborhood import poll
from optuna_ext.moves.neighborhood import PollKind
from optuna_ext.moves.neighborhood import polls
from optuna_ext.moves.turns import whose_turn


FIVE = np.array([0.1, 0.3, 0.5, 0.7, 0.9])
NAN = np.nan


def history_of(
    rows: list[list[float]] | np.ndarray,
    values: list[float] | np.ndarray,
    *,
    levels: Levels,
    ties: np.ndarray | None = None,
    pending: list[list[float]] | None = None,
    ordered: tuple[bool, ...] | None = None,
) -> History:
    d = len(levels)
    return History(
        rows=np.array(rows, dtype=float).reshape(-1, d),
        values=np.array(values, dtype=float),
        ties=np.zeros(len(values)) if ties is None else ties,
        numbers=np.arange(len(values)),
        pending=np.array(pending or [], dtype=float).reshape(-1, d),
        pending_numbers=np.arange(len(pending or [])) + len(values),
        n_values=tuple(None if v is None else len(v) for v in levels),
        ordered=ordered or (True,) * d,
    )


def search_from(
    start: list[float],
    function: Callable[[np.ndarray], float],
    n: int,
    *,
    levels: Levels,
    ordered: tuple[bool, ...] | None = None,
    gradient: Gradient = "ridge",
    kind: PollKind = "opportunistic",
    seed: int = 0,
) -> tuple[np.ndarray, np.ndarray]:
    """Run a search of ``n`` evaluations from one row; give the rows and values."""
    rows, values = [np.array(start)], [function(np.array(start))]
    search = Neighborhood(levels=levels, gradient=gradient, poll=kind)
    for number in range(1, n):
        history = history_of(np.array(rows), values, levels=levels, ordered=ordered)
        row = next_row(history, search, np.random.default_rng((seed, number)))
        if np.isnan(row).any():
            break
        rows.append(row)
        values.append(function(row))
    return np.array(rows), np.array(values)


def test_poll_of_levels_continuous_values_and_choices() -> None:
    levels: Levels = (FIVE, None, np.array([0.25, 0.75]), FIVE)
    history = history_of([], [], levels=levels, ordered=(True, True, True, False))
    rows = poll(np.array([0.3, 0.2, 0.25, 0.5]), 0.25, history, Neighborhood(levels=levels))
    changes = [(int(i), round(float(row[i]), 9)) for row in rows for i in _changed(rows, row)]
    assert sorted(set(changes)) == [
        (0, 0.1),
        (0, 0.5),
        (1, 0.0),
        (1, 0.45),
        (2, 0.75),
        (3, 0.1),
        (3, 0.3),
        (3, 0.7),
        (3, 0.9),
    ]


def _changed(rows: np.ndarray, row: np.ndarray) -> np.ndarray:
    return np.flatnonzero(~np.isclose(row, [0.3, 0.2, 0.25, 0.5]))


def test_poll_takes_the_level_nearest_to_the_step_and_skips_absent_coordinates() -> None:
    levels: Levels = (np.arange(0.05, 1, 0.1), FIVE)
    history = history_of([], [], levels=levels)
    rows = poll(np.array([0.45, NAN]), 0.31, history, Neighborhood(levels=levels))
    np.testing.assert_allclose(rows[:, 0], [0.15, 0.75])
    assert np.isnan(rows[:, 1]).all()
    assert len(poll(np.array([0.45, 0.1]), 1.0, history, Neighborhood(levels=levels))) == 3


def test_values_without_levels_are_polled_down_to_those_beside_the_center() -> None:
    search = Neighborhood(levels=(None,), snap=lambda column, u: (int(u * 1000) + 0.5) / 1000)
    history = history_of([], [], levels=(None,))
    ends = [1000 * rows[:, 0] for _, rows in polls(np.array([0.4005]), 0.25, history, search)]
    np.testing.assert_allclose(ends[0], [150.5, 650.5])
    np.testing.assert_allclose(ends[-1], [399.5, 401.5])


@pytest.mark.parametrize("gradient", GRADIENTS)
@pytest.mark.parametrize("kind", ["opportunistic", "complete"])
def test_finds_the_minimum_of_a_bowl_of_levels(gradient: Gradient, kind: PollKind) -> None:
    levels: Levels = (FIVE,) * 4
    target = np.array([0.9, 0.3, 0.5, 0.1])
    rows, values = search_from(
        [0.1, 0.9, 0.1, 0.9],
        lambda row: float(((row - target) ** 2).sum()),
        120,
        levels=levels,
        gradient=gradient,
        kind=kind,
    )
    assert values.min() < 1e-12
    assert len(np.unique(rows.round(9), axis=0)) == len(rows)


def test_a_mesh_is_refined_until_a_continuous_minimum_is_close() -> None:
    target = np.array([0.123, 0.777])
    _, values = search_from(
        [0.5, 0.5], lambda row: float(((row - target) ** 2).sum()), 100, levels=(None, None)
    )
    assert values.min() < 1e-5


def test_a_failing_poll_halves_the_step_down_to_the_smallest() -> None:
    def hole(row: np.ndarray) -> float:
        return float(not (row == 0.5).all())

    rows, _ = search_from([0.5, 0.5], hole, 13, levels=(None, None), kind="complete")
    steps = np.abs(rows[1:] - 0.5).max(axis=1)
    np.testing.assert_allclose(steps, np.repeat([0.25, 0.125, 0.0625], 4))


def test_complete_poll_is_steepest_descent_over_neighbors() -> None:
    """An independent oracle: evaluate all neighbors, go to the best, and so on."""
    table = np.random.default_rng(5).permutation(125).reshape(5, 5, 5)
    levels: Levels = (FIVE,) * 3

    def value(row: np.ndarray) -> float:
        return float(table[tuple(np.round(row * 5 - 0.5).astype(int))])

    center, polls, seen = (2, 2, 2), [], {(2, 2, 2)}
    while True:
        neighbors = {
            tuple(np.add(center, sign * np.eye(3, dtype=int)[axis]).tolist())
            for axis, sign in itertools.product(range(3), (-1, 1))
        }
        neighbors = {cell for cell in neighbors if min(cell) >= 0 and max(cell) <= 4}
        polls.append(neighbors - seen)
        seen |= neighbors
        best = min(neighbors, key=lambda cell: table[cell])
        if table[best] > table[center]:
            break
        center = best
    assert len(polls) >= 2
    rows, _ = search_from([0.5] * 3, value, len(seen), levels=levels, kind="complete")
    cells = [tuple(np.round(row * 5 - 0.5).astype(int).tolist()) for row in rows]
    start = 1
    for expected in polls:
        assert set(cells[start : start + len(expected)]) == expected
        start += len(expected)


def test_parallel_trials_take_different_points_of_one_poll() -> None:
    levels: Levels = (FIVE,) * 3
    pending: list[list[float]] = []
    search = Neighborhood(levels=levels, gradient="none", poll="complete")
    for number in range(1, 7):
        history = history_of([[0.5] * 3], [1.0], levels=levels, pending=pending)
        row = next_row(history, search, np.random.default_rng(number))
        pending.append(row.tolist())
    assert {tuple(row) for row in np.round(pending, 9).tolist()} == {
        tuple(row) for row in np.round(poll(np.full(3, 0.5), 0.25, history, search), 9).tolist()
    }


def test_the_first_row_of_a_poll_goes_downhill() -> None:
    """The evaluated rows say that only the first coordinate matters."""
    rows = np.random.default_rng(0).uniform(0.3, 1.0, (12, 3))
    levels: Levels = (None,) * 3
    for gradient in ("ridge", "simplex"):
        search = Neighborhood(levels=levels, gradient=gradient, poll="complete")
        history = history_of(rows, rows[:, 0], levels=levels)
        best = rows[rows[:, 0].argmin()]
        move = next_row(history, search, np.random.default_rng(0)) - best
        assert move[0] < 0
        assert not move[1:].any()


def test_after_a_success_the_search_goes_on_in_its_direction() -> None:
    history = history_of([[0.2, 0.2], [0.3, 0.25]], [2.0, 1.0], levels=(None, None))
    search = Neighborhood(levels=(None, None), gradient="none")
    row = next_row(history, search, np.random.default_rng(0))
    assert any(np.allclose(row, far) for far in ([0.4, 0.3], [0.5, 0.35]))


def test_any_increasing_transformation_of_the_values_gives_the_same_rows() -> None:
    """Only a quadratic model, of at most six dimensions, is made of the values themselves."""

    def bowl(row: np.ndarray) -> int:  # whole numbers, so that rounding makes no ties
        return round(1e4 * float(((row - np.linspace(0.2, 0.8, 7)) ** 2).sum()))

    plain, _ = search_from([0.5] * 7, bowl, 80, levels=(None,) * 7)
    bent, _ = search_from([0.5] * 7, lambda row: bowl(row) ** 3 - 7, 80, levels=(None,) * 7)
    np.testing.assert_array_equal(plain, bent)


def test_a_quadratic_model_finds_the_bottom_of_a_slanting_valley() -> None:
    def valley(row: np.ndarray) -> float:
        along, across = (row - [0.37, 0.62]) @ np.array([[0.6, -0.8], [0.8, 0.6]])
        return float(along**2 + 1e4 * across**2)

    _, modeled = search_from([0.1, 0.9], valley, 60, levels=(None, None))
    _, plain = search_from([0.1, 0.9], valley, 60, levels=(None, None), gradient="none")
    assert modeled.min() < 1e-6 < plain.min()


def test_worst_values_do_no_harm() -> None:
    def cliff(row: np.ndarray) -> float:
        return float(np.inf if row[0] > 0.4 else (row[0] - 0.3) ** 2 + (row[1] - 0.5) ** 2)

    _, values = search_from([0.1, 0.9], cliff, 60, levels=(None, None))
    assert values.min() < 1e-3


def test_as_long_as_all_is_worst_there_is_nowhere_to_go() -> None:
    history = history_of([[0.5, 0.5]], [np.inf], levels=(FIVE, FIVE))
    row = next_row(history, Neighborhood(levels=(FIVE, FIVE)), np.random.default_rng(0))
    assert np.isnan(row).all()


def test_ties_are_broken_by_the_second_value() -> None:
    rows = [[0.3, 0.3], [0.7, 0.7], [0.9, 0.1]]
    search = Neighborhood(levels=(FIVE, FIVE), gradient="none", poll="complete")
    for best, ties in ((1, [2.0, 1.0, 3.0]), (2, [2.0, 3.0, 1.0])):
        history = history_of(rows, [0.0] * 3, levels=(FIVE, FIVE), ties=np.array(ties))
        row = next_row(history, search, np.random.default_rng(0))
        assert np.count_nonzero(~np.isclose(row, rows[best])) == 1


def test_a_coordinate_that_the_best_row_never_had_is_left_alone() -> None:
    levels: Levels = (np.array([0.25, 0.75]), FIVE)
    rows = [[0.25, NAN], [0.75, 0.5]]
    history = history_of(rows, [0.0, 1.0], levels=levels, ordered=(False, True))
    search = Neighborhood(levels=levels)
    seen = []
    for number in range(2, 6):
        row = next_row(history, search, np.random.default_rng(number))
        assert row[0] == 0.75  # all that has the first choice is one point
        seen.append(row[1])
        history = replace(
            history,
            rows=np.vstack([history.rows, row]),
            values=np.append(history.values, 1.0 + number),
            ties=np.zeros(number + 1),
            numbers=np.arange(number + 1),
        )
    assert sorted(np.round(seen, 9)) == [0.1, 0.3, 0.7, 0.9]


def test_branches_share_the_trials_by_the_rank_of_their_best() -> None:
    """A branch that looked worst at first is far better after a few steps of its own."""
    levels: Levels = (np.array([0.25, 0.75]), None, None)
    rows, values = [[0.25, 0.5, NAN], [0.75, NAN, 0.1]], [1.0, 6.4]
    for number in range(2, 100):
        history = history_of(rows, values, levels=levels, ordered=(False, True, True))
        row = next_row(history, Neighborhood(levels=levels), np.random.default_rng(number))
        first = row[0] == 0.25
        rows.append([0.25, row[1], NAN] if first else [0.75, NAN, row[2]])
        values.append(1.0 - 1e-3 * row[1] if first else 10.0 * (row[2] - 0.9) ** 2)
    assert min(values) < 1e-4
    counts = np.isnan(rows).sum(axis=0)
    assert counts[1] / counts[2] == pytest.approx(2**1.5, rel=0.5)


@pytest.mark.parametrize("n_pending", [0, 1, 2, 3, 4])
def test_pending_rows_count_for_their_branch(n_pending: int) -> None:
    levels: Levels = (np.array([0.25, 0.75]), None)
    pending = [[0.25, 0.6], [0.25, 0.4], [0.25, 0.7], [0.25, 0.3]][:n_pending]
    history = history_of(
        [[0.25, 0.5], [0.75, NAN]],
        [0.0, 1.0],
        levels=levels,
        pending=pending,
        ordered=(False, True),
    )
    turn = whose_turn(history, history.ranking(), 0.25, np.random.default_rng(0))
    assert turn == int(1 + n_pending > 2**1.5)


@pytest.mark.parametrize("levels", [(FIVE, FIVE), (None, FIVE)])
def test_what_is_remembered_of_polls_changes_nothing(levels: Levels) -> None:
    search = Neighborhood(levels=levels, min_step=0.1)
    rows, values = [[0.5, 0.5]], [0.13]
    memory: dict[tuple[bytes, float], float] = {}
    for number in range(1, 40):
        fresh = history_of(rows, values, levels=levels)
        row, same = (
            next_row(history, search, np.random.default_rng(number))
            for history in (fresh, replace(fresh, polled=memory))
        )
        np.testing.assert_array_equal(row, same)
        if np.isnan(row).any():
            break
        rows.append(row.tolist())
        values.append(float(((row - 0.2) ** 2).sum()))
    assert memory


def test_what_rows_on_their_way_exhaust_is_not_remembered() -> None:
    pending = [[0.3], [0.7]]
    history = history_of([[0.5]], [0.0], levels=(FIVE,), pending=pending)
    row = next_row(history, Neighborhood(levels=(FIVE,)), np.random.default_rng(0))
    assert row.round(9) in (0.1, 0.9)
    assert not history.polled


def test_everything_taken_gives_nothing() -> None:
    rows = [[a, b] for a in FIVE for b in FIVE]
    history = history_of(rows, list(range(25)), levels=(FIVE, FIVE))
    row = next_row(history, Neighborhood(levels=(FIVE, FIVE)), np.random.default_rng(0))
    assert np.isnan(row).all()


def test_the_whole_of_a_small_space_is_searched_without_a_repetition() -> None:
    table = np.random.default_rng(3).random((5, 5))
    rows, _ = search_from(
        [0.5, 0.5],
        lambda row: float(table[tuple((row * 5).astype(int))]),
        40,
        levels=(FIVE, FIVE),
        ordered=(True, False),
    )
    assert len(rows) == len(np.unique(rows.round(9), axis=0)) == 25


def test_the_best_row_is_repeated_until_it_is_believed() -> None:
    levels: Levels = (FIVE, FIVE)
    search = Neighborhood(levels=levels, n_repeats=3)
    rows, values = [[0.5, 0.5], [0.7, 0.7]], [0.0, 1.0]
    for value in (5.0, 4.0):  # the first evaluation was luck; the mean is 2.5 after the first
        history = history_of(rows, values, levels=levels)
        row = next_row(history, search, np.random.default_rng(0))
        rows.append(row.tolist())
        values.append(value)
    np.testing.assert_allclose(rows[2], [0.5, 0.5])
    np.testing.assert_allclose(rows[3], [0.7, 0.7])
