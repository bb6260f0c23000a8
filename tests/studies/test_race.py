from __future__ import annotations

from collections.abc import Iterator
import sys

import numpy as np
from optuna.samplers import GridSampler
from optuna.samplers import TPESampler
import pytest

from studies._errors import UserError
from studies._problems import Settings
from studies._race import named_sampler
from studies._race import Race
from studies._race import run_all
from studies._race import run_one


_MODULE = """
import optuna

DIRECTION = "maximize"

def seed_given(trial, *, seed):
    trial.suggest_float("x", 0, 1)
    return seed

def told_before(trial):
    trial.suggest_float("x", 0, 1)
    finished = optuna.trial.TrialState.COMPLETE
    return len(trial.study.get_trials(deepcopy=False, states=(finished,)))

def level(trial):
    return trial.suggest_int("x", 0, 4)

def troubled(trial):
    x = trial.suggest_float("x", 0, 1)
    if trial.number % 3 == 0:
        raise optuna.TrialPruned
    return float("nan") if trial.number % 3 == 1 else x
"""


@pytest.fixture(scope="module")
def own(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    file = tmp_path_factory.mktemp("race") / "race_objectives.py"
    file.write_text(_MODULE)
    yield str(file)
    sys.modules.pop("race_objectives", None)  # a process may come back to these tests


def test_every_sampler_meets_the_instance_of_the_seed(own: str) -> None:
    race = Race(f"{own}:seed_given", Settings(), n_trials=3)
    runs = list(run_all(race, ["random", "sobol", "tpe"], range(5, 8), workers=1))
    assert len(runs) == 9
    for run in runs:
        assert run.values.tolist() == [run.seed] * 3


@pytest.mark.parametrize("parallel_trials", [1, 4])
def test_results_of_trials_under_way_are_unknown(own: str, parallel_trials: int) -> None:
    race = Race(f"{own}:told_before", Settings(), n_trials=10, parallel_trials=parallel_trials)
    told = run_one(race, "random", 0).values
    assert told.tolist() == [n // parallel_trials * parallel_trials for n in range(10)]


def test_processes_change_nothing() -> None:
    race = Race("conditional", Settings(dims=3), n_trials=12, parallel_trials=2)
    runs = [sorted(run_all(race, ["sobol", "tpe"], range(2), workers=n), key=str) for n in (1, 2)]
    for alone, shared in zip(*runs, strict=True):
        assert (alone.sampler, alone.seed) == (shared.sampler, shared.seed)
        assert alone.values.tolist() == shared.values.tolist()


def test_a_sampler_that_has_seen_all_ends_its_run(own: str) -> None:
    run = run_one(Race(f"{own}:level", Settings(), n_trials=9), "brute-force", 0)
    assert sorted(run.values[:5]) == [0, 1, 2, 3, 4]
    assert np.isnan(run.values[5:]).all()
    assert run.best[-1] == 4


def test_pruned_and_failed_trials_have_no_value(own: str) -> None:
    run = run_one(Race(f"{own}:troubled", Settings(), n_trials=9), "random", 0)
    assert np.isfinite(run.values).tolist() == [False, False, True] * 3
    assert np.isfinite(run.best).tolist() == [False] * 2 + [True] * 7


def test_the_sampler_takes_a_part_of_the_time() -> None:
    race = Race("sphere", Settings(), n_trials=30)
    random, tpe = run_one(race, "random", 0), run_one(race, "tpe", 0)
    assert 0 < random.sampler_s < random.wall_s
    assert random.sampler_s < tpe.sampler_s < tpe.wall_s


def test_a_sampler_is_named_with_its_arguments() -> None:
    grid = named_sampler(
        "grid:search_space={'x': [1, 2], 'y': [3]},seed=4", None, seed=0, n_trials=9
    )
    assert isinstance(grid, GridSampler)
    assert len(grid._all_grids) == 2  # what tells that the dict arrived whole
    same = named_sampler(
        "optuna.samplers:TPESampler:n_ei_candidates=5, multivariate=True",
        None,
        seed=0,
        n_trials=9,
    )
    assert isinstance(same, TPESampler)


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("tpee", "did you mean 'tpe'"),
        ("tpe:n_startup=3", "n_startup_trials"),
        ("tpe:seed=3,seed=4", "given twice"),
        ("tpe:seed='a'", "must be int"),
    ],
)
def test_a_wrong_sampler_is_named_in_one_sentence(text: str, sentence: str) -> None:
    with pytest.raises(UserError, match=sentence) as caught:
        named_sampler(text, None, seed=0, n_trials=9)
    assert "\n" not in str(caught.value)


def test_what_a_sampler_imports_is_not_charged(slow_to_import: str) -> None:
    (run,) = run_all(Race("sphere", Settings(), n_trials=2), [slow_to_import], [0], workers=1)
    assert run.sampler_s <= run.wall_s < 0.35  # of 0.4
