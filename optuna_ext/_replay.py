from __future__ import annotations

from collections.abc import Callable
from collections.abc import Mapping
from typing import Any

import optuna
from optuna.trial import FixedTrial

from optuna_ext.lineage import CHECKPOINT
from optuna_ext.lineage import Checkpoint
from optuna_ext.lineage import RESUMED
from optuna_ext.schedule import Schedule


class ReplayTrial(FixedTrial):
    """A trial of :func:`replay`: it has fixed hyperparameters and pauses when they change.

    Args:
        params:
            The hyperparameters.
        last:
            The last step with them.

    Attributes:
        reports:
            What the objective has reported, by step.
        value:
            What it returned; when it paused, the last report.
    """

    def __init__(self, params: Mapping[str, Any], *, last: int) -> None:
        super().__init__(dict(params))
        self.last = last
        self.reports: dict[int, float] = {}
        self.value: float | None = None

    def report(self, value: float, step: int) -> None:
        """Keep a report."""
        self.reports[step] = value

    def should_prune(self) -> bool:
        """Tell the objective to save and pause when the hyperparameters change."""
        return bool(self.reports) and max(self.reports) >= self.last


def replay(schedule: Schedule, objective: Callable[[Any], float]) -> ReplayTrial:
    """Train one fresh model with the hyperparameters of a schedule, step by step.

    The objective is the one of the study, unchanged. It is called once for every set of
    hyperparameters, with a trial that has them and goes on from the checkpoint of the call before;
    it is told to pause (``trial.should_prune()``) when they change. An objective whose randomness
    depends on nothing but a seed ends with the very weights from which the schedule was taken.

    A schedule that changes at every step is better followed by :meth:`Schedule.drive`.

    Args:
        schedule:
            What to follow, for instance ``optuna_ext.lineage.schedule(study, study.best_trial)``.
        objective:
            Continues and saves through a ``CheckpointStore``.

    Returns:
        The last trial: its ``value``, its ``reports`` of all steps, and its checkpoint, which
        ``store.load(trial, model=model)`` loads.

    Raises:
        ValueError: If the schedule is empty, or the objective does not save exactly where the
            hyperparameters change.

    Example:
        .. code-block:: python

            from optuna_ext import replay
            from optuna_ext.lineage import schedule

            trial = replay(schedule(study, study.best_trial), objective)
            print(trial.value)
    """
    trial: ReplayTrial | None = None
    step = 0
    while step < schedule.last:
        steps = next(steps for steps, _ in schedule if step < steps[-1])
        following = ReplayTrial(schedule.at(step + 1), last=steps[-1])
        if trial is not None:
            following.reports = trial.reports
            following.set_user_attr(CHECKPOINT, trial.user_attrs[CHECKPOINT])
            following.set_user_attr(RESUMED, {"trial": trial.number, "step": step})
        trial = following
        try:
            trial.value = objective(trial)
        except optuna.TrialPruned:
            trial.value = trial.reports[max(trial.reports)]
        saved = Checkpoint.of(trial)
        reached = 0 if saved is None else saved.step
        if not step < reached <= steps[-1]:
            raise ValueError(
                f"`objective` must save between step {step + 1} and step {steps[-1]}, where the "
                f"hyperparameters change, but its last checkpoint is of step {reached}."
            )
        step = reached
    if trial is None:
        raise ValueError("`schedule` must not be empty.")
    return trial
