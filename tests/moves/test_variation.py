from __future__ import annotations

from collections.abc import Callable
import math

from hypothesis import given
from hypothesis import strategies as st
import numpy as np
from optuna.distributions import FloatDistribution
from optuna.distributions import IntDistribution
import pytest
from scipy import stats

from optuna_ext.moves.variation import mutate
from optuna_ext.moves.variation import Mutation
from optuna_ext.moves.variation import Scale
from optuna_ext.moves.variation import uniform_crossover
from optuna_ext.space import from_unit
from optuna_ext.space import to_unit


Numbers = FloatDistribution | IntDistribution
FACTOR = Mutation(factor=1.25)
MUTATIONS = [Mutation(), FACTOR, Mutation(smallest=1e-6, largest=1e-6), Mutation(1.0, 1.0)]
NUMBERS: list[Numbers] = [
    FloatDistribution(-2.0, 3.0),
    FloatDistribution(1e-6, 1e2, log=True),
    FloatDistribution(0.1, 0.9, step=0.1),
    IntDistribution(1, 2),
    IntDistribution(0, 9),
    IntDistribution(16, 256, step=16),
    IntDistribution(1, 2, log=True),
    IntDistribution(1, 1000, log=True),
]


def scale_of(distribution: Numbers) -> Scale:
    half_bin = (distribution.step or 0) / 2
    low, high = distribution.low - half_bin, distribution.high + half_bin
    return Scale(low, high, distribution.log, nonnegative=distribution.low >= 0)


def snap_of(distribution: Numbers) -> Callable[[float], float]:
    return lambda u: to_unit(distribution, from_unit(distribution, u))


def test_uniform_crossover_takes_each_coordinate_from_a_parent() -> None:
    rng = np.random.default_rng(0)
    parents = rng.random((3, 5))
    children = np.array([uniform_crossover(parents, rng) for _ in range(3000)])
    sources = (children[:, None, :] == parents[None]).astype(int)
    assert (sources.sum(axis=1) == 1).all()
    assert stats.chisquare(sources.sum(axis=0).ravel()).pvalue > 1e-3
    pairs = sources[:, 0, 0] * sources[:, 0, 1]  # columns choose independently
    assert pairs.mean() == pytest.approx(1 / 9, abs=0.02)


@pytest.mark.parametrize("distribution", NUMBERS, ids=str)
@pytest.mark.parametrize("factor", [0.5, 1.25])
def test_scale_multiplies_the_value(distribution: Numbers, factor: float) -> None:
    scale = scale_of(distribution)

    def value(u: float) -> float:
        if scale.log:
            return float(scale.low * (scale.high / scale.low) ** u)
        return scale.low + u * (scale.high - scale.low)

    for u in (0.0, 0.3, 0.9):
        assert value(scale.multiply(u, factor)) == pytest.approx(factor * value(u))
    x = from_unit(distribution, 0.3)
    assert value(to_unit(distribution, x)) == pytest.approx(x, rel=0.15)  # a bin's center


@pytest.mark.parametrize("distribution", NUMBERS, ids=str)
@given(u=st.floats(0, 1, exclude_max=True), seed=st.integers(0, 99), which=st.integers(0, 3))
def test_every_number_moves_and_stays_inside(
    distribution: Numbers, u: float, seed: int, which: int
) -> None:
    old = from_unit(distribution, u)
    v = MUTATIONS[which].number(
        to_unit(distribution, old),
        scale_of(distribution),
        snap_of(distribution),
        np.random.default_rng(seed),
    )
    assert 0 <= v < 1
    assert from_unit(distribution, v) != old


@pytest.mark.parametrize("distribution", [d for d in NUMBERS if d.step], ids=str)
def test_the_smallest_step_is_to_a_neighboring_value(distribution: Numbers) -> None:
    step = distribution.step or 0.0
    rng = np.random.default_rng(0)
    mutation = Mutation(smallest=1e-9, largest=1e-9)
    for u in np.linspace(0.001, 0.999, 40):
        old = from_unit(distribution, u)
        args = scale_of(distribution), snap_of(distribution), rng
        new = from_unit(distribution, mutation.number(to_unit(distribution, old), *args))
        assert abs(new - old) == pytest.approx(step)


def test_steps_have_every_length_alike_on_a_log_scale() -> None:
    rng = np.random.default_rng(1)
    mutation = Mutation(smallest=0.01, largest=0.4)
    scale = scale_of(FloatDistribution(0.0, 1.0))
    steps = np.array([mutation.number(0.5, scale, lambda u: u, rng) - 0.5 for _ in range(2000)])
    uniform = stats.uniform(math.log(0.01), math.log(0.4) - math.log(0.01))
    assert stats.kstest(np.log(np.abs(steps)), uniform.cdf).pvalue > 1e-3
    assert stats.binomtest(int((steps > 0).sum()), len(steps)).pvalue > 1e-3


