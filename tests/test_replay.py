"""One model trained by a schedule becomes the one from which the schedule was taken."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import optuna
from optuna.trial import Trial
import pytest
import torch
from torch import nn

from optuna_ext import CheckpointStore
from optuna_ext import replay
from optuna_ext import Schedule
from optuna_ext.lineage import PARENT
from optuna_ext.lineage import schedule


X = torch.linspace(-1, 1, 32).reshape(8, 4)


def objective(
    store: CheckpointStore, *, interval: int, seen: list[tuple[int, float, float]]
) -> Callable[[Any], float]:
    """Train with dropout and shuffling, and record what every step was trained with."""

    def run_trial(trial: Any) -> float:
        lr = trial.suggest_float("lr", 1e-4, 1, log=True)
        momentum = trial.suggest_float("momentum", 0, 0.99)
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(4, 8), nn.Dropout(0.2), nn.Linear(8, 1))
        optimizer = torch.optim.SGD(model.parameters(), lr=lr, momentum=momentum)
        run = store.resume(trial, model=model, optimizer=optimizer)
        for step in range(run.step + 1, run.step + interval + 1):
            optimizer.zero_grad()
            loss = (model(X[torch.randperm(8)]) - 1).square().mean()
            loss.backward()
            group = optimizer.param_groups[0]
            seen.append((step, group["lr"], group["momentum"]))
            optimizer.step()
            trial.report(loss.item(), step)
            if trial.should_prune():
                run.save(step)
                raise optuna.TrialPruned
        run.save(step)
        return float(loss.item())

    return run_trial


def weights(store: CheckpointStore, trial: Any) -> list[torch.Tensor]:
    model = nn.Sequential(nn.Linear(4, 8), nn.Dropout(0.2), nn.Linear(8, 1))
    store.load(trial, model=model)
    return [parameter.detach() for parameter in model.parameters()]


@pytest.mark.parametrize("interval", [1, 3])
def test_replay_ends_with_the_same_weights(interval: int) -> None:
    store = CheckpointStore(":memory:")
    study = optuna.create_study()
    seen: list[tuple[int, float, float]] = []
    run_trial = objective(store, interval=interval, seen=seen)
    lrs = [(0.1, 0.9), (0.05, 0.9), (0.05, 0.9), (0.2, 0.1), (0.01, 0.5)]
    parents = [None, 0, 1, 0, 2]  # trial 3 is no ancestor of trial 4
    for (lr, momentum), parent in zip(lrs, parents, strict=True):
        study.enqueue_trial(
            {"lr": lr, "momentum": momentum},
            user_attrs={} if parent is None else {PARENT: parent},
        )
    study.optimize(run_trial, n_trials=5)
    told = schedule(study, 4)

    # Exact to the step: what the ancestors really trained with, one after the other.
    recorded = [seen[interval * number + i] for number in (0, 1, 2, 4) for i in range(interval)]
    assert [step for step, _, _ in recorded] == [*range(1, 4 * interval + 1)]
    for step, lr, momentum in recorded:
        assert told.at(step) == {"lr": lr, "momentum": momentum}

    seen.clear()
    fresh = replay(told, run_trial)
    assert seen == recorded
    assert fresh.value == study.trials[4].value
    assert list(fresh.reports) == [*range(1, 4 * interval + 1)]
    for one, other in zip(weights(store, fresh), weights(store, study.trials[4]), strict=True):
        assert torch.equal(one, other)


def test_replay_pauses_where_the_hyperparameters_change() -> None:
    """Also for an objective that would train on."""
    seen: list[tuple[int, float, float]] = []
    told = Schedule({1: {"lr": 0.1, "momentum": 0.0}, 4: {"lr": 0.2, "momentum": 0.5}}, last=6)
    trial = replay(told, objective(CheckpointStore(":memory:"), interval=100, seen=seen))
    assert seen == [(step, *told.at(step).values()) for step in range(1, 7)]
    assert trial.value == trial.reports[6]


def test_what_cannot_be_replayed() -> None:
    with pytest.raises(ValueError, match="`schedule` must not be empty"):
        replay(Schedule(), lambda trial: 0.0)
    told = Schedule({1: {"lr": 0.1}, 4: {"lr": 0.2}}, last=6)
    with pytest.raises(ValueError, match="must save between step 1 and step 3, where the hyperp"):
        replay(told, lambda trial: 0.0)

    def goes_too_far(trial: Trial) -> float:
        CheckpointStore(":memory:").resume(trial).save(4)
        return 0.0

    with pytest.raises(ValueError, match="but its last checkpoint is of step 4"):
        replay(told, goes_too_far)
