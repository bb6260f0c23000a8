"""The Hammersley set."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from optuna_ext._checks import check_int
from optuna_ext.points._checks import generator
from optuna_ext.points._checks import MAX_ROWS
from optuna_ext.points._sequence import MAX_COLUMNS
from optuna_ext.points.halton import halton


if TYPE_CHECKING:
    from numpy.typing import NDArray


def hammersley(n: int, d: int, *, seed: int, scramble: bool = True) -> NDArray[np.float64]:
    """Return the Hammersley set of ``n`` points: a grid beside a Halton sequence.

    The first column is ``(i + 1/2) / n``, the others are the Halton columns ``0 .. d - 2``. To
    know ``n`` in advance buys a lower discrepancy than Halton's. The rows are shuffled, so that a
    study that is stopped early has not seen one side of the first axis only. A wider set of the
    same ``n`` contains the narrower ones.

    Args:
        n: Number of rows, ``0 <= n <= 2**30``.
        d: Number of columns, ``0 <= d <= 1025``.
        seed: Seed of the scramble and the order, a non-negative integer of any size.
        scramble: Whether the Halton columns are scrambled.

    Returns:
        Array of shape ``(n, d)``, float64, values in ``[0, 1)``.

    Raises:
        ValueError: If ``n``, ``d`` or ``seed`` is out of range.
        TypeError: If one of them is not an integer.

    References:
        J. M. Hammersley (1960), Annals of the New York Academy of Sciences 86, 844-874.

    Example:
        >>> rows = hammersley(4, 3, seed=0)
        >>> sorted(rows[:, 0].tolist())
        [0.125, 0.375, 0.625, 0.875]
    """
    n = check_int("n", n, high=MAX_ROWS)
    d = check_int("d", d, high=MAX_COLUMNS["halton"] + 1)
    order = generator(seed, "hammersley").permutation(n)
    if d == 0:
        return np.empty((n, 0))
    grid = (np.arange(n)[:, None] + 0.5) / n
    return np.hstack([grid, halton(n, d - 1, seed=seed, scramble=scramble)])[order]
