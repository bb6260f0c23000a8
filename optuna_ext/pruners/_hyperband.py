from __future__ import annotations

from typing import Literal
from typing import TYPE_CHECKING

from optuna.pruners import BasePruner

from optuna_ext.pruners._field import Field
from optuna_ext.rungs import hyperband


if TYPE_CHECKING:
    from optuna.study import Study
    from optuna.trial import FrozenTrial


class HyperbandPruner(BasePruner):
    """Pruner that runs several brackets of successive halving side by side.

    One bracket compares its trials early, another one late, and the last one trains them all to
    the end; so some trials get the time to become good, whatever the learning curves look like
    (Li et al. 2018). The trial's number decides about its bracket, in the same way in every
    process. Samplers are not told: unlike with Optuna's own class, they learn from the trials of
    all brackets.

    Brackets differ in where they begin to compare. At a rung, a trial meets those of all brackets
    that have it, because values at the same step compare whatever came before; so survivors of
    early cuts meet newcomers too, and not only each other. Everything else is as in
    :class:`SuccessiveHalvingPruner`.

    Example:

        .. testcode::

            import optuna
            from optuna_ext import HyperbandPruner


            def objective(trial):
                x = trial.suggest_float("x", -1, 1)
                for epoch in range(1, 10):
                    trial.report(x**2 + 1 / epoch, epoch)
                    if trial.should_prune():
                        raise optuna.TrialPruned
                return x**2


            study = optuna.create_study(pruner=HyperbandPruner(max_resource=9))
            study.optimize(objective, n_trials=20)

    Args:
        max_resource:
            Steps of a whole training, where nobody is pruned any more.
        min_resource:
            Steps to the first rung of the first bracket, from 1 to ``max_resource``.
        reduction_factor:
            At every rung one trial in this many goes on; at least 2. Larger ones, as the 3 or 4
            of Li et al., lose more of the trials that would have become the best.
        first_step:
            The step with which the objective reports its first unit of training: 1 or 0.
        min_trials:
            At each rung, the first ones up to this number go on without comparison.
        value:
            ``"best"`` compares the best values so far, which noise harms less, ``"last"`` the
            last ones.

    Raises:
        ValueError: If an argument is out of range.
        TypeError: If a number is not an integer.
    """

    def __init__(
        self,
        *,
        max_resource: int,
        min_resource: int = 1,
        reduction_factor: int = 2,
        first_step: int = 1,
        min_trials: int = 0,
        value: Literal["best", "last"] = "best",
    ) -> None:
        brackets = hyperband(min_resource, max_resource, reduction_factor=reduction_factor)
        self._field = Field(brackets, first_step=first_step, min_trials=min_trials, value=value)

    def prune(self, study: Study, trial: FrozenTrial) -> bool:
        return self._field.is_cut(study, trial)
