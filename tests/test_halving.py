from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures import ThreadPoolExecutor
import math
from multiprocessing.context import ForkServerContext
from pathlib import Path
import pickle
from typing import Any

import optuna
from optuna.samplers import BaseSampler
from optuna.samplers import RandomSampler
from optuna.samplers import TPESampler
from optuna.study import Study
from optuna.trial import FrozenTrial
from optuna.trial import Trial
from optuna.trial import TrialState
import pytest

from optuna_ext import Hyperband
from optuna_ext import open_storage
from optuna_ext import SobolSampler
from optuna_ext import SuccessiveHalving
from optuna_ext.ladder import Ladder
from optuna_ext.rungs import ranking


Pair = SuccessiveHalving | Hyperband


class Training:
    """An objective in a conditional space whose checkpoints are kept in memory."""

    def __init__(self, epochs: int, first_step: int = 1) -> None:
        self.epochs = epochs
        self.first_step = first_step
        self.checkpoints: dict[int, int] = {}
        self.n_trained = 0

    def __call__(self, trial: Trial) -> float:
        x = trial.suggest_float("x", 0, 1)
        if trial.suggest_categorical("kind", ["plain", "shifted"]) == "shifted":
            x += trial.suggest_float("shift", 0, 1)
        parent = trial.user_attrs.get("parent", -1)
        start = self.checkpoints.get(trial.number, self.checkpoints.get(parent, 0))
        for epoch in range(start + 1, self.epochs + 1):
            self.n_trained += 1
            self.checkpoints[trial.number] = epoch
            trial.report(x + 1 / epoch, epoch - 1 + self.first_step)
            if trial.should_prune():
                raise optuna.TrialPruned
        return x


def study_of(pair: Pair, storage: str | optuna.storages.BaseStorage | None = None) -> Study:
    return optuna.create_study(
        study_name="halving", storage=storage, sampler=pair.sampler, pruner=pair.pruner
    )


def check_lineages(study: Study) -> None:
    """Who goes on is unlike anybody else, with its parent's parameters and after its steps."""
    trials = study.get_trials()
    parents = [t.user_attrs["parent"] for t in trials if t.user_attrs.get("parent") is not None]
    assert parents, "nobody was promoted"
    twice = [parent for parent, n in Counter(parents).items() if n > 1]
    assert not twice, [
        (t.number, t.state, t.user_attrs) for t in trials if t.user_attrs.get("parent") in twice
    ]
    for trial in trials:
        number = trial.user_attrs.get("parent")
        if number is not None:
            parent = trials[number]
            assert trial.params == parent.params
            assert trial.distributions == parent.distributions
            assert trial.user_attrs["rung"] == parent.user_attrs["rung"] + 1
            if trial.intermediate_values:
                assert min(trial.intermediate_values) == max(parent.intermediate_values) + 1


@pytest.mark.parametrize("synchronous", [True, False])
def test_fifteen_trials_cost_34_epochs(synchronous: bool) -> None:
    pair = SuccessiveHalving(
        min_resource=2, max_resource=10, reduction_factor=2, synchronous=synchronous, seed=0
    )
    training = Training(10)
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


def test_without_checkpoints_it_costs_58() -> None:
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


def test_a_synchronous_round_promotes_exactly_the_best() -> None:
    pair = SuccessiveHalving(
        min_resource=1,
        max_resource=9,
        reduction_factor=3,
        synchronous=True,
        base_sampler=RandomSampler(seed=0),
    )
    study = study_of(pair)
    study.optimize(Training(9), n_trials=2 * 13)
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


def test_asynchronous_halving_promotes_from_the_top() -> None:
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


def test_nobody_goes_on_before_a_round_is_there() -> None:
    """The first promotions are those of a synchronous round, and no trial is spent on others."""
    pair = SuccessiveHalving(min_resource=1, max_resource=4, base_sampler=RandomSampler(seed=0))
    parents = start_and_pause(study_of(pair), [0.1, 0.5, 0.3, 0.2, 0.0], 9)
    # The best two of four, then the best of these; 7: .0 is the best of five.
    assert parents == [None, None, None, None, 0, 3, 4, None, 7]


