from __future__ import annotations

import itertools
import math

from hypothesis import given
from hypothesis import strategies as st
import numpy as np
import pytest
from scipy import stats

from optuna_ext.moves.population import donor
from optuna_ext.moves.population import Exploit
from optuna_ext.moves.population import EXPLOITS
from optuna_ext.moves.population import explore
from optuna_ext.moves.population import PERTURB
from optuna_ext.moves.population import Result
from optuna_ext.moves.population import Tournament
from optuna_ext.moves.population import Truncation
from optuna_ext.moves.population import TTest
from optuna_ext.moves.variation import Scale


VALUES = st.one_of(st.integers(-2, 2).map(float), st.just(math.inf), st.just(math.nan))
every = pytest.mark.parametrize("name", sorted(EXPLOITS))


def results_of(values: list[float]) -> list[Result | None]:
    noise = np.random.default_rng(0).normal(scale=0.1, size=(len(values), 10))
    return [Result(value, tuple((value + noise[i]).tolist())) for i, value in enumerate(values)]


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def test_truncation_replaces_the_worst_by_the_best() -> None:
    values = [3.0, 9.0, 1.0, 5.0, 8.0, 2.0, 7.0, 4.0, 6.0, 0.0]
    results = results_of(values)
    exploit = Truncation(0.3)
    sources = {
        member: {exploit.source(member, results, rng(seed)) for seed in range(60)}
        for member in range(10)
    }
    for member, value in enumerate(values):
        expected = {9, 2, 5} if value >= 7 else {member}
        assert sources[member] == expected


@pytest.mark.parametrize(("fraction", "n"), [(0.2, 3), (0.5, 8), (0.01, 1), (1 / 15, 1)])
def test_truncation_rounds_up(fraction: float, n: int) -> None:
    results = results_of([float(i) for i in range(15)])
    sources = [Truncation(fraction).source(i, results, rng()) for i in range(15)]
    assert sum(source != i for i, source in enumerate(sources)) == n


def test_truncation_draws_the_best_uniformly() -> None:
    results = results_of([float(i) for i in range(12)])
    drawn = [Truncation(0.25).source(11, results, rng(seed)) for seed in range(3000)]
    assert stats.chisquare(np.bincount(drawn)).pvalue > 1e-3  # type: ignore[arg-type]


@every
def test_nobody_is_replaced_by_an_equal(name: str) -> None:
    results = [Result(1.0, (1.0,) * 10)] * 6
    for member, seed in itertools.product(range(6), range(20)):
        assert EXPLOITS[name]().source(member, results, rng(seed)) == member


@pytest.mark.parametrize("exploit", [Tournament(), TTest()], ids=str)
def test_the_opponent_is_any_other_member(exploit: Exploit) -> None:
    results = results_of([0.0, 1.0, 2.0, 3.0, 10.0])
    drawn = [exploit.source(4, results, rng(seed)) for seed in range(500)]
    counts = np.bincount(drawn, minlength=5)  # type: ignore[arg-type]
    assert counts[4] == 0
    assert stats.chisquare(counts[:4]).pvalue > 1e-3
    assert {exploit.source(0, results, rng(seed)) for seed in range(50)} == {0}


def test_t_test_is_welchs() -> None:
    random = rng(1)
    decisions = []
    for _ in range(200):
        own = tuple(random.normal(0.0, 1.0, 12))
        other = tuple(random.normal(-0.8, 2.0, 7))
        p = stats.ttest_ind(other, own[:10], equal_var=False, alternative="less").pvalue
        source = TTest(alpha=0.1).source(0, [Result(0.0, own), Result(0.0, other)], rng())
        assert source == int(p < 0.1)
        decisions.append(source)
    assert 20 < sum(decisions) < 180


@pytest.mark.parametrize(
    ("own", "other", "source"),
    [
        ((1.0, 1.0), (0.0, 0.0), 1),  # without any noise
        ((0.0, 0.0), (1.0, 1.0), 0),
        ((1.0,), (0.0,), 0),  # nothing is known of the noise
        ((), (), 0),
        ((1.0, 1.0, 1.1), (0.0, math.nan, 0.1), 0),
    ],
)
def test_t_test_of_little(own: tuple[float, ...], other: tuple[float, ...], source: int) -> None:
    assert TTest().source(0, [Result(1.0, own), Result(0.0, other)], rng()) == source


@every
@given(values=st.lists(VALUES, min_size=2, max_size=9), seed=st.integers(0, 99))
def test_the_lost_take_over_one_of_the_best_and_are_never_copied(
    name: str, values: list[float], seed: int
) -> None:
    exploit = EXPLOITS[name]()
    results = results_of(values)
    finite = sorted(value for value in values if math.isfinite(value))
    for member, value in enumerate(values):
        source = exploit.source(member, results, rng(seed))
        if source is None:
            assert not finite
            continue
        assert math.isfinite(values[source])
        if math.isfinite(value):
            assert source == member or values[source] < value or name == "t-test"
        else:
            n = min(math.ceil(0.2 * len(values)), len(finite))
            assert values[source] <= finite[n - 1]


