from __future__ import annotations

import math
from typing import get_args
from typing import Literal
from typing import TYPE_CHECKING

from optuna.study import StudyDirection
from optuna.trial import TrialState

from optuna_ext._checks import check_int
from optuna_ext.rungs import bracket_of
from optuna_ext.rungs import score_at
from optuna_ext.rungs import survivors


if TYPE_CHECKING:
    from collections.abc import Sequence

    from optuna.study import Study
    from optuna.trial import FrozenTrial

    from optuna_ext.rungs import Bracket
    from optuna_ext.rungs import Score

Value = Literal["best", "last"]

_NOT_THERE = (TrialState.FAIL, TrialState.WAITING)


class Field:
    """Who competes at a rung, and with what.

    Args:
        brackets: The brackets, of which every trial belongs to one.
        first_step: The step of the first report, 0 or 1.
        min_trials: How many trials nobody is compared with at first.
        value: What of a trial counts.
    """

    def __init__(
        self, brackets: Sequence[Bracket], *, first_step: int, min_trials: int, value: Value
    ) -> None:
        if value not in get_args(Value):
            raise ValueError(f"`value` must be one of {get_args(Value)}, but got {value!r}.")
        self._brackets = tuple(brackets)
        self._first_step = check_int("first_step", first_step, high=1)
        self._min_trials = check_int("min_trials", min_trials)
        self._best_so_far = value == "best"

    def is_cut(self, study: Study, trial: FrozenTrial) -> bool:
        """Return whether a trial that has just reported is to be stopped.

        Args:
            study: The study.
            trial: A running trial.
        """
        bracket = self._bracket_of(trial)
        steps = sorted(step + 1 - self._first_step for step in trial.intermediate_values)
        if not steps or steps[-1] >= bracket.rungs[-1]:
            return False
        rung = bracket.last_cut(steps[-1])
        if rung is None or any(step >= rung for step in steps[:-1]):  # that was decided then
            return False
        scores = {}
        # The trial itself counts as it is now, not as stored, and also if it is taken for dead.
        for other in (*study.get_trials(deepcopy=False), trial):
            is_there = other is trial or other.state not in _NOT_THERE
            if is_there and rung in self._bracket_of(other).rungs:
                score = self._score(study, other, rung)
                if score is not None:
                    scores[other.number] = score
        if math.isnan(scores[trial.number][0]):
            return True
        if len(scores) <= self._min_trials:
            return False
        return trial.number not in survivors(scores, bracket.reduction_factor)

    def _bracket_of(self, trial: FrozenTrial) -> Bracket:
        return self._brackets[bracket_of(trial.number, self._brackets)]

    def _score(self, study: Study, trial: FrozenTrial, rung: int) -> Score | None:
        return score_at(
            trial.intermediate_values,
            rung - 1 + self._first_step,
            best_so_far=self._best_so_far,
            maximize=study.direction == StudyDirection.MAXIMIZE,
        )
