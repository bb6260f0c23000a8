"""What is special about designs of declared size."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
import math
import threading
from typing import Any

import numpy as np
import optuna
from optuna.distributions import BaseDistribution
from optuna.distributions import FloatDistribution
from optuna.distributions import IntDistribution
from optuna.trial import FrozenTrial
from optuna.trial import TrialState
import pytest

from optuna_ext import HammersleySampler
from optuna_ext import LatinHypercubeSampler
from optuna_ext import PoissonDiskSampler
from optuna_ext.points import hammersley
from optuna_ext.points import min_distance
from optuna_ext.points import poisson_disk
from optuna_ext.recovery import retry
from optuna_ext.samplers import _host
from optuna_ext.samplers._sets import SetSampler


N = 25
SQUARE: dict[str, BaseDistribution] = {"x": FloatDistribution(0, 1), "y": FloatDistribution(0, 1)}


def objective(trial: optuna.Trial) -> float:
    return trial.suggest_float("x", 0, 1) + trial.suggest_float("y", 0, 1)


def points(study: optuna.Study) -> np.ndarray:
    return np.array([[trial.params["x"], trial.params["y"]] for trial in study.trials])


def assert_one_per_stratum(rows: np.ndarray) -> None:
    n, d = rows.shape
    strata = np.floor(rows * n).astype(int)
    for column in range(d):
        assert sorted(strata[:, column]) == list(range(n))


@pytest.mark.parametrize("kind", ["plain", "centered", "random-cd", "strength-2"])
def test_latin_hypercube_has_one_trial_per_stratum(kind: str) -> None:
    sampler = LatinHypercubeSampler(n_points=N, kind=kind, search_space=SQUARE)  # type: ignore[arg-type]
    study = optuna.create_study(sampler=sampler)
    study.optimize(objective, n_trials=2 * N, n_jobs=3)
    assert_one_per_stratum(points(study)[:N])
    assert_one_per_stratum(points(study)[N:])
    assert not set(points(study)[:N, 0]) & set(points(study)[N:, 0]) or kind == "centered"


def test_strength_2_balances_every_pair() -> None:
    sampler = LatinHypercubeSampler(n_points=N, kind="strength-2")
    study = optuna.create_study(sampler=sampler)
    study.optimize(
        lambda trial: sum(trial.suggest_float(f"x{i}", 0, 1) for i in range(6)), n_trials=N
    )
    cells = np.floor(5 * np.array([list(t.params.values()) for t in study.trials])).astype(int)
    for i in range(6):
        for j in range(i):
            assert set(Counter(zip(cells[:, i], cells[:, j], strict=True)).values()) == {1}


def test_parameters_beyond_a_bounded_design_are_stratified() -> None:
    """Strength 2 ends at p + 1 columns, random-cd and Poisson disk at the declared ones."""
    samplers: list[SetSampler] = [
        LatinHypercubeSampler(n_points=9, kind="strength-2"),
        LatinHypercubeSampler(n_points=9, kind="random-cd", search_space=SQUARE),
        PoissonDiskSampler(n_points=9, search_space=SQUARE),
    ]
    for sampler in samplers:
        study = optuna.create_study(sampler=sampler)
        study.optimize(
            lambda trial: (
                objective(trial) + sum(trial.suggest_float(f"z{i}", 0, 1) for i in range(4))
            ),
            n_trials=9,
        )
        rows = np.array([list(trial.params.values()) for trial in study.trials])
        assert_one_per_stratum(rows[:, 4:])


def test_hammersley_is_the_set() -> None:
    study = optuna.create_study(sampler=HammersleySampler(n_points=N, seed=3))
    study.optimize(objective, n_trials=N)
    assert np.array_equal(points(study), hammersley(N, 2, seed=3))


@pytest.mark.parametrize("search_space", [None, SQUARE])
def test_poisson_disk_keeps_its_distance(
    search_space: dict[str, BaseDistribution] | None,
) -> None:
    """Without a declared space, the first trial tells the number of dimensions to the others."""
    sampler = PoissonDiskSampler(n_points=N, search_space=search_space, seed=3)
    study = optuna.create_study(sampler=sampler)
    study.optimize(objective, n_trials=2 * N)
    expected = poisson_disk(2, n=N, seed=3)
    assert np.array_equal(points(study)[:N], expected)
    distance = min_distance(expected, toroidal=True)
    assert min_distance(points(study)[N:], toroidal=True) > 0.8 * distance


def test_poisson_disk_of_a_radius() -> None:
    sampler = PoissonDiskSampler(radius=0.15, seed=3)
    study = optuna.create_study(sampler=sampler)
    assert not sampler.is_exhausted(study)
    study.optimize(objective, n_trials=1)
    while not sampler.is_exhausted(study):
        study.optimize(objective, n_trials=1)
    assert np.array_equal(points(study), poisson_disk(2, radius=0.15, seed=3))
    assert min_distance(points(study)) >= 0.15
    study.optimize(objective, n_trials=3)  # ends softly


def test_poisson_disk_of_a_conditional_space() -> None:
    def conditional(trial: optuna.Trial) -> float:
        x = trial.suggest_float("x", 0, 1)
        return x + (trial.suggest_float("y", 0, 1) if x > 0.5 else 0)

    study = optuna.create_study(sampler=PoissonDiskSampler(n_points=N, seed=3))
    study.optimize(conditional, n_trials=N)
    assert len({trial.params["x"] for trial in study.trials}) == N


MAKERS: dict[str, Callable[..., SetSampler]] = {
    "hammersley": lambda **kwargs: HammersleySampler(n_points=N, seed=3, **kwargs),
    "lhs": lambda **kwargs: LatinHypercubeSampler(n_points=N, seed=3, **kwargs),
    "poisson": lambda **kwargs: PoissonDiskSampler(
        n_points=N, seed=3, search_space=SQUARE, **kwargs
    ),
}


def failing_at(*numbers: int) -> optuna.study.study.ObjectiveFuncType:
    def run(trial: optuna.Trial) -> float:
        value = objective(trial)
        if trial.number in numbers:
            raise RuntimeError("no luck")
        return value

    return run


@pytest.mark.parametrize("name", MAKERS)
def test_failed_points_are_asked_for_again(name: str) -> None:
    whole = optuna.create_study(sampler=MAKERS[name]())
    whole.optimize(objective, n_trials=N)

    sampler = MAKERS[name](retry_failed=True)
    study = optuna.create_study(sampler=sampler)
    study.enqueue_trial({"x": 0.5, "y": 0.5})  # takes the number, not the point, of row 0
    # Row 7 fails, its repetition as trial N + 1 too.
    study.optimize(failing_at(7, 12, N + 1), n_trials=N + 3, catch=RuntimeError)
    assert not sampler.is_exhausted(study)
    study.optimize(failing_at(), n_trials=1)
    assert sampler.is_exhausted(study)

    retried = [trial.user_attrs.get("design_row") for trial in study.trials[N:]]
    assert retried == [0, 7, 12, 7] or retried == [0, 7, 7, 12]
    good = [t for t in study.trials[1:] if t.state == TrialState.COMPLETE]
    assert sorted(t.params["x"] for t in good) == sorted(t.params["x"] for t in whole.trials)

    study.optimize(objective, n_trials=2)  # a further set
    assert all("design_row" not in trial.user_attrs for trial in study.trials[-2:])


def test_failed_points_are_left_without_retry() -> None:
    sampler = LatinHypercubeSampler(n_points=N)
    study = optuna.create_study(sampler=sampler)
    study.optimize(failing_at(3), n_trials=N - 1, catch=RuntimeError)
    assert not sampler.is_exhausted(study)
    study.optimize(failing_at(3), n_trials=1, catch=RuntimeError)
    assert sampler.is_exhausted(study)


@pytest.mark.parametrize("retry_failed", [False, True])
@pytest.mark.parametrize("name", MAKERS)
def test_a_repeated_trial_costs_the_design_no_point(name: str, retry_failed: bool) -> None:
    """It keeps its row under another number, whose own row a later trial takes."""
    whole = optuna.create_study(sampler=MAKERS[name]())
    whole.optimize(objective, n_trials=N)

    sampler = MAKERS[name](retry_failed=retry_failed)
    study = optuna.create_study(sampler=sampler)
    for n_more in (2, 0, 6, 14):  # at once twice: the repetition dies, too; last beyond the set
        study.optimize(objective, n_trials=n_more)
        trial = study.ask()
        trial.suggest_float("x", 0, 1)
        study.tell(trial, state=TrialState.FAIL)
        retry(study, study.trials[trial.number])
    assert trial.number == N
    assert not sampler.is_exhausted(study)
    study.optimize(objective, n_trials=N - 1 - len(completed(study)))
    assert not sampler.is_exhausted(study)
    study.optimize(objective, n_trials=1)
    assert sampler.is_exhausted(study)
    assert sorted(map(point, completed(study))) == sorted(map(point, whole.trials))
    study.optimize(objective, n_trials=2)  # a further set
    assert len({point(trial) for trial in completed(study)}) == N + 2


def completed(study: optuna.Study) -> list[FrozenTrial]:
    return study.get_trials(states=[TrialState.COMPLETE])


def point(trial: FrozenTrial) -> tuple[float, ...]:
    return tuple(trial.params[name] for name in ("x", "y"))


def test_workers_retry_different_points() -> None:
    sampler = HammersleySampler(n_points=N, retry_failed=True)
    study = optuna.create_study(sampler=sampler)
    study.optimize(failing_at(2, 5, 9, 11), n_trials=N, catch=RuntimeError)
    barrier = threading.Barrier(4)

    def ask(_: int) -> int:
        barrier.wait()
        trial = study.ask(SQUARE)
        return int(trial.user_attrs["design_row"] if trial.user_attrs else -1)

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(ask, range(4)))
    assert {t.user_attrs["design_row"] for t in study.trials[N:]} == {2, 5, 9, 11}


def test_another_process_goes_on_with_a_retried_trial() -> None:
    """The row is in the storage, not in the sampler that chose it."""
    sampler = HammersleySampler(n_points=N, seed=3, retry_failed=True)
    study = optuna.create_study(sampler=sampler)
    study.optimize(failing_at(2), n_trials=N, catch=RuntimeError)
    asked = study.ask()
    study.sampler = HammersleySampler(n_points=N, seed=3, retry_failed=True)
    trial = optuna.Trial(study, asked._trial_id)
    objective(trial)
    assert trial.user_attrs["design_row"] == 2
    assert trial.params == study.trials[2].params


def test_complete_sets_are_not_looked_at_again(monkeypatch: pytest.MonkeyPatch) -> None:
    study = optuna.create_study(sampler=LatinHypercubeSampler(n_points=4, retry_failed=True))
    study.optimize(objective, n_trials=5)
    monkeypatch.setattr(_host, "all_trials", None)
    study.optimize(objective, n_trials=2)
    assert len(study.trials) == 7


@pytest.mark.parametrize("kwargs", [{"n_points": N}, {"radius": 0.15}])
def test_poisson_disk_repeats_no_point_when_the_first_trials_fail(kwargs: dict[str, Any]) -> None:
    def run(trial: optuna.Trial) -> float:
        if trial.number < 2:
            raise RuntimeError("before it has suggested anything")
        return objective(trial)

    for seed in range(10):
        study = optuna.create_study(sampler=PoissonDiskSampler(seed=seed, **kwargs))
        study.optimize(run, n_trials=N, catch=RuntimeError)
        points = [tuple(trial.params.values()) for trial in study.trials[2:]]
        assert len(set(points)) == len(points)


def test_exhausted_in_a_callback_stops_the_study() -> None:
    sampler = LatinHypercubeSampler(n_points=6)

    def stop_when_exhausted(study: optuna.Study, trial: optuna.trial.FrozenTrial) -> None:
        del trial
        if sampler.is_exhausted(study):
            study.stop()

    study = optuna.create_study(sampler=sampler)
    study.optimize(objective, n_trials=100, callbacks=[stop_when_exhausted])
    assert len(study.trials) == 6


def test_integers_and_categories_are_balanced() -> None:
    """24 points in 4 and 3 bins: exactly 6 and 8 in each."""
    study = optuna.create_study(sampler=LatinHypercubeSampler(n_points=24))
    study.optimize(
        lambda trial: trial.suggest_int("k", 3, 6) + len(trial.suggest_categorical("c", "abc")),
        n_trials=24,
    )
    assert Counter(t.params["k"] for t in study.trials) == {3: 6, 4: 6, 5: 6, 6: 6}
    assert Counter(t.params["c"] for t in study.trials) == {"a": 8, "b": 8, "c": 8}


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: LatinHypercubeSampler(n_points=0), "`n_points` must be at least 1, but got 0"),
        (lambda: LatinHypercubeSampler(n_points=24, kind="strength-2"), "square of a prime"),
        (lambda: LatinHypercubeSampler(n_points=5, kind="best"), "^`kind` must be one of"),  # type: ignore[arg-type]
        (lambda: LatinHypercubeSampler(n_points=5, kind="random-cd"), "give `search_space`"),
        (lambda: PoissonDiskSampler(), "exactly one of `n_points` and `radius`"),
        (lambda: PoissonDiskSampler(n_points=3, radius=0.1), "exactly one of"),
        (lambda: PoissonDiskSampler(radius=0.0), "`radius`"),
        (lambda: PoissonDiskSampler(radius=math.nan), "`radius`"),
        (lambda: PoissonDiskSampler(radius=1e-9, search_space=SQUARE), "more than 10,000 rows"),
        (lambda: PoissonDiskSampler(n_points=10**6), "n_points=1000000 .* at most 10000"),
        (
            lambda: LatinHypercubeSampler(
                n_points=4,
                kind="strength-2",
                search_space={f"x{i}": IntDistribution(0, 9) for i in range(4)},
            ),
            "at most 3",
        ),
    ],
)
def test_bad_arguments(call: object, message: str) -> None:
    assert callable(call)
    with pytest.raises(ValueError, match=message):
        call()


def test_bad_types() -> None:
    with pytest.raises(TypeError, match="`radius` must be a number, but got 'a'"):
        PoissonDiskSampler(radius="a")  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="`n_points` must be an integer, but got True"):
        HammersleySampler(n_points=True)
    with pytest.raises(TypeError, match="must map names to distributions, but got"):
        LatinHypercubeSampler(n_points=4, search_space=["x"])  # type: ignore[arg-type]
