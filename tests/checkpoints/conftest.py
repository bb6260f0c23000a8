"""A training that counts its steps, and where its checkpoints are kept."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import optuna
from optuna.study import Study
from optuna.trial import Trial
import pytest

from optuna_ext.checkpoints import CheckpointStore
from optuna_ext.checkpoints import Run
from optuna_ext.lineage import Checkpoint
from optuna_ext.lineage import PARENT


class Counter:
    """Trains by counting."""

    def __init__(self) -> None:
        self.count = 0

    def state_dict(self) -> dict[str, int]:
        return {"count": self.count}

    def load_state_dict(self, state: dict[str, int]) -> None:
        self.count = state["count"]


class Counting:
    """Trials of which each trains a counter."""

    def counter(self) -> Counter:
        return Counter()

    def resume(self, store: CheckpointStore, trial: Any) -> tuple[Counter, Run]:
        counter = Counter()
        return counter, store.resume(trial, counter=counter)

    def train(self, store: CheckpointStore, trial: Any, *, steps: int = 1) -> Checkpoint:
        counter, run = self.resume(store, trial)
        for step in range(run.step + 1, run.step + steps + 1):
            counter.count += 1
            saved = run.save(step)
        assert isinstance(saved, Checkpoint)
        return saved

    def child_of(self, study: Study, parent: int) -> Trial:
        study.enqueue_trial({}, user_attrs={PARENT: parent})
        return study.ask()

    def newest(self, study: Study, number: int) -> Checkpoint:
        checkpoint = Checkpoint.of(study.trials[number])
        assert checkpoint is not None
        return checkpoint


@pytest.fixture
def counting() -> Counting:
    """Give trials that count."""
    return Counting()


@pytest.fixture
def study() -> Study:
    """Give a study whose name is no file's."""
    return optuna.create_study(study_name="a study/ü")


@pytest.fixture
def store(tmp_path: Path) -> CheckpointStore:
    """Give a store in the test's directory."""
    return CheckpointStore(tmp_path, grace=0)
