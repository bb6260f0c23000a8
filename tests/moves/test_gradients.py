from __future__ import annotations

import numpy as np
import pytest

from optuna_ext.moves.gradients import Gradient
from optuna_ext.moves.gradients import GRADIENTS
from optuna_ext.moves.gradients import predict


LINEAR: list[Gradient] = ["simplex", "central", "smoothing"]
SLOPE = np.array([3.0, -1.0, 0.5])


def cross(step: float) -> np.ndarray:
    """Give the offsets of the neighbors along all axes."""
    return np.concatenate([step * np.eye(3), -step * np.eye(3)])


@pytest.mark.parametrize("gradient", LINEAR)
def test_slopes_of_a_plane_are_exact(gradient: Gradient) -> None:
    candidates = np.random.default_rng(0).normal(size=(10, 3))
    expected = predict(gradient, cross(0.2), cross(0.2) @ SLOPE, candidates)
    np.testing.assert_allclose(expected, candidates @ SLOPE, atol=1e-12)


def test_simplex_needs_no_neighbors_on_the_axes() -> None:
    offsets = np.random.default_rng(1).normal(size=(7, 3))
    expected = predict("simplex", offsets, offsets @ SLOPE, np.eye(3))
    np.testing.assert_allclose(expected, SLOPE, atol=1e-10)


def test_central_differences_are_exact_for_a_parabola() -> None:
    """(f(h) - f(-h)) / 2h has no error from the curvature; one-sided it has."""
    heights = cross(0.1) @ SLOPE + 5 * (cross(0.1) ** 2).sum(axis=1)
    np.testing.assert_allclose(predict("central", cross(0.1), heights, np.eye(3)), SLOPE)
    one_sided = predict("central", cross(0.1)[:3], heights[:3], np.eye(3))
    np.testing.assert_allclose(one_sided, SLOPE + 0.5)


def test_central_takes_the_nearest_and_leaves_unknown_axes_flat() -> None:
    offsets = np.array([[0.4, 0.0, 0.0], [0.1, 0.0, 0.0], [0.1, 0.1, 0.0], [0.0, -0.2, 0.0]])
    heights = np.array([9.0, 1.0, 7.0, 1.0])
    np.testing.assert_allclose(predict("central", offsets, heights, np.eye(3)), [10, -5, 0])


def test_ridge_fits_what_it_has_seen_and_sums_single_effects() -> None:
    grid = np.linspace(-0.5, 0.5, 5)
    axes = np.array([[x, 0.0] for x in grid] + [[0.0, x] for x in grid])
    heights = (axes**2 @ [4.0, 1.0]) + axes @ [1.0, 0.0]
    np.testing.assert_allclose(predict("ridge", axes, heights, axes), heights, atol=0.15)
    corners = np.array([[-0.25, -0.25], [-0.25, 0.25], [0.5, -0.5], [0.5, 0.5]])
    expected = predict("ridge", axes, heights, corners)
    assert expected[:2].max() < expected[2:].min()


@pytest.mark.parametrize("gradient", GRADIENTS)
def test_any_history_gives_finite_numbers(gradient: Gradient) -> None:
    rng = np.random.default_rng(2)
    for n in (1, 2, 1000):
        offsets = rng.choice([0.0, 0.25], (n, 4))
        offsets[0] = 0.0
        expected = predict(gradient, offsets, rng.normal(size=n), rng.normal(size=(5, 4)))
        assert expected.shape == (5,)
        assert np.isfinite(expected).all()


def test_without_a_gradient_all_are_equal() -> None:
    assert not predict("none", cross(1.0), np.arange(6.0), np.eye(3)).any()
