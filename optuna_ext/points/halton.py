"""The Halton sequence."""

from __future__ import annotations

from typing import TYPE_CHECKING

from optuna_ext.points._sequence import sequence_rows


if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


def halton(
    n: int, d: int, *, seed: int, start: int = 0, scramble: bool = True
) -> NDArray[np.float64]:
    """Return rows ``start .. start + n - 1`` of a Halton sequence.

    Column ``j`` is the van der Corput sequence in the ``j``-th prime as base ``b``: any ``b**m``
    rows that start at a multiple of ``b**m`` have one row in each of ``b**m`` equal parts of the
    axis. Unlike Sobol it has no preferred number of rows. A longer or wider set of rows contains
    the shorter and narrower ones: ``halton(n, d, seed=s)`` equals
    ``halton(N, D, seed=s)[:n, :d]``.

    Args:
        n: Number of rows, with ``0 <= start + n <= 2**30``.
        d: Number of columns, ``0 <= d <= 1024``. Beyond about 20 columns the bases are larger
            than most studies are long; prefer Sobol there.
        seed: Seed of the scramble, a non-negative integer of any size.
        start: Index of the first row; ``halton(n, d, start=k)`` continues ``halton(k, d)``. Time
            grows with it; for single rows see :class:`~optuna_ext.points.PointSequence`.
        scramble: Whether to permute the digits at random (Owen, 2017). The unscrambled sequence
            starts at the cube's corner, and its later columns follow each other.

    Returns:
        Array of shape ``(n, d)``, float64, values in ``[0, 1)``.

    Raises:
        ValueError: If ``n``, ``d``, ``start`` or ``seed`` is out of range.
        TypeError: If one of them is not an integer.

    References:
        J. H. Halton (1960), Numerische Mathematik 2, 84-90.
        A. B. Owen (2017), A randomized Halton algorithm in R, https://arxiv.org/abs/1706.02808.

    Example:
        >>> halton(3, 2, seed=0, scramble=False)
        array([[0.        , 0.        ],
               [0.5       , 0.33333333],
               [0.25      , 0.66666667]])
    """
    return sequence_rows("halton", n, d, seed=seed, start=start, scramble=scramble)
