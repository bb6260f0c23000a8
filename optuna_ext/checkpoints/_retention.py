"""Which checkpoints can still be of use, told from the trials alone."""

from __future__ import annotations

from collections.abc import Container
from collections.abc import Iterable
from collections.abc import Sequence
import datetime
import heapq
import math
from typing import TYPE_CHECKING

from optuna.study import StudyDirection
from optuna.trial import TrialState

from optuna_ext.checkpoints._candidates import is_member
from optuna_ext.ladder import RUNG
from optuna_ext.lineage import Checkpoint
from optuna_ext.lineage import parent_of
from optuna_ext.lineage import resumed_from


if TYPE_CHECKING:
    from optuna.trial import FrozenTrial

_PER_MEMBER = 2  # a synchronous population's members are at most one generation apart


def needed(trials: Sequence[FrozenTrial], *, best: set[int], now: datetime.datetime) -> set[str]:
    """Return the artifacts that a trial may still want to read.

    These are, newest first where there are two,

    * both checkpoints of a trial that is running or waiting, for its retry after a crash;
    * both of its parent, until it has one of its own;
    * the newest of a paused trial that no other one has gone on from and finished: one that was
      pruned at the rung that its sampler had written down for it;
    * the newest of a failed trial that was not tried again yet, or its parent's;
    * the newest of the two last sound trials of every member of a population;
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
    retried = {n for trial in trials for n in trial.system_attrs.get("retry_history", ())}
    settled: set[int | None] = set()
    awaited: set[int | None] = set()
    newest: set[int] = best | _last_of_members(trials, now)
    for trial in trials:
        resumed = resumed_from(trial)
        origins = {parent_of(trial), None if resumed is None else resumed[0]}
        may_be_retried = trial.state == TrialState.FAIL and trial.number not in retried
        if may_be_retried:
            newest.add(trial.number)
        if _is_open(trial, now) or (may_be_retried and not is_member(trial)):
            if Checkpoint.of(trial) is None:
                awaited |= origins
        elif trial.state != TrialState.FAIL:
            settled |= origins
    artifacts: set[str] = set()
    for trial in trials:
        checkpoint = Checkpoint.of(trial)
        if checkpoint is None:
            continue
        if _is_open(trial, now) or trial.number in awaited:
            artifacts |= {found.artifact for found in (checkpoint, checkpoint.previous) if found}
        elif trial.number in newest or _is_paused(trial, settled):
            artifacts.add(checkpoint.artifact)
    return artifacts


def best_trials(
    trials: Iterable[FrozenTrial],
    directions: Sequence[StudyDirection],
    n: int,
    *,
    now: datetime.datetime,
) -> set[int]:
    """Return the numbers of the ``n`` best trials that have a checkpoint.

    With several objectives, those that no other one beats in all of them.

    Args:
        trials:
            All trials of the study.
        directions:
            Those of the study.
        n:
            How many, with one objective.
        now:
            As for :func:`needed`: a newer trial takes nobody's place.
    """
    signs = [-1 if direction == StudyDirection.MAXIMIZE else 1 for direction in directions]
    losses = {
        trial.number: tuple(s * value for s, value in zip(signs, trial.values, strict=True))
        for trial in trials
        if trial.state == TrialState.COMPLETE and not _is_open(trial, now) and Checkpoint.of(trial)
    }
    if len(signs) == 1:
        return {*heapq.nsmallest(n, losses, key=losses.__getitem__)}
    front: dict[int, tuple[float, ...]] = {}
    for number in sorted(losses, key=losses.__getitem__):  # who is beaten comes after who beats
        if not any(_beats(other, losses[number]) for other in front.values()):
            front[number] = losses[number]
    return {*front}


def _beats(one: tuple[float, ...], other: tuple[float, ...]) -> bool:
    return one != other and all(a <= b for a, b in zip(one, other, strict=True))


def _is_open(trial: FrozenTrial, now: datetime.datetime) -> bool:
    return trial.datetime_complete is None or trial.datetime_complete > now


def _is_paused(trial: FrozenTrial, settled: Container[int | None]) -> bool:
    """Whether somebody may go on from a trial that was pruned; pruners alone stop for good."""
    is_alone = not is_member(trial) and trial.number not in settled
    return trial.state == TrialState.PRUNED and RUNG in trial.user_attrs and is_alone


def _is_sound(trial: FrozenTrial) -> bool:
    if trial.state == TrialState.FAIL:
        return False
    values = trial.values or [*trial.intermediate_values.values()][-1:]
    return all(math.isfinite(value) for value in values)


def _last_of_members(trials: Sequence[FrozenTrial], now: datetime.datetime) -> set[int]:
    seen: dict[int, int] = {}
    current = set()
    for trial in reversed(trials):
        if not is_member(trial) or _is_open(trial, now) or not _is_sound(trial):
            continue
        member = trial.user_attrs["member"]
        seen[member] = seen.get(member, 0) + 1
        if seen[member] <= _PER_MEMBER:
            current.add(trial.number)
    return current
