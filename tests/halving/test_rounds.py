from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
import math
from typing import Any

import optuna
from optuna.samplers import RandomSampler
from optuna.study import Study
from optuna.trial import Trial
from optuna.trial import TrialState
import pytest

from optuna_ext import Hyperband
from optuna_ext import SuccessiveHalving


@pytest.mark.parametrize("synchronous", [True, False])
def test_fifteen_trials_cost_34_epochs(
    synchronous: bool, study_of: Any, train_for: Any, check_lineages: Any
) -> None:
    pair = SuccessiveHalving(
        min_resource=2, max_resource=10, reduction_factor=2, synchronous=synchronous, seed=0
    )
    training = train_for(10)
    study = study_of(pair)
    study.optimize(training, n_trials=pair.plan.n_trials)
    check_lineages(study)
    assert pair.plan.n_trials == 15
    assert training.n_trained == pair.plan.cost() == 34
    assert Counter(t.user_attrs["rung"] for t in study.trials) == {0: 8, 1: 4, 2: 2, 3: 1}
    assert Counter(t.last_step for t in study.trials) == {2: 8, 4: 4, 8: 2, 10: 1}


def test_the_default_halves_four_times() -> None:
    pair = SuccessiveHalving(max_resource=64)
    (bracket,) = pair.plan.brackets
    assert (bracket.rungs, bracket.sizes) == ((4, 8, 16, 32, 64), (16, 8, 4, 2, 1))


def test_without_checkpoints_it_costs_58(study_of: Any) -> None:
    pair = SuccessiveHalving(
        min_resource=2, max_resource=10, reduction_factor=2, synchronous=True, seed=0
    )
    n_trained = 0

    def objective(trial: Trial) -> float:
        nonlocal n_trained
        x = trial.suggest_float("x", 0, 1)
        for epoch in range(1, 11):
            n_trained += 1
            trial.report(x, epoch)
            if trial.should_prune():
                raise optuna.TrialPruned
        return x

    study_of(pair).optimize(objective, n_trials=15)
    assert n_trained == pair.plan.cost(resume=False) == 58


def test_a_synchronous_round_promotes_exactly_the_best(study_of: Any, train_for: Any) -> None:
    pair = SuccessiveHalving(
        min_resource=1,
        max_resource=9,
        reduction_factor=3,
        synchronous=True,
        base_sampler=RandomSampler(seed=0),
    )
    study = study_of(pair)
    study.optimize(train_for(9), n_trials=2 * 13)
    for round_ in (0, 1):
        trials = [t for t in study.trials if t.user_attrs["round"] == round_]
        assert len(trials) == 13
        field = [t for t in trials if t.user_attrs["rung"] == 0]
        for rung, n in ((1, 3), (2, 1)):
            best = sorted(field, key=lambda t: t.intermediate_values[max(t.intermediate_values)])
            field = [t for t in trials if t.user_attrs["rung"] == rung]
            assert {t.user_attrs["parent"] for t in field} == {t.number for t in best[:n]}


def start_and_pause(study: Study, values: Sequence[float], n_trials: int) -> list[int | None]:
    """Train newborns that have constant values on rungs 1, 2, 4; return every trial's parent."""
    newborn = iter(values)
    parents: list[int | None] = []
    for _ in range(n_trials):
        trial = study.ask()
        parent = trial.user_attrs.get("parent")
        parents.append(parent)
        value = (
            next(newborn)
            if parent is None
            else min(study.trials[parent].intermediate_values.values())
        )
        trial.report(value, {0: 1, 1: 2, 2: 4}[trial.user_attrs["rung"]])
        state = TrialState.PRUNED if trial.should_prune() else TrialState.COMPLETE
        study.tell(trial, value if state == TrialState.COMPLETE else None, state=state)
    return parents


def test_asynchronous_halving_promotes_from_the_top(study_of: Any) -> None:
    pair = SuccessiveHalving(
        min_resource=1,
        max_resource=4,
        n_trials_per_round=2,
        base_sampler=RandomSampler(seed=0),
    )
    parents = start_and_pause(study_of(pair), [0.5, 0.1, 0.3, 0.2, 0.0], 9)
    # 0: .5, 1: .1, 2 goes on with 1; 3: .3, 4: .2, 5 goes on with 4; now two are at the second
    # rung, and 6 takes 2 to the top; 7: .0 is the best of five, of whom two are promoted already,
    # but neither of them is: 8 goes on with it.
    assert parents == [None, None, 1, None, None, 4, 2, None, 7]


def test_nobody_goes_on_before_a_round_is_there(study_of: Any) -> None:
    """The first promotions are those of a synchronous round, and no trial is spent on others."""
    pair = SuccessiveHalving(min_resource=1, max_resource=4, base_sampler=RandomSampler(seed=0))
    parents = start_and_pause(study_of(pair), [0.1, 0.5, 0.3, 0.2, 0.0], 9)
    # The best two of four, then the best of these; 7: .0 is the best of five.
    assert parents == [None, None, None, None, 0, 3, 4, None, 7]


