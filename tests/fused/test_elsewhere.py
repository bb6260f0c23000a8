"""Trials that were trained one by one, and from which others go on together."""

from __future__ import annotations

from typing import Any

import optuna
from optuna.trial import BaseTrial
import pytest
import torch

from optuna_ext import CheckpointStore
from optuna_ext import fused
from optuna_ext import PopulationBasedTrainingSampler
from optuna_ext import SuccessiveHalving


class Kept:
    """Trains the toy problem one by one and keeps it in a store."""

    def __init__(self, toy: Any, about: fused.Problem, **without: bool) -> None:
        self.toy, self.about = toy, about
        self.store = CheckpointStore(":memory:")
        self._keeps_order = without.get("generator", True)

    def __call__(self, trial: optuna.Trial) -> float:
        h = self.about.suggest(trial)
        torch.manual_seed(0)
        net = self.toy.model(h)
        optimizer = torch.optim.SGD(net.parameters(), lr=h["lr"], momentum=h["momentum"])
        generator = torch.Generator().manual_seed(0)
        things = {"model": net, "optimizer": optimizer}
        run = self.store.resume(
            trial, **things, **({"generator": generator} if self._keeps_order else {})
        )
        last = run.start + self.about.interval if self.about.interval else self.about.epochs
        value = 0.0
        for epoch in range(run.step + 1, last + 1):  # type: ignore[operator]
            value = self.toy._epoch(net, optimizer, generator, self.about, h["batch_size"])
            trial.report(value, epoch)
            if epoch < last and trial.should_prune():  # type: ignore[operator]
                run.save(epoch)
                raise optuna.TrialPruned
        run.save(last)  # type: ignore[arg-type]
        return value


def given(trial: BaseTrial) -> dict[str, Any]:
    lr = trial.suggest_float("lr", 1e-3, 1.0, log=True)
    return {"units": 5, "lr": lr, "momentum": 0.9, "batch_size": 50}


def population() -> PopulationBasedTrainingSampler:
    first = optuna.samplers.RandomSampler(seed=0)
    return PopulationBasedTrainingSampler(population_size=4, initial_population=first, seed=0)


def test_a_population_goes_on_together(toy: Any) -> None:
    about = toy.problem(suggest=given, interval=2, seed=0)
    theirs, ours = (toy.new_study(sampler=population()) for _ in range(2))
    theirs.optimize(Kept(toy, about), n_trials=16)
    kept = Kept(toy, about)
    ours.optimize(kept, n_trials=8)
    toy.run(8, about, slots=4, study=ours, store=kept.store)
    toy.assert_same(ours, theirs)
    assert ours.trials[8].user_attrs["resumed"] == theirs.trials[8].user_attrs["resumed"]


def test_paused_trials_go_on_together(toy: Any) -> None:
    def new_study() -> optuna.Study:
        base = optuna.samplers.RandomSampler(seed=0)
        halving = SuccessiveHalving(max_resource=8, min_resource=1, base_sampler=base)
        study: optuna.Study = toy.new_study(sampler=halving.sampler, pruner=halving.pruner)
        return study

    about = toy.problem(suggest=given, epochs=8, seed=0)
    theirs, ours = new_study(), new_study()
    theirs.optimize(Kept(toy, about), n_trials=30)
    kept = Kept(toy, about)
    ours.optimize(kept, n_trials=12)
    toy.run(18, about, slots=1, study=ours, store=kept.store)
    toy.assert_same(ours, theirs)
    promoted = [t.user_attrs["parent"] for t in ours.trials[12:] if "parent" in t.user_attrs]
    assert min(promoted) < 12 <= max(promoted)


def child_of(study: optuna.Study, parent: int) -> None:
    study.enqueue_trial({"lr": 0.1}, user_attrs={"parent": parent})


def test_an_objective_may_keep_no_order(toy: Any) -> None:
    about = toy.problem(suggest=given, interval=2, seed=0)
    kept = Kept(toy, about, generator=False)
    study = toy.new_study()
    study.optimize(kept, n_trials=1)
    child_of(study, 0)
    toy.run(1, about, study=study, store=kept.store)
    assert [*study.trials[1].intermediate_values] == [3, 4]
    assert study.trials[1].user_attrs["resumed"] == {"trial": 0, "step": 2}


def test_what_does_not_fit_is_refused(toy: Any) -> None:
    about = toy.problem(suggest=given, interval=2, seed=0)
    kept = Kept(toy, about)
    study = toy.new_study()
    study.optimize(kept, n_trials=1)

    def wider(trial: BaseTrial) -> dict[str, Any]:
        return {**given(trial), "units": 6}

    for other, store in ((about, None), (toy.problem(suggest=wider, interval=2), kept.store)):
        child_of(study, 0)
        with pytest.raises(ValueError, match="or `store` where it was kept"):
            toy.run(1, other, study=study, store=store)