@pytest.mark.parametrize(
    "distribution",
    [FloatDistribution(1e-30, 1e30, log=True), FloatDistribution(1e-3, 1e9)],
    ids=["log", "linear"],
)
def test_factors_are_reciprocal_so_that_a_walk_does_not_drift(distribution: Numbers) -> None:
    rng = np.random.default_rng(2)
    scale, snap = scale_of(distribution), snap_of(distribution)
    n_walks, n_steps, start = 100, 100, 1e4
    drift = []
    for _ in range(n_walks):
        u = to_unit(distribution, start)
        for _ in range(n_steps):
            u = FACTOR.number(u, scale, snap, rng)
        drift.append(math.log(from_unit(distribution, u) / start))
    sd = math.log(1.25) * math.sqrt(n_steps)
    # The factors 0.8 and 1.2 would give n_steps * log(0.96) / 2 = -2, nine standard errors.
    assert np.mean(drift) == pytest.approx(0.0, abs=4 * sd / math.sqrt(n_walks))
    assert np.std(drift) == pytest.approx(sd, rel=0.25)


def test_factors_multiply_or_divide() -> None:
    distribution = FloatDistribution(1.0, 100.0)
    scale, snap = scale_of(distribution), snap_of(distribution)
    rng = np.random.default_rng(3)
    u = to_unit(distribution, 20.0)
    values = {
        round(from_unit(distribution, FACTOR.number(u, scale, snap, rng)), 6) for _ in "x" * 40
    }
    assert values == {16.0, 25.0}


def test_factors_leave_ranges_below_zero_to_steps() -> None:
    distribution = FloatDistribution(-1.0, 1.0)
    rng = np.random.default_rng(4)
    args = scale_of(distribution), snap_of(distribution), rng
    values = {FACTOR.number(to_unit(distribution, 0.0), *args) for _ in range(20)}
    assert len(values) == 20


def test_choices_are_resampled_uniformly_among_the_others() -> None:
    rng = np.random.default_rng(5)
    bins = [int(5 * Mutation().choice(0.5, 5, rng)) for _ in range(4000)]
    counts = np.bincount(bins, minlength=5)
    assert counts[2] == 0
    assert stats.chisquare(np.delete(counts, 2)).pvalue > 1e-3


def test_choices_move_to_neighbors_round_the_ends() -> None:
    rng = np.random.default_rng(6)
    mutation = Mutation(choices="neighbor")
    assert {mutation.choice(0.1, 5, rng) for _ in range(30)} == {0.3, 0.9}
    assert {mutation.choice(0.75, 2, rng) for _ in range(9)} == {0.25}


def test_mutation_changes_each_coordinate_with_the_probability() -> None:
    row = np.array([0.5, 0.125, 0.75, np.nan])

    def mutated(prob: float, seed: int) -> np.ndarray:
        return mutate(
            row,
            prob,
            scales=(scale_of(NUMBERS[0]), None, scale_of(IntDistribution(1, 2)), None),
            n_values=(None, 4, 2, 3),
            snap=lambda c, u: u if c == 0 else (math.floor(2 * u) + 0.5) / 2,
            mutation=Mutation(),
            rng=np.random.default_rng(seed),
        )

    assert np.array_equal(mutated(0.0, 0), row, equal_nan=True)
    assert (mutated(1.0, 0) != row).all()
    assert np.isnan(mutated(1.0, 0)[3])
    changed = np.array([(mutated(0.3, seed) != row)[:3] for seed in range(3000)])
    assert changed.mean(axis=0) == pytest.approx([0.3, 0.3, 0.3], abs=0.04)
    assert changed[:, :2].all(axis=1).mean() == pytest.approx(0.09, abs=0.03)


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"smallest": 0.0}, "0 < smallest <= largest <= 1, but got 0.0 and 0.5"),
        ({"smallest": 0.6}, "0 < smallest <= largest <= 1, but got 0.6 and 0.5"),
        ({"largest": 2.0}, "0 < smallest <= largest <= 1, but got 0.03125 and 2.0"),
        ({"factor": 0.8}, "`factor` must be above 1 and finite, but got 0.8"),
        ({"choices": "swap"}, "`choices` must be 'resample' or 'neighbor', but got 'swap'"),
    ],
)
def test_bad_arguments(kwargs: dict[str, float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Mutation(**kwargs)  # type: ignore[arg-type]
