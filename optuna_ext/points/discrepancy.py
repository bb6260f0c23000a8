"""How evenly rows fill the unit cube."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np


if TYPE_CHECKING:
    from numpy.typing import NDArray


def centered_l2(rows: NDArray[np.float64]) -> float:
    """Return the centered L2 discrepancy of rows, squared, as scipy does.

    Smaller is more even. It compares, for boxes between each point of the cube and its nearest
    corner, the share of rows with the volume, in all projections on fewer axes at once.

    Args:
        rows: Array of shape ``(n, d)`` with ``n >= 1`` and ``d >= 1``, values in ``[0, 1]``.

    Returns:
        The squared centered L2 discrepancy, at least 0.

    Raises:
        ValueError: If ``rows`` has another shape or a value outside of ``[0, 1]``.

    References:
        F. J. Hickernell (1998), Mathematics of Computation 67, 299-322, eq. (5.1c).

    Example:
        >>> round(centered_l2(np.array([[0.25], [0.75]])), 6)
        0.020833
    """
    from scipy.stats import qmc

    return float(qmc.discrepancy(_checked(rows), method="CD"))


def max_gap_1d(rows: NDArray[np.float64]) -> float:
    """Return the widest part of any axis without a row, the parts at its two ends included.

    Args:
        rows: Array of shape ``(n, d)`` with ``n >= 1`` and ``d >= 1``, values in ``[0, 1]``.

    Returns:
        The widest gap of the worst axis, in ``[1 / (n + 1), 1]``.

    Raises:
        ValueError: If ``rows`` has another shape or a value outside of ``[0, 1]``.

    Example:
        >>> max_gap_1d(np.array([[0.25], [0.375]]))
        0.625
    """
    marks = np.pad(np.sort(_checked(rows), axis=0), [(1, 1), (0, 0)], constant_values=(0, 1))
    return float(np.diff(marks, axis=0).max())


def min_distance(rows: NDArray[np.float64], *, toroidal: bool = False) -> float:
    """Return the distance of the two nearest rows.

    Args:
        rows: Array of shape ``(n, d)`` with ``n >= 1`` and ``d >= 1``, values in ``[0, 1]``.
        toroidal: Whether opposite faces of the cube touch, so that 0.0 and 1.0 are the same.

    Returns:
        The smallest Euclidean distance of two rows, infinite if there is only one.

    Raises:
        ValueError: If ``rows`` has another shape or a value outside of ``[0, 1]``.

    Example:
        >>> rows = np.array([[0.125], [0.5], [0.875]])
        >>> min_distance(rows), min_distance(rows, toroidal=True)
        (0.375, 0.25)
    """
    rows = _checked(rows)
    if len(rows) < 2:
        return math.inf
    from scipy.spatial import KDTree

    tree = KDTree(rows % 1.0, boxsize=1.0) if toroidal else KDTree(rows)
    distances, _ = tree.query(tree.data, k=2)
    return float(distances[:, 1].min())


def _checked(rows: NDArray[np.float64]) -> NDArray[np.float64]:
    rows = np.asarray(rows, dtype=float)
    if rows.ndim != 2 or 0 in rows.shape:
        raise ValueError(f"`rows` must have a shape (n, d) without 0, but got {rows.shape}.")
    if not (rows.min() >= 0.0 and rows.max() <= 1.0):
        raise ValueError("`rows` must have values in [0, 1] only.")
    return rows