def test_hyperband_keeps_to_its_plan() -> None:
    pair = Hyperband(
        max_resource=9, reduction_factor=3, synchronous=True, base_sampler=RandomSampler(seed=1)
    )
    training = Training(9)
    study = study_of(pair)
    study.optimize(training, n_trials=pair.plan.n_trials)
    check_lineages(study)
    assert training.n_trained == pair.plan.cost()
    counts = Counter((t.user_attrs["bracket"], t.user_attrs["rung"]) for t in study.trials)
    assert counts == {(row["bracket"], row["rung"]): row["trials"] for row in pair.plan.rows()}


def test_asynchronous_brackets_get_their_shares() -> None:
    pair = Hyperband(max_resource=9, reduction_factor=3, base_sampler=RandomSampler(seed=1))
    study = study_of(pair)
    study.optimize(Training(9), n_trials=60)
    born = Counter(t.user_attrs["bracket"] for t in study.trials if t.user_attrs["rung"] == 0)
    total = sum(born.values())
    for index, bracket in enumerate(pair.plan.brackets):
        assert abs(born[index] - total * bracket.n_trials / 17) <= 1.5


@pytest.mark.parametrize("first_step", [0, 1])
def test_maximize_and_the_first_step(first_step: int) -> None:
    pair = SuccessiveHalving(max_resource=9, reduction_factor=3, first_step=first_step, seed=0)
    training = Training(9, first_step)
    study = optuna.create_study(direction="maximize", sampler=pair.sampler, pruner=pair.pruner)
    study.optimize(training, n_trials=40)
    check_lineages(study)
    ends = {t.last_step + 1 - first_step for t in study.trials if t.last_step is not None}
    assert ends == {1, 3, 9}
    completed = [t.params["x"] for t in study.trials if t.state == TrialState.COMPLETE]
    assert min(completed) > 0.5  # large values were promoted


def test_restarts_change_nothing() -> None:
    """A new sampler for every trial leads to the same study as one for all of them."""

    def run(*, restart: bool) -> list[tuple[Any, ...]]:
        study = study_of(
            SuccessiveHalving(
                max_resource=9, reduction_factor=3, base_sampler=SobolSampler(seed=0)
            )
        )
        training = Training(9)
        for _ in range(30):
            if restart:
                study.sampler = pickle.loads(pickle.dumps(study.sampler))
            study.optimize(training, n_trials=1)
        return [(t.params, t.user_attrs, t.intermediate_values) for t in study.trials]

    assert run(restart=True) == run(restart=False)


def test_a_failed_promotion_is_tried_again() -> None:
    study = study_of(
        SuccessiveHalving(
            max_resource=9,
            reduction_factor=3,
            n_trials_per_round=3,
            base_sampler=RandomSampler(seed=0),
        )
    )
    training = Training(9)
    study.optimize(training, n_trials=3)
    for n_failures in range(4):
        trial = study.ask()
        parent = trial.user_attrs.get("parent")
        if n_failures == 3:  # it is left alone after three failures in succession
            assert parent is None
        else:
            assert parent == min(range(3), key=lambda n: study.trials[n].intermediate_values[1])
        study.tell(trial, state=TrialState.FAIL)


def test_a_dead_workers_promotion_is_not_lost() -> None:
    study = study_of(
        SuccessiveHalving(
            max_resource=9,
            reduction_factor=3,
            n_trials_per_round=3,
            base_sampler=RandomSampler(seed=0),
        )
    )
    study.optimize(Training(9), n_trials=3)
    orphan = study.ask()
    parent = orphan.user_attrs["parent"]
    assert study.ask().user_attrs.get("parent") is None  # for all we know, the other one lives
    study.tell(orphan, state=TrialState.FAIL)
    assert study.ask().user_attrs["parent"] == parent


