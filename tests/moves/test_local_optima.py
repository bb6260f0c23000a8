from __future__ import annotations

import itertools

import numpy as np

from optuna_ext.moves import History
from optuna_ext.moves.local_optima import local_optima
from optuna_ext.moves.neighborhood import Levels
from optuna_ext.moves.neighborhood import Neighborhood


FIVE = np.array([0.1, 0.3, 0.5, 0.7, 0.9])


def history_of(rows: list[list[float]], values: list[float], *, levels: Levels) -> History:
    return History(
        rows=np.array(rows),
        values=np.array(values),
        ties=np.zeros(len(values)),
        numbers=np.arange(len(values)),
        pending=np.empty((0, len(levels))),
        pending_numbers=np.empty(0, dtype=np.int64),
        n_values=tuple(None if v is None else len(v) for v in levels),
        ordered=(True,) * len(levels),
    )


def test_local_optima_are_those_of_the_table() -> None:
    table = np.random.default_rng(8).permutation(125).reshape(5, 5, 5)
    cells = list(itertools.product(range(5), repeat=3))
    rows = [[FIVE[i] for i in cell] for cell in cells]
    levels: Levels = (FIVE,) * 3
    history = history_of(rows, [float(table[cell]) for cell in cells], levels=levels)
    expected = sorted(
        int(table[cell])
        for cell in cells
        if all(
            table[cell] <= table[other]
            for other in cells
            if sum(abs(a - b) for a, b in zip(cell, other, strict=True)) == 1
        )
    )
    optima = local_optima(history, Neighborhood(levels=levels))
    assert [optimum.value for optimum in optima] == expected
    without = history_of(rows[:-1], [float(table[cell]) for cell in cells[:-1]], levels=levels)
    numbers = {optimum.number for optimum in local_optima(without, Neighborhood(levels=levels))}
    assert numbers.isdisjoint({cells.index(c) for c in ((4, 4, 3), (4, 3, 4), (3, 4, 4))})


def test_a_continuous_optimum_is_known_up_to_its_step() -> None:
    levels: Levels = (None, None)
    search = Neighborhood(levels=levels)
    rows = [[0.5, 0.5]]
    for step in (0.25, 0.125):
        rows += [[0.5 - step, 0.5], [0.5 + step, 0.5], [0.5, 0.5 - step], [0.5, 0.5 + step]]
    values = [0.0] + [1.0] * 8
    (optimum,) = local_optima(history_of(rows, values, levels=levels), search)
    assert (optimum.number, optimum.value) == (0, 0.0)
    assert (optimum.step, optimum.n_trials) == (0.125, 9)
    (optimum,) = local_optima(history_of(rows[:8], values[:8], levels=levels), search)
    assert (optimum.step, optimum.n_trials) == (0.25, 5)
    assert not local_optima(history_of(rows[:4], values[:4], levels=levels), search)
    # A better row nearby, though not among the neighbors.
    better = history_of([*rows, [0.45, 0.45]], [*values, -1.0], levels=levels)
    assert not local_optima(better, search)


def test_repeated_rows_count_with_their_mean() -> None:
    levels: Levels = (FIVE,)
    rows = [[0.1], [0.3], [0.5], [0.7], [0.9], [0.3]]
    history = history_of(rows, [3.0, 0.0, 2.0, 3.0, 4.0, 5.0], levels=levels)
    (once,) = local_optima(history, Neighborhood(levels=levels))
    assert once.number == 1
    (twice,) = local_optima(history, Neighborhood(levels=levels, n_repeats=2))
    assert (twice.number, twice.value) == (2, 2.0)
