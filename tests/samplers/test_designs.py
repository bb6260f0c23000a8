"""What every design sampler promises, beyond Optuna's conformance suite."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
import itertools
from multiprocessing.context import ForkServerContext
from pathlib import Path
import pickle
import subprocess
import sys
from typing import Any

import optuna
from optuna.distributions import CategoricalDistribution
from optuna.distributions import FloatDistribution
from optuna.distributions import IntDistribution
from optuna.samplers import BaseSampler
from optuna.trial import TrialState
import pytest

from optuna_ext import HaltonSampler
from optuna_ext import HammersleySampler
from optuna_ext import LatinHypercubeSampler
from optuna_ext import PoissonDiskSampler
from optuna_ext import SobolSampler
from optuna_ext import sqlite
from optuna_ext.points import sobol


N = 24
SPACE = {
    "lr": FloatDistribution(1e-5, 1e-1, log=True),
    "depth": IntDistribution(1, 6),
    "act": CategoricalDistribution(["relu", "tanh", "gelu"]),
}
Params = list[dict[str, Any]]
Make = Callable[..., BaseSampler]
MAKERS: dict[str, Make] = {
    "sobol": SobolSampler,
    "halton": HaltonSampler,
    "hammersley": lambda **kwargs: HammersleySampler(n_points=N, **kwargs),
    "lhs": lambda **kwargs: LatinHypercubeSampler(n_points=N, **kwargs),
    "poisson": lambda **kwargs: PoissonDiskSampler(n_points=N, **kwargs),
}


@pytest.fixture(params=MAKERS)
def make(request: pytest.FixtureRequest) -> Make:
    return MAKERS[request.param]


def objective(trial: optuna.Trial) -> float:
    lr = trial.suggest_float("lr", 1e-5, 1e-1, log=True)
    depth = trial.suggest_int("depth", 1, 6)
    act = trial.suggest_categorical("act", ["relu", "tanh", "gelu"])
    return lr * depth + len(act)


def conditional(trial: optuna.Trial) -> float:
    n_layers = trial.suggest_int("n_layers", 1, 3)
    return sum(trial.suggest_float(f"width_{i}", 0, 1) for i in range(n_layers))


def run(sampler: BaseSampler, n_trials: int = N, **kwargs: Any) -> Params:
    study = optuna.create_study(study_name="s", sampler=sampler, **kwargs)
    study.optimize(objective, n_trials=n_trials)
    return [trial.params for trial in study.trials]


def test_values_of_the_objective_do_not_matter(make: Make) -> None:
    expected = run(make(seed=1))
    assert run(make(seed=1), direction="maximize") == expected

    def troubled(trial: optuna.Trial) -> float:
        value = objective(trial)
        if trial.number % 3 == 0:
            raise optuna.TrialPruned
        if trial.number % 5 == 1:
            raise RuntimeError("this trial fails")
        return float("nan") if trial.number % 7 == 2 else value

    study = optuna.create_study(study_name="s", sampler=make(seed=1))
    study.optimize(troubled, n_trials=N, catch=RuntimeError)
    assert [trial.params for trial in study.trials] == expected


def test_points_are_all_different_and_depend_on_the_seed(make: Make) -> None:
    params = run(make(seed=1))
    assert len({p["lr"] for p in params}) == N
    assert run(make(seed=2)) != params


def test_without_a_seed_the_name_of_the_study_decides(make: Make) -> None:
    assert run(make()) == run(make())
    other = optuna.create_study(study_name="other", sampler=make())
    other.optimize(objective, n_trials=3)
    assert [trial.params for trial in other.trials] != run(make())[:3]


def test_search_space_is_what_define_by_run_finds(make: Make) -> None:
    assert run(make(seed=3, search_space=SPACE)) == run(make(seed=3))


def test_resume_equals_uninterrupted(make: Make, tmp_path: Path) -> None:
    expected = run(make(seed=1), n_trials=N + 4)
    for n_trials in (1, 6, N - 3):
        storage = sqlite(tmp_path / "study.db")
        study = optuna.create_study(
            study_name="s", sampler=make(seed=1), storage=storage, load_if_exists=True
        )
        study.optimize(objective, n_trials=n_trials)
    assert [trial.params for trial in study.trials] == expected


def test_resume_in_a_new_process(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path}/study.db"
    script = f"""