@every
@given(
    values=st.lists(VALUES, min_size=2, max_size=8),
    hidden=st.sets(st.integers(0, 7)),
    seed=st.integers(0, 99),
)
def test_what_is_certain_does_not_change(
    name: str, values: list[float], hidden: set[int], seed: int
) -> None:
    exploit = EXPLOITS[name]()
    results = results_of(values)
    partial = [None if i in hidden else result for i, result in enumerate(results)]
    for member in range(len(values)):
        early = exploit.source(member, partial, rng(seed))
        if early is not None:
            assert early == exploit.source(member, results, rng(seed))


def test_truncation_lets_the_middle_go_on_early() -> None:
    results = results_of([0.0, 1.0, 2.0, 3.0, 4.0])
    partial = [*results[:2], None, results[3], None]
    assert Truncation(0.2).source(1, partial, rng()) == 1
    assert Truncation(0.2).source(3, partial, rng()) is None  # may be the last
    assert Truncation(0.2).source(2, partial, rng()) is None


def test_a_donor_is_one_of_the_best_known() -> None:
    results = results_of([math.nan, 5.0, 1.0, 2.0, 3.0, 4.0, 6.0])
    assert {donor([None, *results], rng(seed)) for seed in range(50)} == {3, 4}
    assert donor([None, None], rng()) is None
    assert donor([Result(math.inf), None], rng()) is None


SCALES = (
    Scale(low=1e-4, high=1.0, log=True, nonnegative=True),
    Scale(low=-0.9, high=0.9, log=False, nonnegative=False),
    Scale(low=0.5, high=4.5, log=False, nonnegative=True),  # 1, 2, 3, 4
    None,
)


def snap(column: int, u: float) -> float:
    n = (None, None, 4, 3)[column]
    return u if n is None else (math.floor(u * n) + 0.5) / n


@given(seed=st.integers(0, 10_000), start=st.floats(0, 1, exclude_max=True))
def test_a_perturbation_moves_numbers_and_leaves_choices(seed: int, start: float) -> None:
    row = np.array([start, start, snap(2, start), snap(3, start)])
    new = explore(
        row, resample_probability=0.0, scales=SCALES, snap=snap, mutation=PERTURB, rng=rng(seed)
    )
    assert (new[:3] != row[:3]).all()
    assert new[3] == row[3]
    assert ((new >= 0) & (new < 1)).all()
    step = abs(new[0] - start) * math.log(1e4)
    assert step == pytest.approx(math.log(2.0))  # of the value, on its own scale
    assert abs(new[1] - start) <= 0.25 + 1e-9
    old, value = (1 + math.floor(4 * u) for u in (row[2], new[2]))
    assert value in {1: (2,), 2: (1, 4), 3: (1, 2), 4: (2,)}[old]  # double or half, in range


@given(seed=st.integers(0, 10_000), start=st.floats(0, 1, exclude_max=True))
def test_a_number_is_doubled_or_halved_unless_it_is_about_zero(seed: int, start: float) -> None:
    new = explore(
        np.array([start]),
        resample_probability=0.0,
        scales=(Scale(low=0.0, high=0.9, log=False, nonnegative=True),),
        snap=lambda _, u: u,
        mutation=PERTURB,
        rng=rng(seed),
    )[0]
    if start >= 1 / 32:
        assert new == pytest.approx(start / 2) or new == pytest.approx(2 * start)
    else:  # zero could never be left by factors
        assert 1 / 32 <= abs(new - start) + 1e-9 <= 0.25 + 1e-8


def test_perturbations_do_not_drift() -> None:
    random = rng(0)
    walks = np.full((200, 1), 0.5)
    for walk in walks:
        for _ in range(100):
            walk[:] = explore(
                walk,
                resample_probability=0.0,
                scales=SCALES[:1],
                snap=snap,
                mutation=PERTURB,
                rng=random,
            )
    assert stats.ttest_1samp(walks[:, 0], 0.5).pvalue > 1e-3


def test_resampled_coordinates_are_uniform() -> None:
    random = rng(0)
    row = np.array([0.1, 0.1, 0.125, 0.5])
    rows = np.array(
        [
            explore(
                row,
                resample_probability=1.0,
                scales=SCALES,
                snap=snap,
                mutation=PERTURB,
                rng=random,
            )
            for _ in range(2000)
        ]
    )
    assert stats.kstest(rows[:, 0], "uniform").pvalue > 1e-3
    assert stats.chisquare(np.unique(rows[:, 3], return_counts=True)[1]).pvalue > 1e-3


@pytest.mark.parametrize("p", [0.0, 0.25, 1.0])
def test_each_coordinate_is_resampled_with_its_probability(p: float) -> None:
    random = rng(3)
    row = np.full(50, 0.5)
    count = 0
    for _ in range(100):
        new = explore(
            row,
            resample_probability=p,
            scales=(None,) * 50,
            snap=lambda _, u: u,
            mutation=PERTURB,
            rng=random,
        )
        count += int((new != row).sum())
    assert count / 5000 == pytest.approx(p, abs=0.03)


@pytest.mark.parametrize("fraction", [0.0, 0.51, -1.0, math.nan])
def test_wrong_fraction(fraction: float) -> None:
    with pytest.raises(ValueError, match=r"`fraction` must be in \(0, 0.5\]"):
        Truncation(fraction)


def test_wrong_t_test() -> None:
    with pytest.raises(ValueError, match="`n_evaluations` must be at least 2, but got 1"):
        TTest(n_evaluations=1)
    with pytest.raises(ValueError, match=r"`alpha` must be in \(0, 1\), but got 1"):
        TTest(alpha=1)
