from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest

from optuna_ext.moves import History
from optuna_ext.moves.swarm import next_row
from optuna_ext.moves.swarm import Topology


CHI = 0.7298437881283576  # Clerc and Kennedy's, for c1 + c2 = 4.1


class Fixed(np.random.Generator):
    """A generator whose uniform numbers are all in the middle."""

    def __init__(self) -> None:
        super().__init__(np.random.PCG64(0))

    def uniform(self, low: float = 0, high: float = 1, size: object = None) -> np.ndarray:  # type: ignore[override]
        return np.full(size, (low + high) / 2)  # type: ignore[call-overload, no-any-return]


def history(
    rows: Sequence[Sequence[float]],
    values: Sequence[float],
    *,
    numbers: Sequence[int] | None = None,
    n_values: Sequence[int | None] | None = None,
    ordered: Sequence[bool] | None = None,
) -> History:
    d = len(rows[0])
    return History(
        rows=np.array(rows, dtype=float),
        values=np.array(values, dtype=float),
        ties=np.zeros(len(rows)),
        numbers=np.arange(len(rows)) if numbers is None else np.array(numbers),
        pending=np.empty((0, d)),
        pending_numbers=np.empty(0, dtype=int),
        n_values=tuple(n_values or [None] * d),
        ordered=tuple([True] * d if ordered is None else ordered),
    )


def test_one_step_is_the_constricted_velocity() -> None:
    rows = [[0.5, 0.4], [0.3, 0.8], [0.6, 0.45], [0.2, 0.7]]  # of the particles 0, 1, 0, 1
    row = next_row(history(rows, [3.0, 1.0, 2.0, 4.0]), number=4, n_particles=2, rng=Fixed())
    x, v, best = np.array([0.6, 0.45]), np.array([0.1, 0.05]), np.array([0.3, 0.8])
    np.testing.assert_allclose(row, x + CHI * (v + 1.025 * (x - x) + 1.025 * (best - x)))


def test_velocity_starts_at_zero() -> None:
    """The best particle stays where it is after one step, and is shaken because it must move."""
    rng = np.random.default_rng(0)
    row = next_row(history([[0.5], [0.7]], [0.0, 1.0]), number=2, n_particles=2, rng=rng)
    assert 0 < abs(row[0] - 0.5) < 0.5 / 15


def test_ring_hears_of_its_neighbors_only() -> None:
    rows, values = [[0.1], [0.3], [0.5], [0.7], [0.9]], [9.0, 2.0, 3.0, 0.0, 1.0]

    def step(topology: Topology) -> float:
        now = history(rows, values)
        row = next_row(now, number=5, n_particles=5, rng=Fixed(), topology=topology)
        return float(row[0] - 0.1) / (CHI * 1.025)

    assert step("ring") == pytest.approx(min(0.9 - 0.1, 0.5 / (CHI * 1.025)))
    assert step("global") == pytest.approx(0.7 - 0.1)


def test_lost_and_running_trials_are_skipped() -> None:
    full = history([[0.2], [0.5], [0.3], [0.4]], [2.0, 1.0, 4.0, 3.0], numbers=[0, 1, 2, 3])
    gap = history([[0.2], [0.5], [0.3], [0.4]], [2.0, 1.0, 4.0, 3.0], numbers=[0, 1, 6, 7])
    for number in (8, 10, 12):
        row = next_row(full, number=number, n_particles=2, rng=Fixed())
        other = next_row(gap, number=number, n_particles=2, rng=Fixed())
        np.testing.assert_array_equal(row, other)


def test_particle_without_a_position_starts_anywhere() -> None:
    row = next_row(history([[0.2, 0.3]], [0.0]), number=3, n_particles=2, rng=Fixed())
    assert np.isnan(row).all()


@pytest.mark.parametrize("value", [1.0, np.inf])
def test_nothing_attracts_where_all_is_equally_good(value: float) -> None:
    now = history([[0.2], [0.5], [0.3]], [value, value, value])
    assert np.isnan(next_row(now, number=4, n_particles=2, rng=Fixed())).all()


