from __future__ import annotations

import math
from typing import Any

import numpy as np
import optuna
from optuna.distributions import CategoricalDistribution
from optuna.distributions import FloatDistribution
from optuna.samplers import BaseSampler
from optuna.trial import TrialState
import pytest

from optuna_ext.moves import History
from optuna_ext.samplers._history import HistorySampler
from optuna_ext.samplers._levels import derive_levels
from optuna_ext.samplers._levels import Levels
from optuna_ext.samplers._trial_table import encode
from optuna_ext.samplers._trial_table import is_ordered
from optuna_ext.samplers._trial_table import TrialTable
from optuna_ext.space import UnitSpace


class Recorder(HistorySampler):
    """Keeps the histories it is given; goes where it is told, or to the best row's neighbor."""

    def __init__(
        self,
        *,
        go: float | None = None,
        n_startup_trials: int = 1,
        startup_sampler: BaseSampler | None = None,
        failed: Any = "ignore",
        search_space: Any = None,
        seed: int | None = 0,
    ) -> None:
        super().__init__(
            search_space=search_space,
            seed=seed,
            n_startup_trials=n_startup_trials,
            startup_sampler=startup_sampler,
            failed=failed,
        )
        self.go = go
        self.seen: list[tuple[UnitSpace, History]] = []

    def _next_row(
        self, history: History, space: UnitSpace, number: int, rng: np.random.Generator
    ) -> np.ndarray:
        self.seen.append((space, history))
        return rng.random((space.n_dims,)) if self.go is None else np.full(space.n_dims, self.go)


def study_with(sampler: BaseSampler, **kwargs: Any) -> optuna.Study:
    return optuna.create_study(study_name="s", sampler=sampler, **kwargs)


def test_every_state_is_treated_on_purpose() -> None:
    def history(failed: Any) -> History:
        sampler = Recorder(failed=failed)
        study = study_with(sampler, direction="maximize")
        outcomes: list[tuple[float | None, TrialState]] = [
            (1.0, TrialState.COMPLETE),
            (None, TrialState.FAIL),
            (3.0, TrialState.PRUNED),  # reported
            (None, TrialState.PRUNED),
            (math.inf, TrialState.COMPLETE),
            (math.nan, TrialState.PRUNED),  # reported
        ]
        for value, state in outcomes:
            trial = study.ask()
            trial.suggest_float("x", 0, 1)
            if state == TrialState.COMPLETE:
                study.tell(trial, value)
                continue
            if value is not None:
                trial.report(9.0, 0)
                trial.report(value, 1)
            study.tell(trial, state=state)
        study.ask().suggest_float("x", 0, 1)  # keeps running
        study.enqueue_trial({"x": 0.5})
        study.enqueue_trial({"x": 0.6})
        study.ask()  # the enqueued one runs; nobody asked for x yet
        study.ask().suggest_float("x", 0, 1)
        study.ask().suggest_float("x", 0, 1)
        return sampler.seen[-1][1]

    ignoring = history("ignore")
    assert ignoring.numbers.tolist() == [0, 2, 3, 4, 5]
    assert ignoring.values.tolist() == [-1.0, -3.0, math.inf, -math.inf, math.inf]
    assert ignoring.pending_numbers.tolist() == [6, 7, 8]
    assert not np.isnan(ignoring.pending[[0, 2]]).any()
    worst = history("worst")
    assert worst.numbers.tolist() == [0, 1, 2, 3, 4, 5]
    assert worst.values.tolist() == [-1.0, math.inf, -3.0, math.inf, -math.inf, math.inf]
    assert worst.ranking().tolist() == [4, 2, 0, 1, 3, 5]


