from __future__ import annotations

import numpy as np

from optuna_ext.moves import History
from optuna_ext.moves.offsets import nearest_rows
from optuna_ext.moves.offsets import offsets_to
from optuna_ext.moves.offsets import scores_of


LEVELS = (None, np.arange(0.125, 1.0, 0.25), (np.arange(3) + 0.5) / 3)


def some_history(n: int) -> History:
    rng = np.random.default_rng(0)
    rows = np.column_stack([rng.random(n), rng.choice(LEVELS[1], n), rng.choice(LEVELS[2], n)])
    rows[rng.random((n, 3)) < 0.1] = np.nan
    return History(
        rows=rows,
        values=rng.integers(0, 20, n).astype(float),
        ties=rng.integers(0, 2, n).astype(float),
        numbers=np.arange(n),
        pending=np.empty((0, 3)),
        pending_numbers=np.empty(0, int),
        n_values=(None, 4, 3),
        ordered=(True, True, False),
    )


def test_nearest_rows_are_those_with_the_shortest_offsets() -> None:
    history, center = some_history(300), np.array([0.4, 0.375, 0.5])
    lengths = np.abs(offsets_to(history.rows, center, history, LEVELS)).sum(axis=1)
    nearest = nearest_rows(history, center, LEVELS)
    others = np.setdiff1d(np.arange(300), nearest)
    assert 10 < len(set(nearest.tolist())) == len(nearest) < 150
    assert lengths[nearest].max() <= lengths[others].min() + 1e-12


def test_absent_coordinates_make_no_difference() -> None:
    history = some_history(1)
    rows = np.array([[np.nan, np.nan, np.nan], [0.4, np.nan, 0.5]])
    offsets = offsets_to(rows, np.array([0.4, 0.375, 0.5]), history, LEVELS)
    np.testing.assert_array_equal(offsets, np.zeros((2, 5)))


def test_scores_are_logarithms_of_mean_ranks() -> None:
    history = some_history(300)
    pairs = list(zip(history.values, history.ties, strict=True))
    ranks = [
        sum(other < pair for other in pairs) + (sum(other == pair for other in pairs) + 1) / 2
        for pair in pairs
    ]
    some = np.array([7, 0, 299, 7, 42])
    np.testing.assert_allclose(scores_of(history, some), np.log(np.array(ranks)[some]))
