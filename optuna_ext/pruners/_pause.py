from __future__ import annotations

from typing import TYPE_CHECKING

from optuna.pruners import BasePruner

from optuna_ext.ladder import BRACKET
from optuna_ext.ladder import count
from optuna_ext.ladder import RUNG


if TYPE_CHECKING:
    from collections.abc import Sequence

    from optuna.study import Study
    from optuna.trial import FrozenTrial

    from optuna_ext.rungs import Bracket


class PausePruner(BasePruner):
    """Pruner of :class:`~optuna_ext.SuccessiveHalving` and :class:`~optuna_ext.Hyperband`.

    Every trial is to reach one rung, which its sampler has written down, and is paused there;
    one that has reached the last rung is never stopped.

    Args:
        brackets:
            The brackets.
        first_step:
            The step of an objective's first report, 0 or 1.
    """

    def __init__(self, brackets: Sequence[Bracket], *, first_step: int) -> None:
        self._brackets = tuple(brackets)
        self._first_step = first_step

    def prune(self, study: Study, trial: FrozenTrial) -> bool:
        del study
        if trial.last_step is None:
            return False
        bracket = min(count(trial, BRACKET), len(self._brackets) - 1)
        rungs = self._brackets[bracket].rungs
        rung = min(count(trial, RUNG), len(rungs) - 1)
        return rungs[rung] <= trial.last_step + 1 - self._first_step < rungs[-1]