def test_nothing_is_remembered() -> None:
    """A sampler that has seen the study grow knows what a new one reads off it."""
    old, new = Recorder(seed=1), Recorder(seed=1)
    study = study_with(old)
    rng = np.random.default_rng(0)
    running: list[optuna.Trial] = []
    for _ in range(200):
        trial = study.ask()
        kind = trial.suggest_categorical("kind", ["a", "b"])
        trial.suggest_float(kind, 0, 1 if rng.random() < 0.9 else 2)
        running.append(trial)
        if len(running) > 5:
            done = running.pop(rng.integers(5))
            fails = rng.random() < 0.1
            study.tell(done, None if fails else 1.0, state=TrialState.FAIL if fails else None)
    study.sampler = new
    for sampler in (old, new):
        study.sampler = sampler
        study.ask().suggest_categorical("kind", ["a", "b"])
    (space, history), (new_space, new_history) = old.seen[-1], new.seen[-1]
    assert list(space.distributions.items()) == list(new_space.distributions.items())
    n = len(history.numbers)
    for field in ("rows", "values", "ties", "numbers"):
        np.testing.assert_array_equal(getattr(history, field), getattr(new_history, field)[:n])


def test_the_space_is_the_union_as_it_was_last() -> None:
    sampler = Recorder()
    study = study_with(sampler)

    def branching(trial: optuna.Trial) -> float:
        if trial.suggest_categorical("kind", ["a", "b"]) == "a":
            return trial.suggest_float("x", 0, 10 if trial.number < 20 else 4)
        trial.suggest_int("constant", 3, 3)
        return trial.suggest_int("y", 1, 9)

    study.optimize(branching, n_trials=30)
    space, history = sampler.seen[-1]
    assert set(space.distributions) == {"kind", "x", "y"}
    assert space.distributions["x"] == FloatDistribution(0, 4)
    for row, number in zip(history.rows, history.numbers, strict=True):
        had = {name for name, u in zip(space.names, row, strict=True) if not math.isnan(u)}
        assert had == set(study.trials[number].params) - {"constant"}
    assert all(t.params["x"] <= 4 for t in study.trials[20:] if "x" in t.params)


def test_columns_are_in_order_of_first_appearance_whoever_ends_first() -> None:
    sampler = Recorder()
    study = study_with(sampler)

    def suggest(name: str) -> optuna.Trial:
        trial = study.ask()
        trial.suggest_float(name, 0, 1)
        return trial

    first = suggest("b")
    for name in "ab":
        study.tell(suggest(name), 1.0)
    for names, ends in (("ab", suggest("a")), ("ba", first)):
        study.tell(ends, 1.0)
        suggest("a")
        space, history = sampler.seen[-1]
        assert space.names == tuple(names)
        assert [study.trials[n].params for n in history.numbers] == [
            {name: u for name, u in zip(names, row, strict=True) if u == u} for row in history.rows
        ]


def test_values_outside_a_changed_range_are_clipped() -> None:
    space = UnitSpace(
        {
            "x": FloatDistribution(0, 1),
            "y": FloatDistribution(0, 1, step=0.25),
            "c": CategoricalDistribution(["a", "b"]),
            "z": Levels([1, 10, 100]),
        }
    )
    row = encode(space, {"x": 5.0, "y": 0.6, "c": "gone", "z": 60})
    assert row[0] == pytest.approx(1.0)
    assert row[1] == 0.5
    assert math.isnan(row[2])
    assert row[3] == pytest.approx(5 / 6)


def test_of_values_at_one_coordinate_the_latest_counts_whoever_ended_first() -> None:
    study = study_with(Recorder())
    for x in (2.0, 3.0):
        study.enqueue_trial({"x": x})
        study.ask().suggest_float("x", 0, 4)
    space = UnitSpace({"x": FloatDistribution(0, 1)})
    table = TrialTable(maximize=False, count_failed=False, tie=lambda trial: 0.0)
    for number in (1, 0):
        study.tell(number, 1.0)
        table.update(study.get_trials())
        (u,) = table.history(space, exclude=-1).rows[0]
        assert table.value(space, "x", u) == 3.0


def test_a_proposal_outside_a_trials_range_goes_where_it_was_meant() -> None:
    study = study_with(Recorder(go=0.75))
    study.ask().suggest_float("x", 0, 100)
    study.tell(0, 1.0)
    assert study.ask().suggest_float("x", 0, 100) == 75.0
    assert study.ask().suggest_float("x", 0, 8) == 6.0


