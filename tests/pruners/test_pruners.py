from __future__ import annotations

from collections.abc import Sequence
import math
import pickle

import numpy as np
import optuna
from optuna.pruners import BasePruner
from optuna.study import StudyDirection
from optuna.trial import Trial
from optuna.trial import TrialState
import pytest

from optuna_ext import HyperbandPruner
from optuna_ext import SuccessiveHalvingPruner
from optuna_ext.rungs import bracket_of
from optuna_ext.rungs import hyperband


NAN = math.nan


def ask(pruner: BasePruner, n: int, *, maximize: bool = False) -> list[Trial]:
    direction = StudyDirection.MAXIMIZE if maximize else StudyDirection.MINIMIZE
    study = optuna.create_study(pruner=pruner, direction=direction)
    return [study.ask() for _ in range(n)]


def run_in_step(trials: Sequence[Trial], curves: np.ndarray, first_step: int = 1) -> np.ndarray:
    """Train a batch in step: all report, then all decide; return how far each of them came."""
    reached = np.zeros(len(trials), int)
    alive = list(range(len(trials)))
    for epoch in range(curves.shape[1]):
        for i in alive:
            trials[i].report(curves[i, epoch], epoch + first_step)
            reached[i] = epoch + 1
        stopped = [i for i in alive if trials[i].should_prune()]
        for i in stopped:
            trials[i].study.tell(trials[i], state=TrialState.PRUNED)
        alive = [i for i in alive if i not in stopped]
    return reached


