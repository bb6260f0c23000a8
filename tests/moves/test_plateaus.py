from __future__ import annotations

import numpy as np
import pytest

from optuna_ext.moves.plateaus import is_on_plateau


ROWS = np.array([[0.1, 0.125], [0.2, 0.125], [0.7, 0.125], [0.75, 0.375], [0.8, 0.125]])
N_VALUES = (None, 4)


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ([1.0, 1.0, 2.0, 3.0, 4.0], [True, True, False, False, False]),
        ([1.0, 2.0, 3.0, 4.0, 1.0], [False] * 5),  # equal, but not the nearest
        ([1.0, 2.0, 3.0, 3.0, 4.0], [False] * 5),  # the integer is another one, too
        ([1.0, 2.0, 3.0, 4.0, 3.0], [False, False, True, False, True]),  # it is no neighbor
        ([np.inf, np.inf, 3.0, 4.0, 5.0], [False] * 5),
    ],
)
def test_the_nearest_decides(values: list[float], expected: list[bool]) -> None:
    found = [is_on_plateau(ROWS, np.array(values), i, N_VALUES) for i in range(len(ROWS))]
    assert found == expected


def test_a_repeated_row_is_not_a_plateau() -> None:
    assert not is_on_plateau(ROWS[[0, 0, 2]], np.array([1.0, 1.0, 2.0]), 1, N_VALUES)


def test_a_column_that_does_not_matter_makes_no_plateau() -> None:
    rows = np.array([[0.1, 0.5], [0.2, 0.5], [0.8, 0.1], [0.81, 0.12]])
    values = np.array([1.0, 1.0, 2.0, 2.0])
    found = [is_on_plateau(rows, values, i, (None, None)) for i in range(4)]
    assert found == [False, False, True, True]


def test_without_continuous_columns_there_are_none() -> None:
    assert not is_on_plateau(ROWS, np.zeros(len(ROWS)), 0, (4, 4))


def test_what_a_row_lacks_makes_no_difference() -> None:
    rows = np.array([[0.1, np.nan], [0.2, np.nan], [0.3, 0.125]])
    assert is_on_plateau(rows, np.array([1.0, 1.0, 2.0]), 0, N_VALUES)
