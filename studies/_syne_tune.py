"""Syne Tune's asynchronous successive halving as an Optuna pruner, to compare with."""

from __future__ import annotations

import datetime
from importlib.util import find_spec
import logging
from typing import Any

from optuna.pruners import BasePruner
from optuna.study import Study
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial

from studies._errors import UserError


HOW_TO_INSTALL = "pip install 'optuna-ext[syne-tune]'"


def is_installed() -> bool:
    """Return whether there is a Syne Tune to compare with."""
    return find_spec("syne_tune") is not None


class SyneTuneAsha(BasePruner):
    """Syne Tune's ASHA with its own defaults: the first rung after an epoch, one in three goes on.

    The parameters are a sampler's; Syne Tune's scheduler is told each value as it comes in and
    decides whether the trial goes on. It lives in this process and serves one study.

    Args:
        max_resource: Epochs of a whole training.

    Raises:
        UserError: If Syne Tune is not installed.
    """

    def __init__(self, *, max_resource: int) -> None:
        if not is_installed():
            raise UserError(f"syne-tune-asha needs Syne Tune: {HOW_TO_INSTALL}")
        self._max_resource = max_resource
        self._scheduler: Any = None
        self._trials: dict[int, Any] = {}

    def prune(self, study: Study, trial: FrozenTrial) -> bool:
        from syne_tune.optimizer.scheduler import SchedulerDecision

        epoch, value = max(trial.intermediate_values.items())
        scheduler = self._scheduler_of(study)
        result = {"epoch": epoch, "value": value}
        decision = scheduler.on_trial_result(self._trial(trial.number), result)
        return bool(decision == SchedulerDecision.STOP)

    def _scheduler_of(self, study: Study) -> Any:
        if self._scheduler is None:
            from syne_tune.config_space import uniform
            from syne_tune.optimizer.baselines import ASHA

            # It warns about an argument that ASHA itself passes on.
            logging.getLogger("syne_tune").setLevel(logging.ERROR)
            self._scheduler = ASHA(
                config_space={"unused": uniform(0, 1)},
                metric="value",
                time_attr="epoch",
                max_t=self._max_resource,
                do_minimize=study.direction == StudyDirection.MINIMIZE,
                random_seed=0,
            )
        return self._scheduler

    def _trial(self, number: int) -> Any:
        """Return Syne Tune's own trial, which it is told of once."""
        if number not in self._trials:
            from syne_tune.backend.trial_status import Trial

            now = datetime.datetime.now()
            trial = Trial(trial_id=number, config={"unused": 0.5}, creation_time=now)
            self._scheduler.on_trial_add(trial)
            self._trials[number] = trial
        return self._trials[number]
