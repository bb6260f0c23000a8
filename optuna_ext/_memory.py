"""What a storage knows of studies without asking the database."""

from __future__ import annotations

from collections.abc import Container
from collections.abc import Sequence
from dataclasses import dataclass
from dataclasses import field
from datetime import datetime
import time
from typing import Any

from optuna.distributions import BaseDistribution
from optuna.distributions import distribution_to_json
from optuna.storages import RDBStorage
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial
from optuna.trial import TrialState

from optuna_ext._rows import Writer


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


class Memory:
    """What is known of the studies of a database; to be used under the writer's lock.

    Args:
        storage: What is asked.
        writer: Writes the trials of this process, and notes those that others have ended.
        interval: Seconds until the work of other processes is seen.

    Attributes:
        own: Ids of the running trials that this process writes.
    """

    def __init__(self, storage: RDBStorage, writer: Writer, *, interval: float) -> None:
        self._storage = storage
        self._writer = writer
        self._interval = interval
        self._studies: dict[int, StudyMemory] = {}
        self._places: dict[int, tuple[int, int]] = {}  # study id and number, by trial id
        self.own: set[int] = set()

    def studies(self) -> list[StudyMemory]:
        """Return the studies of which anything is known."""
        return [*self._studies.values()]

    def study(self, study_id: int) -> StudyMemory:
        """Return what is known of a study, whenever it was read."""
        if study_id not in self._studies:
            study = StudyMemory(
                id=study_id,
                name=self._storage.get_study_name_from_id(study_id),
                directions=self._storage.get_study_directions(study_id),
            )
            self.read(study)
            self._studies[study_id] = study
        return self._studies[study_id]

    def fresh(self, study_id: int) -> StudyMemory:
        """Return a study with what others wrote until an interval ago."""
        study = self.study(study_id)
        if time.monotonic() > study.read_at + self._interval:
            self.read(study)
        return study

    def read(self, study: StudyMemory, created: Sequence[FrozenTrial] = ()) -> None:
        """Take over what other processes have written, and trials just created here."""
        study.read_at = time.monotonic()
        study.user_attrs = self._storage.get_study_user_attrs(study.id)
        study.system_attrs = self._storage.get_study_system_attrs(study.id)
        lost = {id_ for id_ in self._writer.lost if self._places[id_][0] == study.id}
        if lost:
            self._writer.lost -= lost
            self.own -= lost
            study.foreign |= lost
        # Not in BaseStorage: the unfinished trials that are known, and all newer ones.
        found = self._storage._get_trials(study.id, None, study.foreign, study.last_id)
        theirs = [trial for trial in found if trial._trial_id not in self.own]
        for trial in sorted([*theirs, *created], key=lambda trial: trial.number):
            self.put(study, trial)
        if lost:
            study.find_best()

    def put(self, study: StudyMemory, trial: FrozenTrial) -> None:
        """Take over a trial from the database."""
        self._places[trial._trial_id] = (study.id, trial.number)
        study.put(trial, own=trial._trial_id in self.own)

    def place(self, trial_id: int) -> tuple[StudyMemory, int]:
        """Return the study and the number of a trial."""
        if trial_id not in self._places:
            self.study(self._writer.study_of(trial_id))
        study_id, number = self._places[trial_id]
        return self._studies[study_id], number

    def forget(self, study_id: int) -> None:
        """Forget a study that was deleted; its ids may be given away again."""
        self._studies.pop(study_id, None)
        gone = [id_ for id_, (owner, _) in self._places.items() if owner == study_id]
        for trial_id in gone:
            del self._places[trial_id]
        self.own.difference_update(gone)
        self._writer.lost.difference_update(gone)


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
