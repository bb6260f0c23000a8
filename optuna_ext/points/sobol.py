"""The Sobol sequence."""

from __future__ import annotations

from typing import TYPE_CHECKING

from optuna_ext.points._sequence import sequence_rows


if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


def sobol(
    n: int, d: int, *, seed: int, start: int = 0, scramble: bool = True
) -> NDArray[np.float64]:
    """Return rows ``start .. start + n - 1`` of a Sobol sequence.

    Any ``2**m`` rows that start at a multiple of ``2**m`` are perfectly balanced: each of the
    ``2**m`` equal parts of each axis has one of them. A longer or wider set of rows contains the
    shorter and narrower ones: ``sobol(n, d, seed=s)`` equals ``sobol(N, D, seed=s)[:n, :d]``.

    Args:
        n: Number of rows, with ``0 <= start + n <= 2**30``.
        d: Number of columns, ``0 <= d <= 21201``.
        seed: Seed of the scramble, a non-negative integer of any size.
        start: Index of the first row; ``sobol(n, d, start=k)`` continues ``sobol(k, d)``. Time
            grows with it; for single rows see :class:`~optuna_ext.points.PointSequence`.
        scramble: Whether to scramble: a random lower triangular matrix and a digital shift for
            every column (Matousek, 1998). The unscrambled sequence starts at the cube's corner.

    Returns:
        Array of shape ``(n, d)``, float64, values in ``[0, 1)``.

    Raises:
        ValueError: If ``n``, ``d``, ``start`` or ``seed`` is out of range.
        TypeError: If one of them is not an integer.

    References:
        I. M. Sobol (1967), USSR Computational Mathematics and Mathematical Physics 7, 86-112.
        S. Joe and F. Y. Kuo (2008), SIAM Journal on Scientific Computing 30, 2635-2654.
        J. Matousek (1998), Journal of Complexity 14, 527-556.

    Example:
        >>> sobol(3, 2, seed=0, scramble=False)
        array([[0.  , 0.  ],
               [0.5 , 0.5 ],
               [0.75, 0.25]])
    """
    return sequence_rows("sobol", n, d, seed=seed, start=start, scramble=scramble)
