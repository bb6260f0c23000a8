"""How much better its neighbors probably are than a point, judged by the rows evaluated so far.

Each method takes offsets from the point: evaluated ones with their heights, that is how much
worse they are than the point, and those of candidates. It returns the heights that it expects of
the candidates. All but ``ridge`` do so by a gradient ``g``, as ``offset @ g``.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import get_args
from typing import Literal

import numpy as np


Gradient = Literal["ridge", "simplex", "central", "smoothing", "none"]
GRADIENTS: tuple[Gradient, ...] = get_args(Gradient)

_WEIGHT = 0.01  # of the penalty of ridge regression, small as repeated trainings differ little
_LENGTH = 1.0  # over which an effect changes, in ranges of a parameter
_SIGMA = 0.25  # of the Gaussian weights, in ranges of a parameter
_SAME = 1e-9


def predict(
    gradient: Gradient, offsets: np.ndarray, heights: np.ndarray, candidates: np.ndarray
) -> np.ndarray:
    """Return the heights that are to be expected at candidates.

    Args:
        gradient: How to know: ``"ridge"``, kernel ridge regression with an additive kernel;
            ``"simplex"``, the gradient of the plane through the nearest rows; ``"central"``,
            central differences along the axes, one-sided at an edge; ``"smoothing"``, the
            gradient of the objective smoothed by a Gaussian; ``"none"``, all the same.
        offsets: Evaluated rows minus the point, shape ``(n, k)``.
        heights: Their values minus the point's, shape ``(n,)``, finite.
        candidates: Candidates minus the point, shape ``(m, k)``.

    Returns:
        Array of shape ``(m,)``; the smaller, the better.
    """
    return _METHODS[gradient](offsets, heights, candidates)


def _ridge(offsets: np.ndarray, heights: np.ndarray, candidates: np.ndarray) -> np.ndarray:
    """Fit a sum of smooth effects of single parameters, with some room for interactions."""
    mean = heights.mean()
    kernel = _kernel(np.concatenate([offsets, candidates]), offsets)
    gram = kernel[: len(offsets)]
    gram[np.diag_indices_from(gram)] += _WEIGHT
    weights = np.linalg.solve(gram, heights - mean)
    return np.asarray(mean + kernel[len(offsets) :] @ weights)


def _kernel(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Return half the mean, half the root of the product, of Matern-3/2 kernels of each axis."""
    a, b = (np.sqrt(3.0) / _LENGTH * np.ascontiguousarray(rows.T) for rows in (a, b))
    scaled = np.abs(a[:, :, None] - b[:, None, :])  # axes first, where numpy is quick to reduce
    axes = np.exp(-scaled)
    scaled += 1.0
    axes *= scaled
    return np.asarray(0.5 * axes.mean(axis=0) + 0.5 * np.sqrt(axes.prod(axis=0)))


def _simplex(offsets: np.ndarray, heights: np.ndarray, candidates: np.ndarray) -> np.ndarray:
    """Lay a plane through the point and the nearest rows, twice as many as it has slopes.

    Where the rows leave slopes open, the shortest gradient is taken (Custodio and Vicente 2007,
    SIAM J. Optim. 18(2), on ordering a poll by simplex gradients).
    """
    nearest = np.argsort(np.abs(offsets).sum(axis=1), kind="stable")[: 2 * offsets.shape[1] + 1]
    slope, *_ = np.linalg.lstsq(offsets[nearest], heights[nearest], rcond=1e-6)
    return np.asarray(candidates @ slope)


def _central(offsets: np.ndarray, heights: np.ndarray, candidates: np.ndarray) -> np.ndarray:
    """Take (f(x + h) - f(x - h)) / 2h on each axis where the nearest such rows are known."""
    slope = np.zeros(offsets.shape[1])
    n_changed = np.count_nonzero(np.abs(offsets) > _SAME, axis=1)
    for column in range(len(slope)):
        steps = np.where(n_changed == 1, offsets[:, column], 0.0)
        ends = []
        for on_side in (steps > _SAME, steps < -_SAME):
            if on_side.any():
                row = np.flatnonzero(on_side)[np.abs(steps[on_side]).argmin()]
                ends.append((steps[row], heights[row]))
        if ends:
            (right, up), (left, down) = [*ends, (0.0, 0.0)][:2]
            slope[column] = (up - down) / (right - left)
    return np.asarray(candidates @ slope)


def _smoothing(offsets: np.ndarray, heights: np.ndarray, candidates: np.ndarray) -> np.ndarray:
    """Average the directional slopes, the nearer the heavier.

    With offsets ``u`` drawn from a Gaussian, ``d * mean(slope * u / |u|)`` is the gradient of the
    smoothed objective (Nesterov and Spokoiny 2017, Found. Comput. Math. 17); here the offsets
    are those there are, and get the Gaussian's weights.
    """
    squares = (offsets**2).sum(axis=1)
    weights = np.where(squares > _SAME, np.exp(-squares / (2.0 * _SIGMA**2)), 0.0)
    total = weights.sum()
    if not total > 0.0:
        return np.zeros(len(candidates))
    slopes = offsets * (heights / np.maximum(squares, _SAME))[:, None]
    return np.asarray(candidates @ (offsets.shape[1] * (weights @ slopes) / total))


def _none(offsets: np.ndarray, heights: np.ndarray, candidates: np.ndarray) -> np.ndarray:
    del offsets, heights
    return np.zeros(len(candidates))


_METHODS: dict[Gradient, Callable[[np.ndarray, np.ndarray, np.ndarray], np.ndarray]] = {
    "ridge": _ridge,
    "simplex": _simplex,
    "central": _central,
    "smoothing": _smoothing,
    "none": _none,
}
