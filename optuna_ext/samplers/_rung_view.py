from __future__ import annotations

import copy
from heapq import nlargest
import math
from typing import TYPE_CHECKING

from optuna.trial import TrialState

from optuna_ext.rungs import score_at


if TYPE_CHECKING:
    from collections.abc import Sequence

    from optuna.trial import FrozenTrial

    from optuna_ext.ladder import Climber
    from optuna_ext.ladder import Ladder
    from optuna_ext.rungs import Bracket

_ENOUGH = 10  # observations at a rung that are worth a model


def rung_to_learn_from(ladder: Ladder, brackets: Sequence[Bracket]) -> int:
    """Return the highest rung with enough observations, else the lowest one.

    As in BOHB (Falkner et al. 2018, section 4): values of unequal budgets do not compare, and
    those of the highest one tell most about the end.
    """
    rungs = {rung for bracket in brackets for rung in bracket.rungs}
    farthest = nlargest(_ENOUGH, (climber.reached for climber in ladder.climbers.values()))
    if len(farthest) < _ENOUGH:
        return min(rungs)
    return max((rung for rung in rungs if rung <= farthest[-1]), default=min(rungs))


class RungView:
    """The trials of a study as a sampler sees it that learns from one rung.

    Every set of parameters is one trial, that was born with it: complete, with the value that it
    had at the rung, if it has got there; running, if it may still get there; pruned, if its
    objective has given it up. All numbers are as they were, and the trials that went on with
    others' parameters wait, which no sampler minds.

    Args:
        step: The step with which the rung is reached.
        best_so_far: Whether the best value up to there counts, or the last one.
        maximize: Whether large values are good.
    """

    def __init__(self, step: int, *, best_so_far: bool, maximize: bool) -> None:
        self._step = step
        self._best_so_far = best_so_far
        self._maximize = maximize
        self._seen: dict[int, FrozenTrial] = {}  # that cannot change any more

    def trials(self, ladder: Ladder) -> list[FrozenTrial]:
        """Return the view of all trials, in order of their numbers."""
        return [
            self._seen.get(trial.number) or self._look(trial, ladder.climbers.get(trial.number))
            for trial in ladder.trials
        ]

    def _look(self, original: FrozenTrial, climber: Climber | None) -> FrozenTrial:
        if climber is None:
            trial = copy.copy(original)
            trial.state = TrialState.WAITING
            if original.state.is_finished():
                self._seen[trial.number] = trial
            return trial
        if climber.is_lost:
            return original
        score = score_at(
            climber.reports, self._step, best_so_far=self._best_so_far, maximize=self._maximize
        )
        trial = copy.copy(original)
        trial.intermediate_values = {
            step: value for step, value in climber.reports.items() if step <= self._step
        }
        trial.values = climber.tip.values  # if it ended before the rung
        trial.state = TrialState.COMPLETE
        if score is None and climber.tip.state != TrialState.COMPLETE:
            trial.state = TrialState.PRUNED if climber.is_given_up else TrialState.RUNNING
            return trial
        if score is not None and math.isnan(score[0]):  # which a complete trial cannot have
            trial.state = TrialState.PRUNED
            trial.values = None
        elif score is not None:
            trial.value = -score[0] if self._maximize else score[0]
        self._seen[trial.number] = trial
        return trial
