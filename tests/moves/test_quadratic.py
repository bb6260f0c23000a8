from __future__ import annotations

import numpy as np
import pytest

from optuna_ext.moves.quadratic import minimizer
from optuna_ext.moves.quadratic import n_coefficients


@pytest.mark.parametrize("d", [1, 2, 5])
def test_finds_the_minimum_of_a_bowl(d: int) -> None:
    rng = np.random.default_rng(d)
    root = rng.normal(size=(d, d)) + 2 * np.eye(d)
    optimum = rng.uniform(-0.1, 0.1, d)
    offsets = rng.uniform(-0.3, 0.3, (2 * n_coefficients(d), d))
    heights = 7.0 + (((offsets - optimum) @ root) ** 2).sum(axis=1)
    move = minimizer(offsets, heights, radius=1.0)
    assert move is not None
    np.testing.assert_allclose(move, optimum, atol=1e-3)


@pytest.mark.parametrize("curvatures", [(1.0, 8.0), (-1.0, 3.0), (-2.0, -1.0)])
def test_stays_in_the_trust_region_and_is_the_best_there(curvatures: tuple[float, float]) -> None:
    def f(rows: np.ndarray) -> np.ndarray:
        return np.asarray(rows @ [1.0, -2.0] + rows**2 @ np.array(curvatures))

    offsets = np.random.default_rng(0).uniform(-0.5, 0.5, (9, 2))
    move = minimizer(offsets, f(offsets), radius=0.1)
    assert move is not None
    assert np.linalg.norm(move) <= 0.1 + 1e-9
    angles, radii = np.meshgrid(np.linspace(0, 2 * np.pi, 720), np.linspace(0, 0.1, 50))
    disk = np.stack([radii * np.cos(angles), radii * np.sin(angles)], axis=-1)
    assert f(move[None])[0] <= f(disk.reshape(-1, 2)).min() + 1e-4


def test_needs_enough_heights_that_differ() -> None:
    offsets = np.random.default_rng(0).uniform(-1, 1, (9, 2))
    heights = (offsets**2).sum(axis=1)
    assert minimizer(offsets[:5], heights[:5], radius=1.0) is None
    assert minimizer(offsets, np.ones(9), radius=1.0) is None
    heights[:4] = np.inf
    assert minimizer(offsets, heights, radius=1.0) is None


def test_rows_that_leave_curvatures_open_give_a_finite_move() -> None:
    offsets = np.outer(np.linspace(-0.3, 0.3, 9), [1.0, 1.0])
    move = minimizer(offsets, (offsets**2).sum(axis=1) + offsets[:, 0], radius=0.2)
    assert move is not None
    assert np.isfinite(move).all()
    assert np.linalg.norm(move) <= 0.2 + 1e-9
