from __future__ import annotations

import numpy as np

from optuna_ext.moves import History
from optuna_ext.moves.repeats import averaged


def history(us: list[float], values: list[float], *, pending: list[float]) -> History:
    return History(
        rows=np.array(us)[:, None],
        values=np.array(values),
        ties=np.zeros(len(us)),
        numbers=np.arange(len(us)),
        pending=np.array(pending)[:, None],
        pending_numbers=len(us) + np.arange(len(pending)),
        n_values=(None,),
        ordered=(True,),
    )


def test_a_row_has_the_mean_of_its_values_and_its_first_number() -> None:
    past, _ = averaged(history([0.5, 0.2, 0.5, 0.7], [1.0, 2.0, 4.0, 3.0], pending=[]), 2)
    assert past.rows.ravel().tolist() == [0.5, 0.2, 0.7]
    assert past.values.tolist() == [2.5, 2.0, 3.0]
    assert past.numbers.tolist() == [0, 1, 3]


def test_the_best_row_is_wanted_until_enough_evaluations_are_known_or_under_way() -> None:
    for pending, n_repeats, wanted in (([], 2, True), ([0.2], 2, False), ([0.2], 3, True)):
        _, row = averaged(history([0.5, 0.2], [1.0, 0.5], pending=pending), n_repeats)
        assert (row is not None) == wanted
        assert row is None or row.tolist() == [0.2]
