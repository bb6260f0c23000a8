"""Where a quadratic model of a smooth function expects its minimum."""

from __future__ import annotations

import numpy as np


_RIDGE = 1e-6  # of the curvatures: enough where the rows leave some of them open
_N_BISECTIONS = 60


def n_coefficients(d: int) -> int:
    """Return how many numbers a quadratic function of ``d`` variables has."""
    return (d + 1) * (d + 2) // 2


def minimizer(offsets: np.ndarray, heights: np.ndarray, radius: float) -> np.ndarray | None:
    """Return the minimizer, within a trust region, of the quadratic through the nearest rows.

    The model is a weighted least squares fit to half as many rows again as it has coefficients,
    the nearer the heavier, with a light ridge. Its minimizer solves the trust-region subproblem
    exactly, also where the model is a saddle (Conn, Scheinberg and Vicente 2009, *Introduction to
    Derivative-Free Optimization*, chapters 4 and 7).

    Args:
        offsets: Evaluated rows minus the center, shape ``(n, d)``, without NaN.
        heights: Their values, or values minus the center's, shape ``(n,)``.
        radius: Of the trust region, a Euclidean distance, positive.

    Returns:
        The minimizer minus the center, shape ``(d,)``; None if there are fewer finite heights
        than coefficients, or all heights or offsets are the same.
    """
    finite = np.isfinite(heights)
    offsets, heights = offsets[finite], heights[finite]
    d = offsets.shape[1]
    n = n_coefficients(d)
    distances = np.linalg.norm(offsets, axis=1)
    nearest = np.argsort(distances, kind="stable")[: n + n // 2]
    if len(nearest) < n:
        return None
    with np.errstate(over="ignore"):  # of values that are as good as infinite
        y = heights[nearest] - heights[nearest].min()
    reach = distances[nearest[-1]]
    if not 0.0 < y.max() < np.inf or not reach > 0.0:
        return None
    x = offsets[nearest] / reach
    i, j = np.triu_indices(d)
    terms = np.column_stack([np.ones(len(x)), x, x[:, i] * x[:, j]])
    weighted = terms * np.exp(-((distances[nearest] / reach) ** 2))[:, None]
    penalty = np.repeat([1e-3, 1e-2, 1.0], [1, d, len(i)]) * _RIDGE
    fit = np.linalg.solve(weighted.T @ terms + np.diag(penalty), weighted.T @ (y / y.max()))
    hessian = np.zeros((d, d))
    hessian[i, j] += fit[d + 1 :]
    hessian[j, i] += fit[d + 1 :]
    return np.asarray(reach * _trust_region_step(fit[1 : d + 1], hessian, radius / reach))


def _trust_region_step(slope: np.ndarray, hessian: np.ndarray, radius: float) -> np.ndarray:
    """Return the minimizer of ``slope @ p + p @ hessian @ p / 2`` for ``|p| <= radius``."""
    curvatures, axes = np.linalg.eigh(hessian)
    slopes = axes.T @ slope
    low = max(0.0, -curvatures[0]) + 1e-9 * max(1.0, abs(curvatures[-1]))
    high = low + np.linalg.norm(slopes) / radius  # the step is shorter the larger the shift
    if np.linalg.norm(slopes / (curvatures + low)) <= radius:
        high = low
    for _ in range(_N_BISECTIONS):
        middle = (low + high) / 2
        if np.linalg.norm(slopes / (curvatures + middle)) > radius:
            low = middle
        else:
            high = middle
    return np.asarray(axes @ (-slopes / (curvatures + high)))