def test_what_nobody_asked_for_comes_from_the_start_up_sampler() -> None:
    expected = study_with(optuna.samplers.RandomSampler(seed=5))
    study = study_with(Recorder(go=0.5, startup_sampler=optuna.samplers.RandomSampler(seed=5)))
    for trials in (expected, study):
        trial = trials.ask()
        trial.suggest_float("x", 0, 1)
        trials.tell(trial, 1.0)
        trials.ask().suggest_float("new", 0, 1)
    assert study.trials[0].params == expected.trials[0].params
    assert study.trials[1].params == expected.trials[1].params


def test_start_up_counts_enqueued_and_running_but_not_failed_trials() -> None:
    sampler = Recorder(n_startup_trials=3)
    study = study_with(sampler)
    study.enqueue_trial({"x": 0.5})
    for state in (TrialState.COMPLETE, TrialState.FAIL, None):
        trial = study.ask()
        trial.suggest_float("x", 0, 1)
        if state is not None:
            study.tell(trial, 1.0 if state == TrialState.COMPLETE else None, state=state)
    study.ask().suggest_float("x", 0, 1)
    assert not sampler.seen  # one enqueued, one running: this is the third
    study.ask().suggest_float("x", 0, 1)
    assert len(sampler.seen) == 1


def test_without_a_usable_trial_start_up_goes_on() -> None:
    sampler = Recorder(n_startup_trials=2)
    study = study_with(sampler)
    for _ in range(6):
        trial = study.ask()
        trial.suggest_float("x", 0, 1)
        study.tell(trial, state=TrialState.FAIL)
    assert not sampler.seen
    assert len({trial.params["x"] for trial in study.trials}) == 6


def test_a_given_space_is_used_exactly() -> None:
    sampler = Recorder(search_space={"x": FloatDistribution(0, 1)})
    study = study_with(sampler)
    for _ in range(3):
        trial = study.ask()
        study.tell(trial, trial.suggest_float("x", 0, 1) + trial.suggest_float("other", 0, 1))
    assert all(space.names == ("x",) for space, _ in sampler.seen)


def test_every_trial_writes_where_it_is_going_as_soon_as_that_is_known() -> None:
    study = study_with(Recorder(go=0.5, n_startup_trials=2))
    study.enqueue_trial({"y": 0.25})
    for _ in range(3):
        trial = study.ask()
        study.tell(trial, trial.suggest_float("x", 0, 2) + trial.suggest_float("y", 0, 1))
    study.enqueue_trial({"y": 0.125})
    study.ask().suggest_float("x", 0, 2)
    plans = [trial.system_attrs.get("optuna_ext:plan") for trial in study.trials]
    x, y = study.trials[1].params.values()
    assert plans == [None, {"x": pytest.approx(x / 2), "y": pytest.approx(y)}] + [
        {"x": 0.5, "y": 0.5},
        {"x": 0.5, "y": 0.125},
    ]
    assert not any(trial.user_attrs for trial in study.trials)


def test_a_row_between_two_values_is_planned_as_the_one_it_stands_for() -> None:
    study = study_with(Recorder(go=0.6))
    for _ in range(2):
        trial = study.ask()
        study.tell(trial, trial.suggest_int("x", 1, 4))
    assert study.trials[-1].params == {"x": 3}
    assert study.trials[-1].system_attrs["optuna_ext:plan"] == {"x": 0.625}


def test_what_runs_is_known_by_its_plan_and_by_what_was_given_to_it() -> None:
    sampler = Recorder(search_space={name: FloatDistribution(0, 1) for name in "xyz"})
    study = study_with(sampler)
    study.tell(study.ask(fixed_distributions=sampler._search_space), 1.0)
    study.enqueue_trial({"x": 0.5, "y": 0.5})
    study.ask()  # asks for nothing yet
    study.enqueue_trial({"x": 0.25, "y": 0.25})
    second = study.ask()
    second.suggest_float("x", 0, 1)
    second.suggest_float("z", 0, 1)
    study.ask().suggest_float("x", 0, 1)
    pending = sampler.seen[-1][1].pending
    np.testing.assert_array_equal(pending[:, :2], [[0.5, 0.5], [0.25, 0.25]])
    assert np.isnan(pending[0, 2])
    assert pending[1, 2] == second.params["z"]


