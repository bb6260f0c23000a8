"""Poisson disk sampling: blue noise."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np

from optuna_ext._checks import check_int
from optuna_ext.points._checks import generator
from optuna_ext.points._sequence import MAX_COLUMNS
from optuna_ext.points.sobol import sobol


if TYPE_CHECKING:
    from numpy.typing import NDArray


_MAX_POINTS = 10_000
_CANDIDATES = 16  # for each point of a declared number; 32 raise the distance by 2% only
_BISECTIONS = 9  # find the distance to 0.2% of its upper bound
_SATURATION = 64  # candidates for each point before a declared radius counts as filled


def poisson_disk(
    d: int, *, n: int | None = None, radius: float | None = None, seed: int
) -> NDArray[np.float64]:
    """Return rows that keep a distance from each other and have no other order: blue noise.

    Candidates come from a scrambled Sobol sequence, and each is taken if it is not nearer than
    the radius to one already taken (dart throwing). The cube is a torus for that: opposite faces
    touch, which keeps the rows from crowding at the border. The plain Euclidean distance is never
    smaller than the toroidal. The first row is that of ``sobol(1, d, seed=seed)`` whatever the
    size; the others are in random order.

    Args:
        d: Number of columns, ``0 <= d <= 21201``. A distance means little beyond about 10.
        n: Number of rows, ``0 <= n <= 10_000``: the radius is the largest that dart throwing
            finds for them. Takes 0.3 s for 256 rows of 8 columns, growing with ``n**2``.
        radius: Smallest distance, greater than 0: rows are added until there is hardly a place
            left. Give either ``n`` or ``radius``.
        seed: Seed of the candidates and the order, a non-negative integer of any size.

    Returns:
        Array of shape ``(n, d)``, float64, values in ``[0, 1)``.

    Raises:
        ValueError: If ``d``, ``n``, ``radius`` or ``seed`` is out of range, if not exactly one
            of ``n`` and ``radius`` is given, or if the radius has room for over 10,000 rows.
        TypeError: If ``d``, ``n`` or ``seed`` is not an integer.

    References:
        R. L. Cook (1986), ACM Transactions on Graphics 5, 51-72.
        M. N. Gamito and S. C. Maddock (2009), ACM Transactions on Graphics 29, 8:1-8:19.

    Example:
        >>> from optuna_ext.points import min_distance
        >>> rows = poisson_disk(2, radius=0.2, seed=0)
        >>> min_distance(rows, toroidal=True) >= 0.2
        True
    """
    check_poisson_disk(d, n=n, radius=radius)
    check_int("seed", seed)
    if n is not None:
        rows = _of_number(n, d, seed) if n and d else np.empty((n, d))
    elif radius is not None:
        rows = _of_radius(radius, d, seed) if d else np.empty((1, 0))
    rows[1:] = generator(seed, "poisson_disk").permutation(rows[1:])
    return rows


def check_poisson_disk(d: int, *, n: int | None, radius: float | None) -> None:
    """Raise what :func:`poisson_disk` would raise, without the work.

    Args:
        d: Number of columns; with 0 the radius may be as small as it likes.
        n: Number of rows.
        radius: Smallest distance.

    Raises:
        ValueError: If an argument is out of range, or not exactly one of ``n`` and ``radius`` is
            given.
        TypeError: If ``d`` or ``n`` is not an integer.
    """
    check_int("d", d, high=MAX_COLUMNS["sobol"])
    if (n is None) == (radius is None):
        raise ValueError(f"Either `n` or `radius` must be given, but got {n=} and {radius=}.")
    if n is not None:
        check_int("n", n, high=_MAX_POINTS)
    if radius is not None:
        try:
            radius = float(radius)
        except (TypeError, ValueError):
            raise TypeError(f"`radius` must be a number, but got {radius!r}.") from None
        if not 0.0 < radius < math.inf:
            raise ValueError(f"`radius` must be positive and finite, but got {radius}.")
        # The balls around the rows of a filled cube cover it: there are at least 1 / volume rows.
        if d and -(_log_unit_ball(d) + d * math.log(radius)) > math.log(_MAX_POINTS):
            raise _too_small(radius, d)


def _too_small(radius: float, d: int) -> ValueError:
    return ValueError(
        f"`radius` must not have room for more than {_MAX_POINTS:,} rows, "
        f"but got {radius} in {d} dimensions."
    )


def _log_unit_ball(d: int) -> float:
    """Return the logarithm of the volume of the unit ball."""
    return d / 2 * math.log(math.pi) - math.lgamma(d / 2 + 1)


def _of_number(n: int, d: int, seed: int) -> NDArray[np.float64]:
    candidates = sobol(_CANDIDATES * n, d, seed=seed)
    # Balls of half the distance do not overlap, and no two points of the torus are farther apart
    # than its half diagonal.
    packed = 2 * math.exp(-(math.log(n) + _log_unit_ball(d)) / d)
    low, high = 0.0, min(packed, math.sqrt(d) / 2)
    rows = candidates[:n]
    for _ in range(_BISECTIONS):
        radius = (low + high) / 2
        thrown = _throw(candidates, radius, n)
        if len(thrown) == n:
            low, rows = radius, thrown
        else:
            high = radius
    return rows


def _of_radius(radius: float, d: int, seed: int) -> NDArray[np.float64]:
    from scipy.spatial import KDTree

    rows = _throw(sobol(1, d, seed=seed), radius, 1)
    start = 1
    while start < max(1024, _SATURATION * len(rows)):
        candidates = sobol(start, d, seed=seed, start=start)  # as many as there were before
        nearest, _ = KDTree(rows, boxsize=1.0).query(candidates, distance_upper_bound=radius)
        rows = np.vstack([rows, _throw(candidates[nearest >= radius], radius, _MAX_POINTS + 1)])
        if len(rows) > _MAX_POINTS:
            raise _too_small(radius, d)
        start *= 2
    return rows


def _throw(candidates: NDArray[np.float64], radius: float, limit: int) -> NDArray[np.float64]:
    """Return, in order, the candidates that are not within ``radius`` of one taken before."""
    from scipy.spatial import KDTree

    tree = KDTree(candidates, leafsize=32, boxsize=1.0)  # a torus
    free = np.ones(len(candidates), dtype=bool)
    taken: list[int] = []
    for i in range(len(candidates)):
        if free[i]:
            taken.append(i)
            if len(taken) == limit:
                break
            free[tree.query_ball_point(candidates[i], radius)] = False
    rows: NDArray[np.float64] = candidates[taken]
    return rows
