"""Who becomes a parent: values in, probabilities out.

Each function takes the values of a population, minimized, from the best to the worst, and returns
the probability of each individual to be drawn. All but :func:`softmax` look at ranks only, which
are the places in the list: whoever sorted it has told equals apart.

"Inversely proportional to the loss", which is often read, is not among them: it is undefined for
losses that are zero or negative, and adding a constant to the loss would change it.
"""

from __future__ import annotations

from collections.abc import Callable
import math

import numpy as np


Selection = Callable[[np.ndarray], np.ndarray]


def rank(values: np.ndarray, *, pressure: float = 2.0) -> np.ndarray:
    """Return probabilities that fall linearly with the rank.

    Args:
        values: Values, shape ``(m,)``, ``m >= 1``, ascending; ``+inf`` is the worst.
        pressure: How many times as often as an average individual the best is drawn, in
            ``[1, 2]``; 1 is uniform, and with 2 the worst is never drawn.

    Returns:
        Probabilities, shape ``(m,)``, float64.

    Raises:
        ValueError: If ``pressure`` is not in ``[1, 2]``.

    References:
        J. E. Baker (1985), *Adaptive selection methods for genetic algorithms*, Proc. ICGA.
    """
    if not 1.0 <= pressure <= 2.0:
        raise ValueError(f"`pressure` must be in [1, 2], but got {pressure}.")
    m = len(values)
    return _normalized(pressure - (2 * pressure - 2) * np.arange(m) / max(m - 1, 1))


def tournament(values: np.ndarray, *, size: int = 2) -> np.ndarray:
    """Return the probabilities of winning a tournament.

    ``size`` individuals are drawn with replacement and the best of them wins, so that an
    individual with ``r`` better ones wins with ``((m - r)^size - (m - r - 1)^size) / m^size``.

    Args:
        values: Values, shape ``(m,)``, ``m >= 1``, ascending; ``+inf`` is the worst.
        size: Number of individuals in a tournament, ``size >= 1``; 1 is uniform.

    Returns:
        Probabilities, shape ``(m,)``, float64.

    Raises:
        ValueError: If ``size < 1``.

    References:
        T. Bäck (1994), *Selective pressure in evolutionary algorithms*, Proc. IEEE WCCI.
    """
    if size < 1:
        raise ValueError(f"`size` must be at least 1, but got {size}.")
    m = len(values)
    not_better = (m - np.arange(m + 1)) / m
    return _normalized(-np.diff(not_better**size))


def truncation(values: np.ndarray, *, fraction: float = 0.25) -> np.ndarray:
    """Return equal probabilities for the best individuals and zero for the others.

    Args:
        values: Values, shape ``(m,)``, ``m >= 1``, ascending; ``+inf`` is the worst.
        fraction: Share of the population that may be drawn, in ``(0, 1]``, rounded up.

    Returns:
        Probabilities, shape ``(m,)``, float64.

    Raises:
        ValueError: If ``fraction`` is not in ``(0, 1]``.
    """
    if not 0.0 < fraction <= 1.0:
        raise ValueError(f"`fraction` must be in (0, 1], but got {fraction}.")
    m = len(values)
    return _normalized((np.arange(m) < math.ceil(fraction * m)).astype(float))


def softmax(values: np.ndarray, *, temperature: float = 0.5) -> np.ndarray:
    """Return probabilities in proportion to ``exp(-z / temperature)``.

    ``z`` is the value in standard deviations of the population, so that neither a constant added
    to the objective nor a factor changes the choice. Individuals with the value ``+inf`` are not
    drawn unless all have it.

    Args:
        values: Values, shape ``(m,)``, ``m >= 1``, ascending; ``+inf`` is the worst.
        temperature: Positive; the lower, the greedier.

    Returns:
        Probabilities, shape ``(m,)``, float64.

    Raises:
        ValueError: If ``temperature`` is not positive.
    """
    if not temperature > 0.0:
        raise ValueError(f"`temperature` must be positive, but got {temperature}.")
    best = values[0]
    with np.errstate(invalid="ignore", over="ignore"):
        gaps = np.where(values == best, 0.0, values - best)
        comparable = np.isfinite(gaps)
        spread = gaps[comparable].std() or 1.0  # infinite beyond the doubles: all alike
        weights = np.where(comparable, np.exp(-gaps / spread / temperature), 0.0)
    return _normalized(weights)


SELECTIONS: dict[str, Selection] = {
    "rank": rank,
    "softmax": softmax,
    "tournament": tournament,
    "truncation": truncation,
}


def _normalized(weights: np.ndarray) -> np.ndarray:
    probabilities: np.ndarray = weights / weights.sum()
    return probabilities