def test_a_retried_promotion_is_the_same_again() -> None:
    """Optuna's callback queues a copy of the failed trial with its attributes and reports."""
    study = study_of(
        SuccessiveHalving(
            min_resource=1,
            max_resource=27,
            reduction_factor=3,
            n_trials_per_round=3,
            base_sampler=RandomSampler(seed=0),
        )
    )
    training = Training(27)
    study.optimize(training, n_trials=3)
    stale = study.ask()
    training_params = study.trials[stale.user_attrs["parent"]].params
    training.checkpoints[4] = 2  # what the store finds: the attribute is copied, too
    stale.report(0.5, 2)
    study.tell(stale, state=TrialState.FAIL)
    study.add_trial(
        optuna.trial.create_trial(
            state=TrialState.WAITING,
            user_attrs=study.trials[stale.number].user_attrs,
            system_attrs={
                "failed_trial": stale.number,
                "retry_history": [stale.number],
                "fixed_params": training_params,
            },
            intermediate_values={2: 0.5},
        )
    )
    study.optimize(training, n_trials=1)
    retried = study.trials[-1]
    assert retried.number == 4
    assert retried.user_attrs["parent"] == stale.user_attrs["parent"]
    assert retried.user_attrs["rung"] == 1
    assert (retried.state, retried.last_step) == (TrialState.PRUNED, 3)
    assert retried.params == training_params
    study.optimize(training, n_trials=20)
    check_lineages_but = [
        t.user_attrs.get("parent") for t in study.trials if t.state.is_finished()
    ]
    counts = Counter(check_lineages_but)
    assert counts[retried.user_attrs["parent"]] == 2  # the failed one and its retry, no third


def test_enqueued_parameters_are_born() -> None:
    study = study_of(
        SuccessiveHalving(max_resource=9, reduction_factor=3, base_sampler=RandomSampler(seed=0))
    )
    training = Training(9)
    study.optimize(training, n_trials=3)  # one of them may be promoted
    study.enqueue_trial({"x": 0.0, "kind": "plain"})
    study.optimize(training, n_trials=8)
    enqueued = study.trials[3]
    assert enqueued.params == {"x": 0.0, "kind": "plain"}
    assert enqueued.user_attrs == {"rung": 0}
    assert 3 in [t.user_attrs.get("parent") for t in study.trials]  # it is the best


@pytest.mark.parametrize(("parent", "rung"), [(0, 1), (99, 0)])
def test_the_user_may_choose_a_parent(parent: int, rung: int) -> None:
    study = study_of(
        SuccessiveHalving(max_resource=9, reduction_factor=3, base_sampler=RandomSampler(seed=0))
    )
    training = Training(9)
    study.optimize(training, n_trials=1)
    study.enqueue_trial({"x": 0.0, "kind": "plain"}, user_attrs={"parent": parent})
    study.optimize(training, n_trials=1)
    trial = study.trials[1]
    assert (trial.user_attrs["rung"], trial.params) == (rung, {"x": 0.0, "kind": "plain"})
    assert trial.last_step == [1, 3][rung]


def test_a_parent_that_is_not_there_in_another_process() -> None:
    study = study_of(SuccessiveHalving(max_resource=9, base_sampler=RandomSampler(seed=0)))
    study.enqueue_trial({}, user_attrs={"parent": 99})
    trial = study.ask()
    study.sampler = pickle.loads(pickle.dumps(study.sampler))
    assert 0 <= trial.suggest_float("x", 0, 1) <= 1
    study.tell(trial, 0.0)


def test_nan_is_never_promoted() -> None:
    study = study_of(SuccessiveHalving(max_resource=9, reduction_factor=3, seed=0))

    def objective(trial: Trial) -> float:
        trial.suggest_float("x", 0, 1)
        trial.report(math.nan, 1)
        if trial.should_prune():
            raise optuna.TrialPruned
        raise AssertionError("nobody should get here")

    study.optimize(objective, n_trials=20)
    assert all(t.user_attrs == {"rung": 0} for t in study.trials)


def test_a_range_that_has_changed_since() -> None:
    study = study_of(
        SuccessiveHalving(
            max_resource=9,
            reduction_factor=3,
            n_trials_per_round=3,
            base_sampler=RandomSampler(seed=0),
        )
    )
    for value, x in ((0.0, 0.9), (1.0, 0.2), (1.0, 0.3)):
        study.enqueue_trial({"x": x})
        trial = study.ask()
        trial.suggest_float("x", 0, 1)
        trial.report(value, 1)
        study.tell(trial, state=TrialState.PRUNED)
    trial = study.ask()
    assert trial.user_attrs["parent"] == 0
    assert trial.suggest_float("x", 0, 0.5) == pytest.approx(0.5)
    assert 0 <= trial.suggest_float("new", 0, 1) <= 1


