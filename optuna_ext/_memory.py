"""What a storage knows of a study without asking the database."""

from __future__ import annotations

from collections.abc import Container
from dataclasses import dataclass
from dataclasses import field
from datetime import datetime
from typing import Any

from optuna.distributions import BaseDistribution
from optuna.distributions import distribution_to_json
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial
from optuna.trial import TrialState


@dataclass
class StudyMemory:
    """What is known of a study: all of its trials, in order of their numbers."""

    id: int
    name: str
    directions: list[StudyDirection]
    user_attrs: dict[str, Any] = field(default_factory=dict)
    system_attrs: dict[str, Any] = field(default_factory=dict)
    trials: list[FrozenTrial] = field(default_factory=list)
    waiting: set[int] = field(default_factory=set)  # numbers
    foreign: set[int] = field(default_factory=set)  # ids of unfinished trials of other processes
    reserved: list[int] = field(default_factory=list)  # ids of trials not asked for yet
    distributions: dict[str, tuple[BaseDistribution, str]] = field(default_factory=dict)
    best: FrozenTrial | None = None
    version: int = 0  # counts changes of trials
    found: dict[tuple[TrialState, ...], tuple[int, list[FrozenTrial]]] = field(
        default_factory=dict
    )
    last_id: int = -1
    read_at: float = -float("inf")

    def keep_best(self, trial: FrozenTrial) -> None:
        """Compare a trial with the best one so far; of equals, that stays."""
        if trial.state != TrialState.COMPLETE or len(self.directions) > 1 or trial.value is None:
            return
        maximize = self.directions[0] == StudyDirection.MAXIMIZE
        best = None if self.best is None else self.best.value
        if best is None or (trial.value > best if maximize else trial.value < best):
            self.best = trial

    def select(self, states: Container[TrialState] | None) -> list[FrozenTrial]:
        """Return trials by state; pruners ask again and again before anything changes."""
        if states is None:
            return [*self.trials]
        if states == (TrialState.WAITING,):  # asked before every trial
            return [self.trials[number] for number in sorted(self.waiting)]
        key = tuple(state for state in TrialState if state in states)
        version, trials = self.found.get(key, (-1, []))
        if version != self.version:
            trials = [trial for trial in self.trials if trial.state in key]
            self.found[key] = (self.version, trials)
        return [*trials]

    def put(self, trial: FrozenTrial, *, own: bool) -> None:
        """Take over a trial from the database; ``own`` says that nobody else will change it."""
        trial_id = trial._trial_id
        self.last_id = max(self.last_id, trial_id)
        if trial.number == len(self.trials):  # they come in order, and none is missing
            self.trials.append(trial)
        if own or trial.state.is_finished():
            self.foreign.discard(trial_id)
        else:
            self.foreign.add(trial_id)
        for name, distribution in trial.distributions.items():
            if name not in self.distributions:
                self.distributions[name] = (distribution, distribution_to_json(distribution))
        self.replace(trial)

    def replace(self, trial: FrozenTrial) -> None:
        """Put a changed trial in the place of what it was."""
        self.version += 1
        self.trials[trial.number] = trial
        if trial.state == TrialState.WAITING:
            self.waiting.add(trial.number)
        else:
            self.waiting.discard(trial.number)
        self.keep_best(trial)

    def find_best(self) -> None:
        """Compare all trials again, because one that had ended has changed."""
        self.best = None
        for trial in self.trials:
            self.keep_best(trial)


def running_trial(trial_id: int, number: int, start: datetime | None) -> FrozenTrial:
    """Make a trial of which nothing is known but its start."""
    return FrozenTrial(
        number=number,
        state=TrialState.RUNNING,
        value=None,
        datetime_start=start,
        datetime_complete=None,
        params={},
        distributions={},
        user_attrs={},
        system_attrs={},
        intermediate_values={},
        trial_id=trial_id,
    )