def halve(curves: np.ndarray, rungs: Sequence[int], factor: int) -> np.ndarray:
    """Synchronous successive halving as in the paper, with the best values so far."""
    reached = np.zeros(len(curves), int)
    field = np.arange(len(curves))
    for rung in rungs:
        reached[field] = rung
        best = curves[field, :rung].min(axis=1)
        field = field[np.argsort(best, kind="stable")[: max(1, len(field) // factor)]]
    return reached


@pytest.mark.parametrize("factor", [2, 3, 4])
@pytest.mark.parametrize("n", [1, 2, 7, 24, 81])
@pytest.mark.parametrize("first_step", [0, 1])
def test_a_batch_in_step_is_halved_exactly(factor: int, n: int, first_step: int) -> None:
    rng = np.random.default_rng(n * factor)
    curves = rng.normal(size=(n, 16)) + rng.normal(size=(n, 1))
    pruner = SuccessiveHalvingPruner(
        min_resource=1, max_resource=16, reduction_factor=factor, first_step=first_step
    )
    reached = run_in_step(ask(pruner, n), curves, first_step)
    rungs = {2: (1, 2, 4, 8, 16), 3: (1, 3, 9, 16), 4: (1, 4, 16)}[factor]
    assert reached.tolist() == halve(curves, rungs, factor).tolist()


def test_maximize_is_the_mirror_image() -> None:
    curves = np.random.default_rng(0).normal(size=(20, 9))
    pruner = SuccessiveHalvingPruner(max_resource=9)
    down = run_in_step(ask(pruner, 20), curves)
    up = run_in_step(ask(pruner, 20, maximize=True), -curves)
    assert down.tolist() == up.tolist()
    assert len(set(down)) > 1


def test_one_after_the_other_is_asynchronous_halving() -> None:
    """Whoever belongs to the best of those so far goes on; the first one always does."""
    study = optuna.create_study(
        pruner=SuccessiveHalvingPruner(min_resource=1, max_resource=4, reduction_factor=2)
    )
    stopped = []
    for value in (5.0, 6.0, 4.0, 4.5, 3.0):
        trial = study.ask()
        trial.report(value, 1)
        stopped.append(trial.should_prune())
        study.tell(trial, value, state=TrialState.COMPLETE)
    # Fields of 1 to 5 keep 1, 1, 1, 2 and 2.
    assert stopped == [False, True, False, False, False]


def test_the_first_trials_are_kept() -> None:
    """Where Optuna's `bootstrap_count` prunes them."""
    pruner = SuccessiveHalvingPruner(min_resource=1, max_resource=9, min_trials=3)
    stopped = []
    for trial, value in zip(ask(pruner, 5), [1.0, 2.0, 3.0, 4.0, 0.5], strict=True):
        trial.report(value, 1)
        stopped.append(trial.should_prune())
    assert stopped == [False, False, False, True, False]


def test_nan_is_the_worst() -> None:
    pruner = SuccessiveHalvingPruner(min_resource=1, max_resource=9, min_trials=5)
    trials = ask(pruner, 3)
    for trial, value in zip(trials, [NAN, 1.0, 2.0], strict=True):
        trial.report(value, 1)
    assert [trial.should_prune() for trial in trials] == [True, False, False]
    pruner = SuccessiveHalvingPruner(min_resource=2, max_resource=9, min_trials=5)
    (trial,) = ask(pruner, 1)
    trial.report(0.0, 1)
    trial.report(NAN, 2)
    assert trial.should_prune()


def test_failed_trials_do_not_compete() -> None:
    pruner = SuccessiveHalvingPruner(min_resource=1, max_resource=9, reduction_factor=2)
    failed, *trials = ask(pruner, 3)
    failed.report(0.0, 1)
    failed.study.tell(failed, state=TrialState.FAIL)
    for trial, value in zip(trials, [1.0, 2.0], strict=True):
        trial.report(value, 1)
    assert [trial.should_prune() for trial in trials] == [False, True]


@pytest.mark.parametrize(("value", "expected"), [("best", [False, True]), ("last", [True, False])])
def test_what_of_a_trial_counts(value: str, expected: list[bool]) -> None:
    pruner = SuccessiveHalvingPruner(
        min_resource=2,
        max_resource=9,
        reduction_factor=2,
        value=value,  # type: ignore[arg-type]
    )
    trials = ask(pruner, 2)
    for step, values in ((1, (0.1, 0.5)), (2, (0.9, 0.4))):
        for trial, v in zip(trials, values, strict=True):
            trial.report(v, step)
    assert [trial.should_prune() for trial in trials] == expected


def test_a_decision_is_made_once_and_the_end_is_never_pruned() -> None:
    pruner = SuccessiveHalvingPruner(min_resource=1, max_resource=3, reduction_factor=3)
    first, second = ask(pruner, 2)
    first.report(1.0, 1)
    assert not first.should_prune()
    second.report(0.0, 1)
    first.report(2.0, 2)
    assert not first.should_prune()  # between rungs, whatever has become of the others
    first.report(2.0, 3)
    assert not first.should_prune()
    (third,) = ask(pruner, 1)
    assert not third.should_prune()  # nothing reported yet


def test_a_retried_trial_stays_where_it_was() -> None:
    """Its reports are copied; a rung that they have passed is not decided again."""
    pruner = SuccessiveHalvingPruner(min_resource=1, max_resource=9, reduction_factor=3)
    study = optuna.create_study(pruner=pruner)
    for value in (0.0, 0.1, 0.2):
        rival = study.ask()
        rival.report(value, 1)
    study.add_trial(
        optuna.trial.create_trial(
            state=TrialState.WAITING,
            system_attrs={"fixed_params": {}},
            intermediate_values={1: 5.0, 2: 5.0},
        )
    )
    retried = study.ask()
    assert retried.number == 3
    assert not retried.should_prune()
    retried.report(5.0, 3)
    assert not retried.should_prune()  # the first one at that rung


def test_sparse_reports() -> None:
    pruner = SuccessiveHalvingPruner(min_resource=1, max_resource=27, reduction_factor=3)
    trials = ask(pruner, 3)
    for trial, value in zip(trials, (1.0, 2.0, 3.0), strict=True):
        trial.report(value, 5)  # past the rungs 1 and 3
    assert [trial.should_prune() for trial in trials] == [False, True, True]


def test_a_trial_that_is_taken_for_dead_still_gets_an_answer() -> None:
    pruner = SuccessiveHalvingPruner(min_resource=1, max_resource=9)
    rival, trial = ask(pruner, 2)
    rival.report(0.0, 1)
    trial.report(1.0, 1)
    trial.study.tell(trial, state=TrialState.FAIL)
    assert trial.should_prune()


def test_steps_that_nobody_expects() -> None:
    rungs = 2, 4, 8
    pruner = SuccessiveHalvingPruner(min_resource=2, max_resource=9)
    rival, good, bad = ask(pruner, 3)
    for rung in rungs:
        rival.report(0.5, rung)
    good.report(0.9, 0)  # before the first one
    assert not good.should_prune()
    good.report(0.4, 2)
    assert not good.should_prune()
    with pytest.warns(UserWarning, match="already reported"):
        good.report(0.9, 2)
    assert not good.should_prune()
    for step in (5, 7, 10, 99):  # past a rung, between rungs, past the last one and the end
        good.report(0.9, step)
        assert not good.should_prune(), step
    bad.report(0.6, 7)  # past two rungs at once
    assert bad.should_prune()


def test_brackets_of_hyperband_meet_at_their_rungs() -> None:
    n, epochs = 40, 9
    curves = np.random.default_rng(1).normal(size=(n, epochs))
    reached = run_in_step(ask(HyperbandPruner(max_resource=epochs, reduction_factor=3), n), curves)
    brackets = hyperband(1, epochs, reduction_factor=3)
    homes = [brackets[bracket_of(number, brackets)] for number in range(n)]
    wanted = np.full(n, epochs)
    for rung in (1, 3):
        field = [i for i in range(n) if rung in homes[i].rungs and wanted[i] == epochs]
        best = sorted(field, key=lambda i: curves[i, :rung].min())
        wanted[best[len(field) // 3 :]] = rung
    assert reached.tolist() == wanted.tolist()
    assert {brackets.index(home) for home in homes} == {0, 1, 2}


@pytest.mark.parametrize(
    "pruner", [SuccessiveHalvingPruner(max_resource=9), HyperbandPruner(max_resource=9)]
)
def test_another_process_decides_alike(pruner: BasePruner) -> None:
    """One instance for everything, or a new one for every question."""
    curves = np.random.default_rng(2).normal(size=(30, 9))
    expected = run_in_step(ask(pruner, 30), curves)

    class Restarted(BasePruner):
        def prune(self, study: optuna.Study, trial: optuna.trial.FrozenTrial) -> bool:
            fresh: BasePruner = pickle.loads(pickle.dumps(pruner))
            return fresh.prune(study, trial)

    assert run_in_step(ask(Restarted(), 30), curves).tolist() == expected.tolist()


def test_samplers_see_all_brackets() -> None:
    seen = []

    class Sampler(optuna.samplers.RandomSampler):
        def before_trial(self, study: optuna.Study, trial: optuna.trial.FrozenTrial) -> None:
            seen.append(len(study.get_trials(deepcopy=False)))

    study = optuna.create_study(sampler=Sampler(), pruner=HyperbandPruner(max_resource=9))
    study.optimize(lambda trial: trial.suggest_float("x", 0, 1), n_trials=5)
    assert seen == [1, 2, 3, 4, 5]


def test_threads() -> None:
    """With workers that come as they like, at least the best of a rung gets through."""

    def objective(trial: Trial) -> float:
        x = trial.suggest_float("x", 0, 1)
        for epoch in range(1, 10):
            trial.report(x, epoch)
            if trial.should_prune():
                raise optuna.TrialPruned
        return x

    study = optuna.create_study(
        sampler=optuna.samplers.RandomSampler(seed=0),
        pruner=SuccessiveHalvingPruner(max_resource=9),
    )
    study.optimize(objective, n_trials=40, n_jobs=4)
    trials = study.get_trials()
    assert {t.state for t in trials} == {TrialState.COMPLETE, TrialState.PRUNED}
    best = min(trials, key=lambda t: t.params["x"])
    assert best.state == TrialState.COMPLETE


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"max_resource": 0}, ValueError, "`max_resource` must be at least 1"),
        ({"min_resource": 10}, ValueError, "`max_resource` must be at least 10"),
        ({"reduction_factor": 1}, ValueError, "`reduction_factor` must be at least 2"),
        ({"first_step": 2}, ValueError, "`first_step` must be at most 1, but got 2."),
        ({"min_trials": -1}, ValueError, "`min_trials` must be at least 0"),
        ({"min_trials": 1.5}, TypeError, "`min_trials` must be an integer"),
        ({"value": "mean"}, ValueError, r"`value` must be one of \('best', 'last'\), but got"),
    ],
)
@pytest.mark.parametrize("cls", [SuccessiveHalvingPruner, HyperbandPruner])
def test_wrong_arguments(
    cls: type[BasePruner], arguments: dict[str, object], error: type[Exception], message: str
) -> None:
    given = {"max_resource": 9, "min_resource": 1, **arguments}
    with pytest.raises(error, match=message):
        cls(**given)