def test_asynchronous_brackets_meet_at_their_rungs(study_of: Any, train_for: Any) -> None:
    """Who goes on is one of the best of its rung, where all brackets compete that have it."""
    pair = Hyperband(max_resource=8, base_sampler=RandomSampler(seed=0))
    study = study_of(pair)
    training = train_for(8)
    promoted = []
    for _ in range(150):
        before = study.get_trials()
        study.optimize(training, n_trials=1)
        parent = study.trials[-1].user_attrs.get("parent")
        if parent is not None:
            rung = before[parent].last_step
            assert rung is not None
            field = [t for t in before if t.last_step == rung]
            best = sorted(field, key=lambda t: t.intermediate_values[rung])[: len(field) // 2]
            assert parent in [t.number for t in best]
            promoted.append((rung, before[parent].user_attrs["bracket"]))
    assert set(promoted) == {(1, 0), (2, 0), (2, 1), (4, 0), (4, 1), (4, 2)}


def test_hyperband_keeps_to_its_plan(study_of: Any, train_for: Any, check_lineages: Any) -> None:
    pair = Hyperband(
        max_resource=9, reduction_factor=3, synchronous=True, base_sampler=RandomSampler(seed=1)
    )
    training = train_for(9)
    study = study_of(pair)
    study.optimize(training, n_trials=pair.plan.n_trials)
    check_lineages(study)
    assert training.n_trained == pair.plan.cost()
    counts = Counter((t.user_attrs["bracket"], t.user_attrs["rung"]) for t in study.trials)
    assert counts == {(row["bracket"], row["rung"]): row["trials"] for row in pair.plan.rows()}


def test_asynchronous_brackets_get_their_shares(study_of: Any, train_for: Any) -> None:
    pair = Hyperband(max_resource=9, reduction_factor=3, base_sampler=RandomSampler(seed=1))
    study = study_of(pair)
    study.optimize(train_for(9), n_trials=60)
    born = Counter(t.user_attrs["bracket"] for t in study.trials if t.user_attrs["rung"] == 0)
    total = sum(born.values())
    for index, bracket in enumerate(pair.plan.brackets):
        assert abs(born[index] - total * bracket.n_trials / 17) <= 1.5


@pytest.mark.parametrize("first_step", [0, 1])
def test_maximize_and_the_first_step(first_step: int, train_for: Any, check_lineages: Any) -> None:
    pair = SuccessiveHalving(max_resource=9, reduction_factor=3, first_step=first_step, seed=0)
    training = train_for(9, first_step)
    study = optuna.create_study(direction="maximize", sampler=pair.sampler, pruner=pair.pruner)
    study.optimize(training, n_trials=40)
    check_lineages(study)
    ends = {t.last_step + 1 - first_step for t in study.trials if t.last_step is not None}
    assert ends == {1, 3, 9}
    completed = [t.params["x"] for t in study.trials if t.state == TrialState.COMPLETE]
    assert min(completed) > 0.5  # large values were promoted


def test_who_reports_only_at_the_end_is_not_paused(study_of: Any) -> None:
    pair = SuccessiveHalving(max_resource=9, base_sampler=RandomSampler(seed=0))
    study = study_of(pair)
    for last_step in (9, 12):
        trial = study.ask()
        trial.report(0.5, last_step)
        assert not trial.should_prune()
        study.tell(trial, 0.5)


def test_sparse_reports_skip_rungs(study_of: Any) -> None:
    """Who reports first past two rungs is promoted from the second of them."""
    pair = SuccessiveHalving(
        min_resource=1, max_resource=9, n_trials_per_round=2, base_sampler=RandomSampler(seed=0)
    )
    study = study_of(pair)  # rungs 1, 2, 4, 8, 9
    for value in (0.2, 0.1):
        trial = study.ask()
        trial.report(value, 3)
        assert trial.should_prune()
        study.tell(trial, state=TrialState.PRUNED)
    trial = study.ask()
    assert (trial.user_attrs["parent"], trial.user_attrs["rung"]) == (1, 2)
    trial.report(0.1, 6)
    assert trial.should_prune()


def test_nan_is_never_promoted(study_of: Any) -> None:
    study = study_of(SuccessiveHalving(max_resource=9, reduction_factor=3, seed=0))

    def objective(trial: Trial) -> float:
        trial.suggest_float("x", 0, 1)
        trial.report(math.nan, 1)
        if trial.should_prune():
            raise optuna.TrialPruned
        raise AssertionError("nobody should get here")

    study.optimize(objective, n_trials=20)
    assert all(t.user_attrs == {"rung": 0} for t in study.trials)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"max_resource": 0}, ValueError, "`max_resource` must be at least 1"),
        ({"first_step": -1}, ValueError, "`first_step` must be at least 0"),
        ({"value": "mean"}, ValueError, r"`value` must be one of \('best', 'last'\)"),
        ({"base_sampler": "tpe"}, TypeError, "`base_sampler` must be an Optuna sampler, but got"),
        ({"seed": -1}, ValueError, "`seed` must be at least 0, but got -1."),
    ],
)
@pytest.mark.parametrize("cls", [SuccessiveHalving, Hyperband])
def test_wrong_arguments(
    cls: type[SuccessiveHalving | Hyperband],
    arguments: dict[str, Any],
    error: type[Exception],
    message: str,
) -> None:
    with pytest.raises(error, match=message):
        cls(**{"max_resource": 9, **arguments})


def test_several_objectives_are_refused_by_a_name_that_the_user_knows() -> None:
    study = optuna.create_study(
        directions=["minimize", "maximize"], sampler=SuccessiveHalving(max_resource=9).sampler
    )
    with pytest.raises(ValueError, match="Successive halving needs a study with one objective"):
        study.ask()
