"""Trials that are trained one by one, and others together: each may go on from the others."""

from __future__ import annotations

import math
from typing import Any

import optuna
from optuna.trial import BaseTrial
import pytest
import torch

from optuna_ext import CheckpointStore
from optuna_ext import fused
from optuna_ext import PopulationBasedTrainingSampler
from optuna_ext import replay
from optuna_ext import SuccessiveHalving
from optuna_ext.lineage import Checkpoint
from optuna_ext.lineage import lineage
from optuna_ext.lineage import schedule


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


def halving() -> optuna.Study:
    base = optuna.samplers.RandomSampler(seed=0)
    made = SuccessiveHalving(max_resource=8, min_resource=1, base_sampler=base)
    return optuna.create_study(sampler=made.sampler, pruner=made.pruner)


@pytest.mark.parametrize("first", ["together", "one by one"])
def test_a_population_goes_on(toy: Any, first: str) -> None:
    about = toy.problem(suggest=given, interval=2, seed=0)
    theirs, ours = (toy.new_study(sampler=population()) for _ in range(2))
    theirs.optimize(Kept(toy, about), n_trials=24)
    kept = Kept(toy, about)
    for i in range(3):
        if (first == "together") == (i % 2 == 0):
            toy.run(8, about, slots=4, study=ours, store=kept.store)
        else:
            ours.optimize(kept, n_trials=8)
    toy.assert_same(ours, theirs)
    for one, two in zip(ours.trials, theirs.trials, strict=True):
        assert one.user_attrs.get("resumed") == two.user_attrs.get("resumed")
        assert lineage(ours, one.number) == lineage(theirs, two.number)
        assert schedule(ours, one.number) == schedule(theirs, two.number)
    trained = schedule(ours, ours.best_trial)
    replayed = replay(trained, Kept(toy, toy.problem(suggest=given, epochs=trained.last)))
    values = ours.best_trial.intermediate_values
    assert {step: replayed.reports[step] for step in values} == pytest.approx(values, rel=1e-12)


@pytest.mark.parametrize("first", ["together", "one by one"])
def test_paused_trials_go_on(toy: Any, first: str) -> None:
    about = toy.problem(suggest=given, epochs=8, seed=0)
    theirs, ours = halving(), halving()
    theirs.optimize(Kept(toy, about), n_trials=30)
    kept = Kept(toy, about)
    for i, n in enumerate((12, 10, 8)):
        if (first == "together") == (i % 2 == 0):
            toy.run(n, about, slots=1, study=ours, store=kept.store)
        else:
            ours.optimize(kept, n_trials=n)
    toy.assert_same(ours, theirs)
    for number in range(30):
        assert schedule(ours, number) == schedule(theirs, number)
    promoted = [t.user_attrs["parent"] for t in ours.trials[12:22] if "parent" in t.user_attrs]
    assert min(promoted) < 12 <= max(promoted)


def test_the_best_are_kept_as_torch_has_them(toy: Any) -> None:
    about = toy.problem(seed=0)
    store = CheckpointStore(":memory:", keep=3)
    study = toy.run(20, about, slots=5, store=store)
    toy.run(10, about, slots=5, store=store, study=study)
    ranked = sorted(study.trials, key=lambda trial: float(trial.value))
    kept = [trial.number for trial in study.trials if "checkpoint" in trial.user_attrs]
    assert {trial.number for trial in ranked[:3]} <= {*kept}
    assert len(kept) < 20
    for trial in ranked[:3]:
        h = about.suggest(optuna.trial.FixedTrial(trial.params))
        net = about.model(h)
        optimizer = torch.optim.SGD(net.parameters(), lr=h["lr"], momentum=h["momentum"])
        assert store.load(trial, model=net, optimizer=optimizer) == toy.EPOCHS
        x, y = toy.rows(70, seed=1)
        with torch.no_grad():
            assert toy.losses(net(x), y).mean().item() == pytest.approx(trial.value, rel=1e-12)
        assert optimizer.param_groups[0]["lr"] == h["lr"]
        toy.losses(net(x), y).mean().backward()
        optimizer.step()
        outcome = store.states(trial)["progress"]
        assert outcome["value"] == trial.value
        assert outcome["notes"]["valid_loss"] == trial.user_attrs["valid_loss"]


def test_what_nobody_can_use_is_not_kept(toy: Any) -> None:
    def fail(trial: BaseTrial) -> dict[str, Any]:
        return {**given(trial), "lr": math.nan}

    store = CheckpointStore(":memory:")
    pruner = optuna.pruners.ThresholdPruner(upper=0.0)
    for study in (
        toy.run(4, toy.problem(suggest=fail), store=store),
        toy.run(4, toy.problem(), study=toy.new_study(pruner=pruner), store=store),
    ):
        assert all("checkpoint" not in trial.user_attrs for trial in study.trials)


@pytest.mark.parametrize("folds", [1, 2])
def test_the_best_of_some_epochs_goes_on(toy: Any, folds: int) -> None:
    """A child remembers which epoch of its parent was the best."""
    rows = [toy.rows(120)] * folds, [toy.rows(70, seed=1)] * folds
    settings: dict[str, Any] = {"suggest": given, "train": rows[0], "valid": rows[1], "seed": 0}
    settings["metrics"] = {"gain": lambda outputs, y: -toy.losses(outputs, y)}  # falls from 1 on
    store = CheckpointStore(":memory:")
    study = halving()
    about = toy.problem(epochs=8, best_of=range(1, 9), **settings)
    for _ in range(10):  # calls that know nothing but what is kept
        toy.run(3, about, study=study, store=store)
    complete = study.get_trials(states=[optuna.trial.TrialState.COMPLETE])
    for trial in complete:
        parts = [study.trials[part.trial] for part in lineage(study, trial)]
        curve = {s: v for part in parts for s, v in part.intermediate_values.items()}
        assert trial.value == min(curve.values())
        assert curve[trial.user_attrs["best_epoch"]] == trial.value
        assert len(curve) == 8
    assert any(t.user_attrs["best_epoch"] not in t.intermediate_values for t in complete)


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


def test_a_checkpoint_is_read_once(toy: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    about = toy.problem(suggest=given, interval=2, seed=0)
    kept = Kept(toy, about, generator=False)
    study = toy.new_study()
    study.optimize(kept, n_trials=1)
    child_of(study, 0)
    read, steps = kept.store._read, []

    def count(checkpoint: Checkpoint) -> Any:
        steps.append(checkpoint.step)
        return read(checkpoint)

    monkeypatch.setattr(kept.store, "_read", count)
    toy.run(1, about, study=study, store=kept.store)
    assert steps == [2]


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