def test_what_runs_has_no_more_than_its_branch() -> None:
    sampler = Recorder(go=0.75)
    study = study_with(sampler)

    def suggest() -> optuna.Trial:
        trial = study.ask()
        if trial.suggest_categorical("kind", ["a", "b"]) == "a":
            trial.suggest_float("x", 0, 1)
        return trial

    for kind in "ab":
        study.enqueue_trial({"kind": kind})
        study.tell(suggest(), 1.0)
    for _ in range(2):
        suggest()
    assert study.trials[2].system_attrs["optuna_ext:plan"] == {"kind": 0.75, "x": 0.75}
    np.testing.assert_array_equal(sampler.seen[-1][1].pending, [[0.75, np.nan]])


def test_a_finite_space_is_used_up_before_anything_repeats() -> None:
    """Start-up points, and where the search leaves them to the start-up sampler."""
    study = study_with(Recorder(go=math.nan, n_startup_trials=8))
    cells = []
    for trial in [study.ask() for _ in range(20)]:
        cells.append((trial.suggest_int("x", 1, 4), trial.suggest_int("y", 1, 4)))
        if len(cells) < 10:
            study.tell(trial, 1.0)
    assert len(set(cells[:16])) == 16


def test_seed_follows_from_the_name_of_the_study() -> None:
    def third(name: str) -> float:
        study = optuna.create_study(study_name=name, sampler=Recorder(seed=None))
        study.optimize(lambda trial: trial.suggest_float("x", 0, 1), n_trials=3)
        value: float = study.trials[-1].params["x"]
        return value

    assert third("a") == third("a") != third("b")


def test_taken_is_what_an_objective_could_not_tell_apart() -> None:
    history = History(
        rows=np.array([[0.25, np.nan], [0.75, 0.5]]),
        values=np.zeros(2),
        ties=np.zeros(2),
        numbers=np.arange(2),
        pending=np.array([[0.75, 0.9], [np.nan, np.nan]]),
        pending_numbers=np.array([2, 3]),
        n_values=(2, None),
        ordered=(False, True),
    )
    assert history.is_taken(np.array([0.25, 0.123]))  # the first branch has no second parameter
    assert history.is_taken(np.array([0.75, 0.5 + 1e-12]))
    assert history.is_taken(np.array([0.75, 0.9]))
    assert not history.is_taken(np.array([0.75, 0.6]))
    np.testing.assert_array_equal(history.inherit(np.array([0.25, np.nan])), [0.25, 0.5])


def test_numbers_as_choices_are_ordered_when_they_rise_or_fall() -> None:
    assert is_ordered(CategoricalDistribution([16, 32, 64]))
    assert is_ordered(CategoricalDistribution([0.5, 0.1]))
    assert not is_ordered(CategoricalDistribution([16, 64, 32]))
    assert not is_ordered(CategoricalDistribution(["a", "b"]))
    assert not is_ordered(CategoricalDistribution([True, False]))
    assert is_ordered(Levels(["small", "large"]))


def test_derived_levels_run_from_end_to_end_on_the_scale() -> None:
    levels = derive_levels(FloatDistribution(1e-4, 1.0, log=True), 5)
    assert isinstance(levels, Levels)
    np.testing.assert_allclose(levels.choices, [1e-4, 1e-3, 1e-2, 1e-1, 1.0])  # type: ignore[arg-type]
    choices = CategoricalDistribution(["a", "b", "c"])
    assert derive_levels(choices, 2) is choices


def test_several_objectives_are_refused_in_every_hook() -> None:
    study = optuna.create_study(directions=["minimize", "maximize"], sampler=Recorder())
    with pytest.raises(ValueError, match="`Recorder` needs a study with one objective"):
        study.ask()