class _Spy(RandomSampler):
    """Keeps what it was shown."""

    def __init__(self) -> None:
        super().__init__(seed=0)
        self.seen: list[list[FrozenTrial]] = []
        self.told: list[int] = []

    def before_trial(self, study: Study, trial: FrozenTrial) -> None:
        self.seen.append(study.get_trials(deepcopy=False))

    def after_trial(self, study: Study, trial: FrozenTrial, *args: Any) -> None:
        self.told.append(trial.number)


def test_the_base_sampler_sees_one_budget_and_no_segments() -> None:
    spy = _Spy()
    study = study_of(SuccessiveHalving(max_resource=9, reduction_factor=3, base_sampler=spy))
    training = Training(9)
    study.optimize(training, n_trials=120)
    born = [t.number for t in study.trials if t.user_attrs.get("parent") is None]
    assert spy.told == born
    assert len(spy.seen) == len(born)
    budgets: list[int] = []
    for seen in spy.seen:
        assert [t.number for t in seen] == list(range(len(seen)))
        complete = [t for t in seen if t.state == TrialState.COMPLETE]
        assert {t.number for t in complete} <= set(born)
        if complete:
            (budget,) = {max(t.intermediate_values) for t in complete}
            budgets.append(budget)
            for t in complete:
                assert t.value == min(t.intermediate_values.values())
                assert t.params == study.trials[t.number].params
    assert budgets == sorted(budgets)
    assert set(budgets) == {1, 3, 9}  # the last with ten whole trainings
    running = {t.number for t in spy.seen[-1] if t.state == TrialState.RUNNING}
    waiting = {t.number for t in spy.seen[-1] if t.state == TrialState.WAITING}
    assert running <= set(born)
    assert waiting.isdisjoint(born)


@pytest.mark.parametrize(
    "base",
    [
        lambda: TPESampler(seed=0, n_startup_trials=5),
        lambda: SobolSampler(seed=0),
        lambda: optuna.samplers.GPSampler(
            seed=0, n_startup_trials=5, warn_independent_sampling=False
        ),
    ],
)
def test_any_base_sampler(base: Callable[[], BaseSampler]) -> None:
    pytest.importorskip("torch")
    study = study_of(SuccessiveHalving(max_resource=9, reduction_factor=3, base_sampler=base()))
    study.optimize(Training(9), n_trials=30)
    check_lineages(study)


def test_the_ladder_is_the_same_read_at_once_or_step_by_step() -> None:
    pair = Hyperband(max_resource=9, reduction_factor=3, base_sampler=RandomSampler(seed=0))
    study = study_of(pair)
    brackets = pair.plan.brackets

    def new() -> Ladder:
        return Ladder(brackets, first_step=1, best_so_far=True, maximize=False)

    ladder = new()
    training = Training(9)
    for i in range(40):
        study.optimize(training, n_trials=1)
        if i % 3 == 0:
            ladder.update(study.get_trials())
            fresh = new()
            fresh.update(study.get_trials())
            assert fresh.climbers.keys() == ladder.climbers.keys()
            for number, bracket in enumerate(brackets):
                for rung in range(len(bracket.rungs)):
                    field = [place[-1] for place in ladder.field(number, rung)]
                    scores = {
                        root: climber.scores[rung]
                        for root, climber in fresh.climbers.items()
                        if climber.bracket == number and len(climber.scores) > rung
                    }
                    assert field == ranking(scores)
            for root, climber in fresh.climbers.items():
                assert climber.reports == ladder.climbers[root].reports
                assert climber.scores == ladder.climbers[root].scores
                assert climber.tip.number == ladder.climbers[root].tip.number


