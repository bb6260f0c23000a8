from __future__ import annotations

from typing import Literal
from typing import TYPE_CHECKING

from optuna.pruners import BasePruner

from optuna_ext.pruners._field import Field
from optuna_ext.rungs import successive_halving


if TYPE_CHECKING:
    from optuna.study import Study
    from optuna.trial import FrozenTrial


class SuccessiveHalvingPruner(BasePruner):
    """Pruner that stops all but the best trials at every rung.

    A trial that reaches a rung is compared with all trials that have reached it before, whether
    they were pruned there or not, and goes on if it belongs to the best
    ``1 / reduction_factor`` of them (ASHA in its stopping variant, Li et al. 2020). Where all
    competitors report a rung before the first of them asks, as in a batch that is trained in
    step, these are exactly the survivors of synchronous successive halving (Jamieson & Talwalkar
    2016).

    The decision follows from the reported values alone. So workers agree without talking, a
    restarted or retried trial continues where it was, and nothing is kept in the pruner. NaN is
    worse than every number and always stops a trial. Failed trials do not compete.

    For objectives that save checkpoints there is something better, which loses no work:
    :class:`~optuna_ext.SuccessiveHalving` pauses trials and promotes the best of them later.

    How often and how early to compare is a trade. Every cut saves epochs, so that a search sees
    more trials, and loses some of those that would have become the best, for good here; so the
    default cuts late and keeps one trial in eight. ``min_resource=1`` sees the most trials and
    is right where one epoch already tells much, but may lose more than half of the best.
    ``python -m studies.compare_pruners`` measures both on learning curves.

    Example:

        .. testcode::

            import optuna
            from optuna_ext import SuccessiveHalvingPruner


            def objective(trial):
                x = trial.suggest_float("x", -1, 1)
                for epoch in range(1, 17):
                    trial.report(x**2 + 1 / epoch, epoch)
                    if trial.should_prune():
                        raise optuna.TrialPruned
                return x**2


            pruner = SuccessiveHalvingPruner(max_resource=16)
            study = optuna.create_study(pruner=pruner)
            study.optimize(objective, n_trials=20)

    Args:
        max_resource:
            Steps of a whole training, where nobody is pruned any more.
        min_resource:
            Steps to the first rung, from 1 to ``max_resource``; the others are
            ``reduction_factor`` times as far each. By default ``max_resource / 16``, rounded:
            early enough to save most of the training, and late enough to tell trials apart.
        reduction_factor:
            At every rung one trial in this many goes on; at least 2.
        n_cuts:
            At how many rungs trials are cut, at least 1. Of the trials that would have become
            the best, each cut loses some. By default as many as there are rungs before
            ``max_resource``; without ``min_resource``, as many as keep at least one trial in
            nine.
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
        min_resource: int | None = None,
        reduction_factor: int = 2,
        n_cuts: int | None = None,
        first_step: int = 1,
        min_trials: int = 0,
        value: Literal["best", "last"] = "best",
    ) -> None:
        bracket = successive_halving(
            min_resource, max_resource, reduction_factor=reduction_factor, n_cuts=n_cuts, keep=9
        )
        self._field = Field([bracket], first_step=first_step, min_trials=min_trials, value=value)

    def prune(self, study: Study, trial: FrozenTrial) -> bool:
        return self._field.is_cut(study, trial)
