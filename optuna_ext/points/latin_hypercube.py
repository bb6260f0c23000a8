"""Latin hypercube sampling."""

from __future__ import annotations

import math
from typing import get_args
from typing import Literal
from typing import TYPE_CHECKING

import numpy as np

from optuna_ext._checks import check_int
from optuna_ext.points._checks import generator
from optuna_ext.points._checks import LAST
from optuna_ext.points._checks import MAX_ROWS


if TYPE_CHECKING:
    from numpy.typing import NDArray


LatinHypercubeKind = Literal["plain", "centered", "random-cd", "strength-2"]


def latin_hypercube(
    n: int, d: int, *, seed: int, kind: LatinHypercubeKind = "plain"
) -> NDArray[np.float64]:
    """Return a Latin hypercube sample: one row in each of the ``n`` equal parts of every axis.

    The rows are in random order. With every kind but ``"random-cd"`` a wider sample of the same
    ``n`` contains the narrower ones.

    Args:
        n: Number of rows, ``0 <= n <= 2**30``.
        d: Number of columns, ``d >= 0``.
        seed: A non-negative integer of any size.
        kind:

            - ``"plain"``: a random place within each part.
            - ``"centered"``: the center of each part.
            - ``"random-cd"``: plain, then random exchanges within columns as long as they lower
              the centered L2 discrepancy. Costs ``O(n * d)`` for each of up to 10,000 exchanges.
            - ``"strength-2"``: also one row in each of the ``n`` squares of every pair of axes
              (Tang, 1993). Needs ``n = p**2`` for a prime ``p``, and ``d <= p + 1``.

    Returns:
        Array of shape ``(n, d)``, float64, values in ``[0, 1)``.

    Raises:
        ValueError: If ``n``, ``d`` or ``seed`` is out of range, if ``kind`` is not one of the
            above, or if there is no sample of strength 2 of this size.
        TypeError: If one of the numbers is not an integer.

    References:
        M. D. McKay, R. J. Beckman and W. J. Conover (1979), Technometrics 21, 239-245.
        B. Tang (1993), Journal of the American Statistical Association 88, 1392-1397.
        G. Damblin, M. Couplet and B. Iooss (2013), Journal of Simulation 7, 276-289.

    Example:
        >>> rows = latin_hypercube(4, 2, seed=0, kind="centered")
        >>> sorted(rows[:, 1].tolist())
        [0.125, 0.375, 0.625, 0.875]
    """
    check_latin_hypercube(n, d, kind=kind)
    check_int("seed", seed)
    if kind == "random-cd" and n > 1 and d > 1:  # else there is nothing to exchange
        return _random_cd(n, d, seed)
    if kind == "strength-2":
        return _strength_2(n, d, seed)
    columns = [_column(n, seed, j, centered=kind == "centered") for j in range(d)]
    return np.array(columns).reshape(d, n).T.copy()


def check_latin_hypercube(n: int, d: int, *, kind: LatinHypercubeKind) -> None:
    """Raise what :func:`latin_hypercube` would raise, without the work.

    Args:
        n: Number of rows.
        d: Number of columns.
        kind: Kind of the sample.

    Raises:
        ValueError: If ``n`` or ``d`` is out of range, if ``kind`` is unknown, or if there is no
            sample of strength 2 of this size.
        TypeError: If ``n`` or ``d`` is not an integer.
    """
    kinds = get_args(LatinHypercubeKind)
    if kind not in kinds:
        raise ValueError(f"`kind` must be one of {kinds}, but got {kind!r}.")
    n = check_int("n", n, high=MAX_ROWS)
    d = check_int("d", d)
    if kind == "strength-2":
        p = math.isqrt(n)
        if p * p != n or not _is_prime(p):
            raise ValueError(
                "`n` must be the square of a prime for a sample of strength 2, such as "
                f"{_nearest_prime_squares(n)}, but got {n}."
            )
        if d > p + 1:
            raise ValueError(f"`d` must be at most {p + 1} at strength 2 and {n=}, but got {d}.")


def _column(n: int, seed: int, column: int, *, centered: bool) -> NDArray[np.float64]:
    rng = generator(seed, "latin_hypercube", column)
    stratum = rng.permutation(n)
    # Places that are multiples of 2**-32, plus a half: no rounding moves a point over the edge.
    place = 0.5 if centered else (rng.integers(2**32, size=n) + 0.5) / 2**32
    rows: NDArray[np.float64] = (stratum + place) / n
    return rows


def _random_cd(n: int, d: int, seed: int) -> NDArray[np.float64]:
    from scipy.stats import qmc

    rng = generator(seed, "latin_hypercube", "random-cd")
    rows: NDArray[np.float64] = qmc.LatinHypercube(d, optimization="random-cd", rng=rng).random(n)
    return rows.clip(max=LAST)  # scipy's interval is (0, 1]


def _strength_2(n: int, d: int, seed: int) -> NDArray[np.float64]:
    from scipy.stats import qmc

    rng = generator(seed, "latin_hypercube", "strength-2")
    # scipy makes all p + 1 columns whatever d is, in the order of the orthogonal array.
    rows: NDArray[np.float64] = qmc.LatinHypercube(d, strength=2, rng=rng).random(n)
    order = generator(seed, "latin_hypercube", "order").permutation(n)
    return rows.clip(max=LAST)[order]


def _is_prime(p: int) -> bool:
    return p >= 2 and all(p % k for k in range(2, math.isqrt(p) + 1))


def _nearest_prime_squares(n: int) -> str:
    root = math.isqrt(n)
    below = next((p for p in range(root, 1, -1) if _is_prime(p)), None)
    above = next(p for p in range(root + 1, 2 * root + 3) if _is_prime(p))
    return f"{above**2}" if below is None else f"{below**2} or {above**2}"
