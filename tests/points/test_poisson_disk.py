from __future__ import annotations

import math

import numpy as np
import pytest
from scipy.stats import qmc

from optuna_ext.points import min_distance
from optuna_ext.points import poisson_disk
from optuna_ext.points import sobol


@pytest.mark.parametrize(
    ("radius", "d"), [(0.01, 1), (0.3, 1), (0.2, 2), (0.05, 2), (0.15, 3), (0.3, 5), (0.6, 8)]
)
@pytest.mark.parametrize("seed", [0, 1])
def test_declared_radius_is_the_distance_on_the_torus(radius: float, d: int, seed: int) -> None:
    rows = poisson_disk(d, radius=radius, seed=seed)
    assert min_distance(rows, toroidal=True) >= radius * (1 - 1e-12)
    assert min_distance(rows) >= radius * (1 - 1e-12)


@pytest.mark.parametrize(("radius", "d"), [(0.02, 1), (0.1, 2), (0.2, 3)])
def test_declared_radius_is_filled(radius: float, d: int) -> None:
    from scipy.spatial import KDTree

    rows = poisson_disk(d, radius=radius, seed=0)
    places = np.random.default_rng(0).random((20_000, d))
    distances, _ = KDTree(rows, boxsize=1.0).query(places)
    assert (distances >= radius).mean() < 0.01  # hardly a place for one more


@pytest.mark.parametrize(
    ("n", "d", "share"), [(16, 2, 0.65), (64, 2, 0.65), (256, 2, 0.65), (40, 1, 0.5)]
)
def test_declared_number_against_the_best_possible_distance(n: int, d: int, share: float) -> None:
    # The hexagonal lattice in two dimensions, the even grid in one.
    best = math.sqrt(2 / math.sqrt(3) / n) if d == 2 else 1 / n
    for seed in range(4):
        rows = poisson_disk(d, n=n, seed=seed)
        assert rows.shape == (n, d)
        assert min_distance(rows, toroidal=True) >= share * best


@pytest.mark.parametrize("d", [2, 5, 8])
@pytest.mark.parametrize("n", [16, 64, 256])
def test_declared_number_against_random_and_sobol(n: int, d: int) -> None:
    rng = np.random.default_rng(0)

    def median(sets: list[np.ndarray]) -> float:
        return float(np.median([min_distance(rows, toroidal=True) for rows in sets]))

    blue = median([poisson_disk(d, n=n, seed=seed) for seed in range(3)])
    assert blue > 1.25 * median([sobol(n, d, seed=seed) for seed in range(20)])
    assert blue > 1.5 * median([rng.random((n, d)) for _ in range(20)])


def test_rows_do_not_crowd_at_the_border() -> None:
    def share_at_border(sets: list[np.ndarray]) -> float:
        rows = np.vstack(sets)
        return float(((rows < 0.05) | (rows > 0.95)).any(axis=1).mean())

    ours = share_at_border([poisson_disk(2, radius=0.1, seed=seed) for seed in range(40)])
    theirs = share_at_border(
        [qmc.PoissonDisk(2, radius=0.1, rng=seed).fill_space() for seed in range(20)]
    )
    assert ours == pytest.approx(0.19, abs=0.02)  # the share of the area
    assert theirs > 0.25  # scipy's: outside of the square nothing keeps them away


def test_first_row_is_the_same_whatever_the_size() -> None:
    first = sobol(1, 12, seed=7)[0]
    for d in (1, 3, 8, 12):
        for rows in (
            poisson_disk(d, n=1, seed=7),
            poisson_disk(d, n=30, seed=7),
            poisson_disk(d, radius=0.4 * math.sqrt(d), seed=7),
        ):
            np.testing.assert_array_equal(rows[0], first[:d])


def test_other_rows_are_in_random_order() -> None:
    sets = [poisson_disk(2, n=64, seed=seed) for seed in range(40)]
    correlation = np.mean([np.corrcoef(np.arange(64), rows.T)[0, 1:] for rows in sets], axis=0)
    assert abs(correlation).max() < 4.5 / math.sqrt(64 * 40)
    halves = [min_distance(rows[:32], toroidal=True) for rows in sets]
    assert np.median(halves) < 1.6 * np.median([min_distance(r, toroidal=True) for r in sets])


def test_small_sizes() -> None:
    assert poisson_disk(3, n=0, seed=0).shape == (0, 3)
    assert poisson_disk(0, n=5, seed=0).shape == (5, 0)
    assert poisson_disk(0, radius=1.0, seed=0).shape == (1, 0)
    assert poisson_disk(3, radius=10.0, seed=0).shape == (1, 3)  # no room for a second
    two = poisson_disk(2, n=2, seed=0)
    assert min_distance(two, toroidal=True) > 0.5  # of at most sqrt(1/2)


@pytest.mark.parametrize(("radius", "d"), [(1e-3, 2), (0.0075, 2), (0.2, 8), (1e-300, 20)])
def test_too_small_radius_is_refused(radius: float, d: int) -> None:
    with pytest.raises(ValueError, match=f"more than 10,000 rows, but got {radius} in {d} dim"):
        poisson_disk(d, radius=radius, seed=0)


def test_wrong_arguments() -> None:
    for radius in (0.0, -1.0, math.inf, math.nan):
        with pytest.raises(ValueError, match="`radius` must be positive and finite, but got"):
            poisson_disk(2, radius=radius, seed=0)
    with pytest.raises(ValueError, match="Either `n` or `radius`"):
        poisson_disk(2, seed=0)
    with pytest.raises(ValueError, match="Either `n` or `radius`"):
        poisson_disk(2, n=3, radius=0.1, seed=0)
    with pytest.raises(ValueError, match="`n` must be at most 10000, but got 10001"):
        poisson_disk(2, n=10_001, seed=0)