def test_choices_are_voted_on() -> None:
    """Particle 0 is at choice 0 and had it best; the neighbors' best ones are 0, 1 and 1."""
    now = history([[1 / 8], [3 / 8], [3 / 8]], [2.0, 0.0, 1.0], n_values=[4], ordered=[False])
    # Nothing else can be told apart from the first rows, so let all rows be free.
    free = lambda row: row + 2.0  # noqa: E731
    counts = np.zeros(4)
    for seed in range(2000):
        rng = np.random.default_rng(seed)
        row = next_row(now, number=3, n_particles=3, rng=rng, snap=free)
        counts[int(row[0] * 4)] += 1
    assert counts.sum() == 2000
    shares = counts / 2000
    # On average: 1 + 1.025 + 1.025 / 6 for choice 0, 1.025 * 5 / 6 for choice 1, and 0.1 each.
    assert shares[0] == pytest.approx(2.296 / 3.45, abs=0.06)
    assert shares[1] == pytest.approx(0.954 / 3.45, abs=0.06)
    assert 0 < shares[2] < 0.08
    assert 0 < shares[3] < 0.08


def test_never_repeats_a_row_of_a_small_space() -> None:
    n_values = np.array([3, 4])

    def snap(row: np.ndarray) -> np.ndarray:
        return np.asarray((np.floor(row * n_values) + 0.5) / n_values)

    rows = [[1 / 6, 1 / 8], [5 / 6, 7 / 8]]
    n_fresh = 0
    for number in range(2, 12):
        row = next_row(
            history(rows, [sum(r) for r in rows], n_values=[3, 4], ordered=[True, False]),
            number=number,
            n_particles=2,
            rng=np.random.default_rng(number),
            snap=snap,
        )
        if np.isnan(row).all():
            n_fresh += 1
            free = {(i, j) for i in range(3) for j in range(4)} - {
                (int(a * 3), int(b * 4)) for a, b in rows
            }
            row = (np.array(min(free)) + 0.5) / n_values
        rows.append(snap(row).tolist())
    assert np.unique(np.round(rows, 6), axis=0).shape == (12, 2)
    assert n_fresh <= 3


def test_missing_coordinates_come_from_the_best_that_has_them() -> None:
    rows = [[0.25, np.nan, np.nan], [0.75, 0.4, np.nan]]
    row = next_row(
        history(rows, [0.0, 1.0], n_values=[2, None, None], ordered=[False, True, True]),
        number=2,
        n_particles=2,
        rng=np.random.default_rng(0),
    )
    assert abs(row[1] - 0.4) < 0.5
    assert np.isnan(row[2])


@pytest.mark.parametrize("topology", ["global", "ring"])
def test_converges_on_a_sphere(topology: Topology) -> None:
    rng = np.random.default_rng(0)
    rows = rng.random((10, 4)).tolist()
    for number in range(10, 400):
        values = [float(((np.array(row) - 0.3) ** 2).sum()) for row in rows]
        row = next_row(
            history(rows, values), number=number, n_particles=10, rng=rng, topology=topology
        )
        assert ((row >= 0) & (row < 1)).all()
        rows.append(row.tolist())
    assert min(float(((np.array(row) - 0.3) ** 2).sum()) for row in rows) < 1e-3


def test_starts_anew_on_a_plateau() -> None:
    rows = [[0.4, 0.9], [0.3, 0.2], [0.5, 0.8], [0.2, 0.7]]  # of the particles 0, 1, 0, 1
    past = history(rows, [1.0, 0.5, 1.0, 4.0])
    rng = np.random.default_rng(0)
    assert np.isnan(next_row(past, number=4, n_particles=2, rng=rng)).all()
    assert not np.isnan(next_row(past, number=5, n_particles=2, rng=rng)).any()
