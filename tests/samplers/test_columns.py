from __future__ import annotations

import pickle
from unittest.mock import Mock

import optuna
from optuna.distributions import FloatDistribution
from optuna.trial import TrialState
import pytest

from optuna_ext import SobolSampler
from optuna_ext.samplers import _host
from optuna_ext.samplers._columns import ColumnMap


UNIT = FloatDistribution(0, 1)


def suggest(study: optuna.Study, *names: str) -> optuna.Trial:
    return study.ask({name: UNIT for name in names})


def columns_of(map_: ColumnMap, study: optuna.Study, *names: str) -> list[int]:
    trial = study.ask()
    columns = map_.columns(study, study.trials[trial.number], names)
    return [columns[name] for name in names]


def test_names_follow_in_order_of_first_appearance() -> None:
    study = optuna.create_study()
    study.tell(suggest(study, "a", "b"), 0)
    study.tell(suggest(study, "c", "a"), 0)
    assert columns_of(ColumnMap(), study, "new", "b", "c", "a") == [3, 1, 2, 0]
    assert columns_of(ColumnMap(("z", "c")), study, "new", "b", "c", "a", "z") == [4, 3, 1, 2, 0]


def test_running_trials_count_and_a_cache_changes_nothing() -> None:
    study = optuna.create_study()
    map_ = ColumnMap()
    first = suggest(study, "a")
    second = suggest(study, "a", "b")
    assert columns_of(map_, study, "c") == [2]
    study.tell(second, 0)
    assert columns_of(map_, study, "c", "b") == columns_of(ColumnMap(), study, "c", "b") == [2, 1]
    study.tell(first, state=TrialState.FAIL)
    assert columns_of(map_, study, "b") == columns_of(ColumnMap(), study, "b") == [1]


def test_workers_that_start_together_agree_on_an_unconditional_space() -> None:
    """Whatever the interleaving, the k-th suggestion of every trial is column k."""
    study = optuna.create_study()
    trials = [study.ask() for _ in range(3)]
    maps = [ColumnMap() for _ in trials]
    seen: dict[str, set[int]] = {"a": set(), "b": set(), "c": set()}
    for worker in (1, 1, 0, 2, 1, 0, 2, 2, 0):
        frozen = study.trials[trials[worker].number]
        name = "abc"[len(frozen.params)]
        seen[name].add(maps[worker].columns(study, frozen, (name,))[name])
        trials[worker].suggest_float(name, 0, 1)
    assert seen == {"a": {0}, "b": {1}, "c": {2}}


def test_settled_names_are_not_looked_up_again(monkeypatch: pytest.MonkeyPatch) -> None:
    study = optuna.create_study()
    map_ = ColumnMap()
    study.tell(suggest(study, "a", "b"), 0)
    assert columns_of(map_, study, "a", "b") == [0, 1]
    monkeypatch.setattr(_host, "all_trials", None)
    assert columns_of(map_, study, "b") == [1]


def test_no_trial_gets_a_column_twice() -> None:
    """Though trial 0 brings in its name between the two suggestions of trial 1."""
    study = optuna.create_study(sampler=SobolSampler(seed=0))
    first, second = study.ask(), study.ask()
    second.suggest_float("lr", 0, 1)
    first.suggest_float("units", 0, 1)
    second.suggest_float("units", 0, 1)
    first.suggest_float("lr", 0, 1)
    for trial in (first, second):
        assert trial.params["lr"] != trial.params["units"]
    study.tell(first, 0)
    study.tell(second, 0)
    assert columns_of(ColumnMap(), study, "units", "lr") == [0, 1]


def test_a_trial_that_never_ends_costs_one_look_per_trial(monkeypatch: pytest.MonkeyPatch) -> None:
    study = optuna.create_study()
    suggest(study, "a")  # its worker was killed
    map_ = ColumnMap()
    look = Mock(wraps=_host.all_trials)
    monkeypatch.setattr(_host, "all_trials", look)
    for _ in range(5):
        trial = study.ask()
        for name in ("a", "b", "c"):
            columns = map_.columns(study, study.trials[trial.number], (name,))
            assert columns == {name: "abc".index(name)}
            trial.suggest_float(name, 0, 1)
        study.tell(trial, 0)
    assert look.call_count == 3 + 4  # the first one meets three new names


def test_number_of_parameters_of_the_first_trial() -> None:
    study = optuna.create_study()
    map_ = ColumnMap()
    empty = study.ask()
    assert map_.n_first(study, None) is None
    first = suggest(study, "a", "b")
    assert map_.n_first(study, study.trials[first.number]) is None
    assert map_.n_first(study, None) == 2
    study.tell(empty, 0)
    study.tell(first, 0)
    study.tell(suggest(study, "a", "b", "c"), 0)
    assert map_.n_first(study, None) == ColumnMap().n_first(study, None) == 2


def test_studies_of_one_name_in_two_storages_are_told_apart() -> None:
    map_ = ColumnMap()
    for names in (("a", "b"), ("b", "a")):
        study = optuna.create_study(study_name="same")
        study.tell(suggest(study, *names), 0)
        assert columns_of(map_, study, *names) == [0, 1]


def test_pickle_keeps_what_is_declared() -> None:
    study = optuna.create_study()
    map_ = pickle.loads(pickle.dumps(ColumnMap(("x", "y"))))
    assert columns_of(map_, study, "y", "x", "w") == [1, 0, 2]
