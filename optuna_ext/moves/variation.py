"""How a child comes from its parents: crossover and mutation of rows of the unit cube.

Coordinates are moved one at a time by a :data:`Snap`, which gives the coordinate of the nearest
value that the parameter has. NaN stands for a coordinate that nobody knows, and stays NaN.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
import math
from typing import Literal

import numpy as np


Snap = Callable[[int, float], float]  # column, coordinate -> coordinate of that column's value
Crossover = Callable[[np.ndarray, np.random.Generator], np.ndarray]  # parents (k, d) -> row (d,)
ChoiceMutation = Literal["resample", "neighbor"]

_LAST = math.nextafter(1.0, 0.0)


def uniform_crossover(parents: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Return a row that takes each coordinate from one of the parents.

    Args:
        parents: Rows of the unit cube, shape ``(k, d)``, ``k >= 1``.
        rng: Random generator.

    Returns:
        Row of shape ``(d,)``.

    References:
        G. Syswerda (1989), *Uniform crossover in genetic algorithms*, Proc. ICGA.
    """
    k, d = parents.shape
    row: np.ndarray = parents[rng.integers(k, size=d), np.arange(d)]
    return row


@dataclass(frozen=True)
class Scale:
    """The values that an ordered column stands for.

    Attributes:
        low: Value at coordinate 0.
        high: Value at coordinate 1, ``high > low``.
        log: Whether the values are on a log scale; then ``low > 0``.
        nonnegative: Whether no value is below zero, so that they can be multiplied.
    """

    low: float
    high: float
    log: bool
    nonnegative: bool

    def multiply(self, u: float, factor: float) -> float:
        """Return the coordinate of ``factor`` times the value at ``u``; may leave [0, 1)."""
        if self.log:
            return u + math.log(factor) / math.log(self.high / self.low)
        span = self.high - self.low
        return (factor * (self.low + u * span) - self.low) / span

    def is_about_zero(self, u: float, share: float) -> bool:
        """Tell whether the value at ``u`` is zero, or less than a share of the largest one."""
        return self.low <= 0.0 and self.low + u * (self.high - self.low) < share * self.high


@dataclass(frozen=True)
class Mutation:
    """Changes of single coordinates.

    Every changed coordinate moves by at least one value: the integers 1 and 2 can become each
    other. A move beyond an end turns round.

    - An ordered column moves by ``smallest`` to ``largest`` of its range, log-uniformly drawn
      with a random sign, on the scale of the unit cube, which for a log distribution is the log
      of the value. So every order of magnitude of steps has its share, and there is no step
      length to tune or to anneal (the mutation of the breeder genetic algorithm).
    - With ``factor``, a number that is not negative is multiplied by ``factor`` or by
      ``1 / factor`` instead. The two are reciprocal, so that the logarithm of a value does not
      drift where nobody selects; with 0.8 and 1.2, say, it loses 2% a step. In a range from zero
      on, what is below ``smallest`` of it takes a step, as zero times anything stays zero.
    - An unordered column takes any of its other values (``"resample"``) or the one before or
      after it in the list, round the ends (``"neighbor"``).

    Args:
        smallest: Shortest step, in ``(0, largest]``.
        largest: Longest step, in ``(0, 1]``.
        factor: ``None`` for steps, or a number above 1.
        choices: What happens to unordered columns.

    Raises:
        ValueError: If an argument is out of range.

    References:
        H. Mühlenbein and D. Schlierkamp-Voosen (1993), *Predictive models for the breeder genetic
        algorithm*, Evol. Comput. 1(1); M. Jaderberg et al. (2017), *Population based training of
        neural networks*, arXiv:1711.09846, for the factors.
    """

    smallest: float = 1 / 32
    largest: float = 0.5
    factor: float | None = None
    choices: ChoiceMutation = "resample"

    def __post_init__(self) -> None:
        if not 0.0 < self.smallest <= self.largest <= 1.0:
            raise ValueError(
                "`smallest` and `largest` must satisfy 0 < smallest <= largest <= 1, but got "
                f"{self.smallest} and {self.largest}."
            )
        if self.factor is not None and not 1.0 < self.factor < math.inf:
            raise ValueError(f"`factor` must be above 1 and finite, but got {self.factor}.")
        if self.choices not in ("resample", "neighbor"):
            raise ValueError(
                f"`choices` must be 'resample' or 'neighbor', but got {self.choices!r}."
            )

    def number(
        self, u: float, scale: Scale, snap: Callable[[float], float], rng: np.random.Generator
    ) -> float:
        """Return another coordinate of an ordered column.

        Args:
            u: Coordinate of a value, in ``[0, 1)``.
            scale: The column's values.
            snap: The column's :data:`Snap`.
            rng: Random generator.
        """
        sign = 1.0 if rng.random() < 0.5 else -1.0
        if (
            self.factor is not None
            and scale.nonnegative
            and not scale.is_about_zero(u, self.smallest)
        ):
            shift = scale.multiply(u, self.factor**sign) - u
            if not 0.0 <= u + shift < 1.0:
                shift = scale.multiply(u, self.factor**-sign) - u
            return _shift(u, shift or sign * self.smallest, snap)  # 0: lost in rounding
        step = self.smallest * (self.largest / self.smallest) ** rng.random()
        return _shift(u, sign * step, snap)

    def choice(self, u: float, n_values: int, rng: np.random.Generator) -> float:
        """Return another coordinate of an unordered column with ``n_values >= 2`` values."""
        if self.choices == "resample":
            shift = int(rng.integers(1, n_values))
        else:
            shift = 1 if rng.random() < 0.5 else -1
        return ((math.floor(u * n_values) + shift) % n_values + 0.5) / n_values


def mutate(
    row: np.ndarray,
    prob: float,
    *,
    scales: tuple[Scale | None, ...],
    n_values: tuple[int | None, ...],
    snap: Snap,
    mutation: Mutation,
    rng: np.random.Generator,
) -> np.ndarray:
    """Return a row in which each coordinate has changed with the same probability.

    Args:
        row: Row of values, shape ``(d,)``, in ``[0, 1)``; NaN is never changed.
        prob: Probability of each coordinate to change, in ``[0, 1]``.
        scales: For each column its values, None if they have no order.
        n_values: For each column the number of its values, None if continuous.
        snap: Gives the coordinate of a column's nearest value.
        mutation: What a change is.
        rng: Random generator.

    Returns:
        Row of shape ``(d,)``.
    """
    row = row.copy()
    changes = rng.random(len(row)) < prob
    for column in np.flatnonzero(changes & ~np.isnan(row)).tolist():
        u, scale, n = float(row[column]), scales[column], n_values[column]
        if scale is None:
            row[column] = mutation.choice(u, n or 1, rng)
        else:
            row[column] = mutation.number(u, scale, lambda v, c=column: snap(c, v), rng)  # type: ignore[misc]
    return row


def _shift(u: float, shift: float, snap: Callable[[float], float]) -> float:
    """Return the coordinate ``shift`` away from ``u``, and at least one value away."""
    while True:
        if not 0.0 <= u + shift < 1.0:
            shift = -shift
        if not 0.0 <= u + shift < 1.0:  # too far either way: the farther end
            return snap(0.0 if u >= 0.5 else _LAST)
        v = snap(u + shift)
        if v != u:
            return v
        shift *= 2  # not yet in another value's bin