def test_a_slow_worker_takes_up_a_later_trial() -> None:
    """Its trial was created before the parent was, but looks for one only now."""
    pair = SuccessiveHalving(
        max_resource=9,
        reduction_factor=3,
        n_trials_per_round=3,
        base_sampler=RandomSampler(seed=0),
    )
    study = study_of(pair)
    study.sampler = RandomSampler(seed=1)
    slow = study.ask()
    study.sampler = pair.sampler
    training = Training(9)
    study.optimize(training, n_trials=3)
    pair.sampler.before_trial(study, slow._cached_frozen_trial)
    parent = slow.user_attrs["parent"]
    assert parent in (1, 2, 3)
    study.optimize(training, n_trials=1)
    assert study.trials[4].user_attrs.get("parent") is None
    training.checkpoints[0] = 3
    assert slow.suggest_float("x", 0, 1) == study.trials[parent].params["x"]
    if slow.suggest_categorical("kind", ["plain", "shifted"]) == "shifted":
        slow.suggest_float("shift", 0, 1)
    for epoch in (2, 3):
        slow.report(0.0, epoch)
    study.tell(slow, state=TrialState.PRUNED)
    study.optimize(training, n_trials=20)
    check_lineages(study)


def test_a_claim_gives_way_to_one_that_was_there_before() -> None:
    """Another worker claims the same parent between our look and our claim."""
    study = study_of(
        SuccessiveHalving(
            max_resource=9,
            reduction_factor=3,
            n_trials_per_round=3,
            base_sampler=RandomSampler(seed=0),
        )
    )
    study.optimize(Training(9), n_trials=3)
    rival = study.ask()
    parent = rival.user_attrs["parent"]
    rival_id = study._storage.get_trial_id_from_study_id_trial_number(study._study_id, 3)
    storage = study._storage
    storage.set_trial_user_attr(rival_id, "parent", None)  # not yet written

    original = storage.set_trial_user_attr
    claims = []

    def write(trial_id: int, key: str, value: Any) -> None:
        original(trial_id, key, value)
        if key == "parent" and trial_id != rival_id:
            claims.append(value)
            if len(claims) == 1:
                original(rival_id, "parent", parent)

    storage.set_trial_user_attr = write  # type: ignore[method-assign]
    trial = study.ask()
    assert claims == [parent, None]
    assert trial.user_attrs["parent"] is None
    assert trial.user_attrs["rung"] == 0


def _work(url: str, n: int) -> None:
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    pair = SuccessiveHalving(
        min_resource=1, max_resource=8, reduction_factor=2, base_sampler=SobolSampler(seed=0)
    )
    study = optuna.load_study(
        study_name="halving", storage=open_storage(url), sampler=pair.sampler, pruner=pair.pruner
    )

    def objective(trial: Trial) -> float:
        x = trial.suggest_float("x", 0, 1)
        rung = trial.user_attrs["rung"]
        for epoch in range(2**rung // 2 + 1, 9):
            trial.report(x, epoch)
            if trial.should_prune():
                raise optuna.TrialPruned
        return x

    study.optimize(objective, n_trials=n)


@pytest.mark.parametrize("kind", ["sqlite", "journal"])
def test_processes_promote_nobody_twice(
    kind: str, tmp_path: Path, processes: ForkServerContext
) -> None:
    url = f"sqlite:///{tmp_path}/s.db" if kind == "sqlite" else f"journal:{tmp_path}/s.log"
    optuna.create_study(study_name="halving", storage=open_storage(url))
    with ProcessPoolExecutor(3, mp_context=processes) as pool:
        list(pool.map(_work, [url] * 3, [12] * 3))
    study = optuna.load_study(study_name="halving", storage=open_storage(url))
    assert len(study.trials) == 36
    check_lineages(study)


def test_threads_promote_nobody_twice() -> None:
    study = study_of(
        SuccessiveHalving(max_resource=9, reduction_factor=3, base_sampler=RandomSampler(seed=0))
    )
    training = Training(9)
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda _: study.optimize(training, n_trials=20), range(4)))
    check_lineages(study)


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
    cls: type[Pair], arguments: dict[str, Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        cls(**{"max_resource": 9, **arguments})


def test_several_objectives_are_refused_by_a_name_that_the_user_knows() -> None:
    study = optuna.create_study(
        directions=["minimize", "maximize"], sampler=SuccessiveHalving(max_resource=9).sampler
    )
    with pytest.raises(ValueError, match="Successive halving needs a study with one objective"):
        study.ask()
