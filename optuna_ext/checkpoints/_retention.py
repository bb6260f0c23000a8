"""Which checkpoints can still be of use, told from the trials alone."""

from __future__ import annotations

from collections.abc import Iterable
from collections.abc import Sequence
import datetime
import heapq
from typing import TYPE_CHECKING

from optuna.study import StudyDirection
from optuna.trial import TrialState

from optuna_ext.lineage import Checkpoint
from optuna_ext.lineage import parent_of
from optuna_ext.lineage import resumed_from


if TYPE_CHECKING:
    from optuna.study import Study
    from optuna.trial import FrozenTrial

_PER_MEMBER = 2  # a synchronous population's members are at most one generation apart


def needed(trials: Sequence[FrozenTrial], *, best: set[int], now: datetime.datetime) -> set[str]:
    """Return the artifacts that a trial may still want to read.

    These are, newest first where there are two,

    * both checkpoints of a trial that is running or waiting, for its retry after a crash;
    * both of its parent, until it has one of its own;
    * the newest of a paused (pruned) trial that no other one has gone on from and finished;
    * the newest of the two last trials of every member of a population;
    * the newest of the best trials.

    Args:
        trials:
            All trials of the study.
        best:
            Numbers of the best trials.
        now:
            The moment to judge at. What ended later counts as still running: whoever decided
            before that may be about to read.
    """
    settled: set[int | None] = set()
    awaited: set[int | None] = set()
    for trial in trials:
        resumed = resumed_from(trial)
        origins = {parent_of(trial), None if resumed is None else resumed[0]}
        if _is_open(trial, now):
            if Checkpoint.of(trial) is None:
                awaited |= origins
        elif trial.state != TrialState.FAIL:
            settled |= origins
    current = _last_of_members(trials, now)
    artifacts: set[str] = set()
    for trial in trials:
        checkpoint = Checkpoint.of(trial)
        if checkpoint is None:
            continue
        if _is_open(trial, now) or trial.number in awaited:
            artifacts |= {found.artifact for found in (checkpoint, checkpoint.previous) if found}
        elif trial.number in best or trial.number in current:
            artifacts.add(checkpoint.artifact)
        elif trial.state == TrialState.PRUNED and not _is_member(trial):
            artifacts |= set() if trial.number in settled else {checkpoint.artifact}
    return artifacts


def best_trials(study: Study, trials: Iterable[FrozenTrial], n: int) -> set[int]:
    """Return the numbers of the ``n`` best trials that have a checkpoint.

    With several objectives, of the Pareto front.
    """
    if len(study.directions) > 1:
        return {trial.number for trial in study.best_trials}
    sign = -1 if study.directions[0] == StudyDirection.MAXIMIZE else 1
    values = [
        (sign * trial.value, trial.number)
        for trial in trials
        if trial.state == TrialState.COMPLETE and trial.value is not None and Checkpoint.of(trial)
    ]
    return {number for _, number in heapq.nsmallest(n, values)}


def _is_open(trial: FrozenTrial, now: datetime.datetime) -> bool:
    return trial.datetime_complete is None or trial.datetime_complete > now


def _is_member(trial: FrozenTrial) -> bool:
    return isinstance(trial.user_attrs.get("member"), int)


def _last_of_members(trials: Sequence[FrozenTrial], now: datetime.datetime) -> set[int]:
    seen: dict[int, int] = {}
    current = set()
    for trial in reversed(trials):
        if not _is_member(trial) or _is_open(trial, now) or trial.state == TrialState.FAIL:
            continue
        member = trial.user_attrs["member"]
        seen[member] = seen.get(member, 0) + 1
        if seen[member] <= _PER_MEMBER:
            current.add(trial.number)
    return current
