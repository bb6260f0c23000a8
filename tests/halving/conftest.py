from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any

import optuna
from optuna.samplers import RandomSampler
from optuna.storages import BaseStorage
from optuna.study import Study
from optuna.trial import Trial
import pytest

from optuna_ext import Hyperband
from optuna_ext import SuccessiveHalving


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


@pytest.fixture
def train_for() -> Callable[..., Training]:
    """Make an objective that trains for so many epochs."""
    return Training


@pytest.fixture
def study_of() -> Callable[..., Study]:
    """Make a study of a sampler and a pruner that belong together, in memory or in a storage."""

    def create(pair: SuccessiveHalving | Hyperband, storage: BaseStorage | None = None) -> Study:
        return optuna.create_study(
            study_name="halving",
            storage=storage,
            sampler=pair.sampler,
            pruner=pair.pruner,
            load_if_exists=storage is not None,
        )

    return create


@pytest.fixture
def study_of_nine(study_of: Callable[..., Study]) -> Callable[..., Study]:
    """Make a study whose trials train for nine epochs and are compared after one and three."""

    def create(**arguments: Any) -> Study:
        base_sampler = arguments.pop("base_sampler", RandomSampler(seed=0))
        return study_of(
            SuccessiveHalving(
                max_resource=9, reduction_factor=3, base_sampler=base_sampler, **arguments
            )
        )

    return create


@pytest.fixture
def check_lineages() -> Callable[[Study], None]:
    """Check that who goes on does so alone, with its parent's parameters and after its steps."""

    def check(study: Study) -> None:
        trials = study.get_trials()
        parents = [t.user_attrs.get("parent") for t in trials]
        counts = Counter(parent for parent in parents if parent is not None)
        assert counts, "nobody was promoted"
        twice = [parent for parent, n in counts.items() if n > 1]
        assert not twice, [
            (t.number, t.state, t.user_attrs)
            for t in trials
            if t.user_attrs.get("parent") in twice
        ]
        for trial, number in zip(trials, parents, strict=True):
            if number is not None:
                parent = trials[number]
                assert trial.params == parent.params
                assert trial.distributions == parent.distributions
                assert trial.user_attrs["rung"] == parent.user_attrs["rung"] + 1
                if trial.intermediate_values:
                    assert min(trial.intermediate_values) == max(parent.intermediate_values) + 1

    return check
