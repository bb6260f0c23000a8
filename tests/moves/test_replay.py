from __future__ import annotations

from collections.abc import Callable
from collections.abc import Sequence
import functools

import numpy as np
import pytest

from optuna_ext.moves import History
from optuna_ext.moves.replay import find
from optuna_ext.moves.replay import Replay
from optuna_ext.moves.replay import SnapRow
from optuna_ext.moves.simplex import local_search


def quadratic(u: np.ndarray) -> float:
    return float(((u - 0.4) ** 2 * np.arange(1, len(u) + 1)).sum())


def replay(n_startup: int, *, tolerance: float = 1e-2, snap: SnapRow = np.copy) -> Replay:
    search = functools.partial(local_search, tolerance=tolerance, snap=snap)
    return Replay(search, n_startup=n_startup, snap=snap)


def history(
    rows: Sequence[np.ndarray],
    values: Sequence[float],
    *,
    numbers: Sequence[int] | None = None,
    pending: dict[int, np.ndarray] | None = None,
    n_values: Sequence[int | None] | None = None,
    ordered: Sequence[bool] | None = None,
) -> History:
    pending = pending or {}
    d = len(rows[0])
    return History(
        rows=np.array(rows),
        values=np.array(values, dtype=float),
        ties=np.zeros(len(rows)),
        numbers=np.arange(len(rows)) if numbers is None else np.array(numbers),
        pending=np.array(list(pending.values())).reshape(-1, d),
        pending_numbers=np.array(list(pending), dtype=int),
        n_values=tuple(n_values or [None] * d),
        ordered=tuple([True] * d if ordered is None else ordered),
    )


def test_find_takes_what_was_not_asked_for_as_equal() -> None:
    rows = np.array([[0.1, 0.2, np.nan], [0.1, np.nan, 0.3], [np.nan, np.nan, 0.4]])
    assert find(rows, np.array([0.1, 0.2, 0.9])) == 0
    assert find(rows, np.array([0.1, 0.3, 0.3])) == 1
    assert find(rows, np.array([0.1, np.nan, 0.3])) == 0
    assert find(rows, np.array([0.5, 0.5, np.nan])) is None  # nothing in common with the last
    assert find(rows[:0], rows[0]) is None


def grid(n_values: Sequence[int | None]) -> Callable[[np.ndarray], np.ndarray]:
    n = np.array([count or 0 for count in n_values])

    def snap(row: np.ndarray) -> np.ndarray:
        return np.where(n > 0, (np.floor(row * n) + 0.5) / np.maximum(n, 1), row)

    return snap


@pytest.mark.parametrize("n_workers", [1, 2, 7])
def test_a_new_instance_goes_on_as_the_old_one(n_workers: int) -> None:
    """On a mixed space, with trials that end in any order, fail, or get lost."""
    n_values, ordered = [None, 4, 3, None], [True, True, False, True]
    snap = grid(n_values)
    rng = np.random.default_rng(1)
    old = replay(5, snap=snap)
    done: dict[int, np.ndarray] = {}
    running: dict[int, np.ndarray] = {}
    n_fresh = 0
    for number in range(150):
        numbers = sorted(done)
        row = np.full(4, np.nan)
        if numbers:
            now = history(
                [done[n] for n in numbers],
                [quadratic(done[n]) for n in numbers],
                numbers=numbers,
                pending=running,
                n_values=n_values,
                ordered=ordered,
            )
            row = old.next_row(now)
            if number % 3 == 0:
                again = replay(5, snap=snap).next_row(now)
                np.testing.assert_array_equal(row, again)
        taken = [row for n, row in (done | running).items() if n != 20]
        if np.isnan(row).all():
            n_fresh += 1
            row = rng.random(4)
        else:
            assert find(np.array(taken), snap(row)) is None
        running[number] = snap(row)
        if number == 20:
            continue  # this one gets lost, if it does not end by chance
        while len(running) > n_workers - 1:
            n = int(rng.choice(list(running)))
            row = running.pop(n)
            if rng.random() > 0.1:
                done[n] = row
    assert n_fresh < 10 + 10 * n_workers


def test_all_workers_have_something_to_do() -> None:
    rows = list(np.random.default_rng(0).random((5, 3)))
    values = [quadratic(row) for row in rows]
    search = replay(5)
    running: dict[int, np.ndarray] = {}
    for number in range(5, 25):
        row = search.next_row(history(rows, values, pending=running))
        assert not np.isnan(row).any()
        assert find(np.array([*rows, *running.values()]), row) is None
        running[number] = row


def test_a_lost_trial_is_repeated() -> None:
    rows = list(np.random.default_rng(0).random((5, 3)))
    search = replay(5)
    needed = search.next_row(history(rows, [quadratic(row) for row in rows]))
    proposals: list[np.ndarray] = []
    for _ in range(30):
        values = [quadratic(row) for row in rows]
        numbers = [*range(5), *range(6, len(rows) + 1)]
        now = history(rows, values, numbers=numbers, pending={5: needed})
        proposals.append(search.next_row(now))
        rows.append(proposals[-1])
    assert sum(np.array_equal(row, needed) for row in proposals) == 1


def test_a_used_up_space_leaves_the_row_to_others() -> None:
    n_values = [2, 2]
    search = replay(1, snap=grid(n_values))
    rows = [np.array([0.25, 0.25])]
    for ordered in ([True, True], [False, True], [False, False]):
        for _ in range(3):
            now = history(rows, [1.0] * len(rows), n_values=n_values, ordered=ordered)
            row = search.next_row(now)
            rows.append(grid(n_values)(row))
        assert np.unique(rows, axis=0).shape == (4, 2)
        now = history(rows, [1.0] * 4, n_values=n_values, ordered=ordered)
        assert np.isnan(search.next_row(now)).all()
        del rows[1:]


def test_starts_over_when_it_has_converged() -> None:
    """A function of two valleys; the first simplex goes into the worse one."""
    rows = [np.array([0.2, 0.2]), np.array([0.9, 0.1]), np.array([0.75, 0.75])]

    def valleys(u: np.ndarray) -> float:
        near, far = np.abs(u - 0.2).sum(), np.abs(u - 0.6).sum()
        return float(min(near + 0.1, 3 * far))

    search = replay(3, tolerance=1e-3)
    for _ in range(300):
        rows.append(search.next_row(history(rows, [valleys(row) for row in rows])))
    assert min(map(valleys, rows)) < 0.02


def test_goes_on_where_a_row_always_ends_up_elsewhere() -> None:
    """The objective has a smaller range of the first parameter than the search knows."""
    rows = list(0.5 * np.random.default_rng(0).random((4, 2)))
    search = replay(4)
    for _ in range(60):
        row = search.next_row(history(rows, [-row.sum() for row in rows]))
        rows.append(np.array([min(row[0], 0.5), row[1]]))
    assert max(row.sum() for row in rows) > 1.45


def test_coordinates_that_the_start_does_not_have_stay_open() -> None:
    rows = [np.array([0.25, 0.3, np.nan]), np.array([0.75, 0.6, 0.9])]
    row = replay(2).next_row(
        history(rows, [1.0, 2.0], n_values=[2, None, None], ordered=[False, True, True])
    )
    np.testing.assert_array_equal(row, [0.75, 0.3, np.nan])