import optuna, optuna_ext
study = optuna.create_study(
    study_name="s", storage={url!r}, sampler=optuna_ext.SobolSampler(), load_if_exists=True
)
study.optimize(
    lambda trial: trial.suggest_float("x", 0, 1) + trial.suggest_int("k", 1, 9), n_trials=4
)
"""
    for _ in range(2):
        subprocess.run([sys.executable, "-c", script], check=True, capture_output=True)
    study = optuna.create_study(study_name="s", sampler=SobolSampler())
    study.optimize(
        lambda trial: trial.suggest_float("x", 0, 1) + trial.suggest_int("k", 1, 9), n_trials=8
    )
    resumed = optuna.load_study(study_name="s", storage=url)
    assert [t.params for t in resumed.trials] == [t.params for t in study.trials]


def _work(url: str, name: str, barrier: Any) -> None:
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    barrier.wait()
    sampler = MAKERS[name](seed=1) if name != "lhs" else LatinHypercubeSampler(n_points=64)
    study = optuna.load_study(study_name="s", storage=sqlite(url), sampler=sampler)
    study.optimize(objective, n_trials=16)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["sobol", "lhs"])
def test_four_processes_share_one_design(
    name: str, tmp_path: Path, processes: ForkServerContext
) -> None:
    path = str(tmp_path / "study.db")
    optuna.create_study(study_name="s", storage=sqlite(path))
    barrier = processes.Barrier(4)
    workers = [processes.Process(target=_work, args=(path, name, barrier)) for _ in range(4)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
        assert worker.exitcode == 0

    trials = optuna.load_study(study_name="s", storage=sqlite(path)).trials
    assert [t.number for t in trials] == list(range(64))
    assert all(t.state == TrialState.COMPLETE for t in trials)
    alone = SobolSampler(seed=1) if name == "sobol" else LatinHypercubeSampler(n_points=64)
    assert [t.params for t in trials] == run(alone, 64)


def test_threads_share_one_design(make: Make) -> None:
    study = optuna.create_study(study_name="s", sampler=make(seed=1, search_space=SPACE))
    study.optimize(objective, n_trials=N, n_jobs=4)
    assert [trial.params for trial in study.trials] == run(make(seed=1))


def test_pickled_sampler_continues(make: Make) -> None:
    study = optuna.create_study(study_name="s", sampler=make(seed=1))
    study.optimize(objective, n_trials=5)
    study.sampler = pickle.loads(pickle.dumps(study.sampler))
    study.optimize(objective, n_trials=5)
    assert [trial.params for trial in study.trials] == run(make(seed=1), 10)


def test_sampler_may_serve_several_studies(make: Make) -> None:
    sampler = make(seed=1)
    assert run(sampler, 5) == run(sampler, 5) == run(make(seed=1), 5)


def test_hyperband_hides_no_column(make: Make) -> None:
    pruner = optuna.pruners.HyperbandPruner(min_resource=1, max_resource=9)

    def reporting(trial: optuna.Trial) -> float:
        value = objective(trial)
        for step in range(9):
            trial.report(value, step)
            if trial.should_prune():
                raise optuna.TrialPruned
        return value

    study = optuna.create_study(study_name="s", sampler=make(seed=1), pruner=pruner)
    study.optimize(reporting, n_trials=N)
    assert [trial.params for trial in study.trials] == run(make(seed=1))


@pytest.mark.filterwarnings("ignore::optuna.exceptions.ExperimentalWarning")
def test_partially_fixed_parameters_disturb_nobody(make: Make) -> None:
    sampler = optuna.samplers.PartialFixedSampler({"depth": 2}, make(seed=1))
    expected = [{**params, "depth": 2} for params in run(make(seed=1))]
    assert run(sampler) == expected


def test_enqueued_parameters_win_and_disturb_nobody(make: Make) -> None:
    study = optuna.create_study(study_name="s", sampler=make(seed=1))
    study.enqueue_trial({"lr": 1e-3, "depth": 3, "act": "tanh"})
    study.enqueue_trial({"depth": 4})
    study.optimize(objective, n_trials=N)
    expected = run(make(seed=1))
    assert study.trials[0].params == {"lr": 1e-3, "depth": 3, "act": "tanh"}
    assert study.trials[1].params == {**expected[1], "depth": 4}
    assert [trial.params for trial in study.trials[2:]] == expected[2:]


def test_changed_ranges_keep_their_column(make: Make) -> None:
    study = optuna.create_study(study_name="s", sampler=make(seed=1))
    study.optimize(lambda trial: trial.suggest_float("x", 0, 1), n_trials=8)
    study.optimize(lambda trial: trial.suggest_float("x", 10, 20), n_trials=8)
    values = [trial.params["x"] for trial in study.trials]
    study = optuna.create_study(study_name="s", sampler=make(seed=1))
    study.optimize(lambda trial: trial.suggest_float("x", 0, 1), n_trials=16)
    one_range = [trial.params["x"] for trial in study.trials]
    assert values[:8] == one_range[:8]
    assert values[8:] == pytest.approx([10 + 10 * x for x in one_range[8:]])


def test_conditional_parameters_have_columns_of_the_sequence() -> None:
    """In order of first appearance, from the first trial on, also in trials that skip some."""
    study = optuna.create_study(sampler=SobolSampler(seed=5))
    study.optimize(conditional, n_trials=64)
    names: list[str] = []
    for trial in study.trials:
        names += [name for name in trial.params if name not in names]
    assert len(names) == 4
    rows = sobol(64, 4, seed=5)
    for trial in study.trials:
        assert trial.params["n_layers"] == 1 + int(3 * rows[trial.number, 0])
        for name, value in trial.params.items():
            if name != "n_layers":
                assert value == rows[trial.number, names.index(name)]


def test_sobol_balances_integers_steps_and_choices_exactly() -> None:
    """At 2^m trials: every value equally often, and every pair of values, too."""
    study = optuna.create_study(sampler=SobolSampler(seed=7))
    study.optimize(
        lambda trial: (
            trial.suggest_int("depth", 1, 4)
            + len(trial.suggest_categorical("act", ["a", "b", "c", "d"]))
            + trial.suggest_float("rate", 0, 0.75, step=0.25)
            + trial.suggest_int("units", 16, 128, step=16)
        ),
        n_trials=64,
    )
    values = {name: [t.params[name] for t in study.trials] for name in study.trials[0].params}
    for name, column in values.items():
        n_values = len(set(column))
        assert n_values == (8 if name == "units" else 4)
        assert set(Counter(column).values()) == {64 // n_values}
    for first, second in itertools.combinations(values.values(), 2):
        pairs = Counter(zip(first, second, strict=True))
        assert len(pairs) == len(set(first)) * len(set(second))
        assert len(set(pairs.values())) == 1


def test_single_valued_parameters_take_no_column() -> None:
    study = optuna.create_study(sampler=SobolSampler(seed=5))
    study.optimize(
        lambda trial: trial.suggest_int("fixed", 3, 3) + trial.suggest_float("x", 0, 1),
        n_trials=4,
    )
    assert [t.params["x"] for t in study.trials] == sobol(4, 1, seed=5)[:, 0].tolist()


def test_first_trial_shifts_the_design(make: Make) -> None:
    study = optuna.create_study(study_name="s", sampler=optuna.samplers.RandomSampler(seed=0))
    study.optimize(objective, n_trials=5)
    study.sampler = make(seed=1, first_trial=5)
    study.optimize(objective, n_trials=N)
    assert [trial.params for trial in study.trials[5:]] == run(make(seed=1))


def test_trials_before_the_design_are_served(make: Make) -> None:
    params = run(make(seed=1, first_trial=N))
    assert len({p["lr"] for p in params}) == N
    assert params == run(make(seed=1, first_trial=N))


def test_retried_trial_keeps_its_row(make: Make) -> None:
    """A worker died after its first suggestion; the trial is repeated under another number."""
    study = optuna.create_study(study_name="s", sampler=make(seed=1))
    study.optimize(objective, n_trials=6)
    expected = run(make(seed=1), 6)
    retry = optuna.create_trial(
        state=TrialState.WAITING,
        params={"lr": expected[2]["lr"]},
        distributions={"lr": SPACE["lr"]},
        system_attrs={"failed_trial": 2, "retry_history": [2]},
    )
    study.add_trial(retry)
    study.optimize(objective, n_trials=1)
    assert study.trials[6].params == expected[2]


def test_multi_objective(make: Make) -> None:
    study = optuna.create_study(
        study_name="s", sampler=make(seed=1), directions=["minimize", "maximize"]
    )
    study.optimize(lambda trial: (objective(trial), 1.0), n_trials=N)
    assert [trial.params for trial in study.trials] == run(make(seed=1))


@pytest.mark.parametrize(
    ("kwargs", "error", "message"),
    [
        ({"seed": -1}, ValueError, "`seed` must be at least 0, but got -1"),
        ({"seed": 0.5}, TypeError, "`seed` must be an integer, but got 0.5"),
        ({"first_trial": -2}, ValueError, "`first_trial` must be at least 0, but got -2"),
    ],
)
def test_bad_arguments(
    make: Make, kwargs: dict[str, Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        make(**kwargs)
