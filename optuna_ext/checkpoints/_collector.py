from __future__ import annotations

from collections.abc import Callable
import datetime
import time
from typing import TYPE_CHECKING

from optuna_ext._logs import get_logger
from optuna_ext.checkpoints._names import is_ours
from optuna_ext.checkpoints._names import start_of
from optuna_ext.checkpoints._retention import best_trials
from optuna_ext.checkpoints._retention import needed


if TYPE_CHECKING:
    from optuna.study import Study

    from optuna_ext.checkpoints._places import Place

_logger = get_logger(__name__)
_EVERY = 60.0  # seconds
_SHARE = 0.01  # of the time that collecting may take


class Collector:
    """Deletes the checkpoints that no trial can use anymore.

    Args:
        place:
            Where they are.
        keep:
            Of how many of the best trials the final checkpoints are kept for good.
        grace:
            For how many seconds a useless one stays.
    """

    def __init__(self, place: Place, *, keep: int, grace: float) -> None:
        self._place = place
        self._keep = keep
        self._grace = grace
        self._next = 0.0

    def collect(self, study: Study) -> list[str]:
        """Do it now; return the names of the files: see ``CheckpointStore.collect``."""
        start = start_of(study)
        old = {
            name
            for name, age in self._place.entries(f"{start}-")
            if age >= self._grace and is_ours(name, start)
        }
        trials = study.get_trials(deepcopy=False)
        now = datetime.datetime.now() - datetime.timedelta(seconds=self._grace)
        best = best_trials(trials, study.directions, self._keep, now=now)
        wanted = needed(trials, best=best, now=now)
        useless = sorted(old - wanted)
        for name in useless:
            if not self._place.is_young(name, self._grace):  # written once more
                self._place.remove(name)
        return useless

    def now_and_then(self, collect: Callable[[], list[str]]) -> None:
        """Call what collects at most once a minute, and for at most 1% of the time."""
        started = time.monotonic()
        if started < self._next:
            return
        try:
            collect()
        except Exception as error:  # noqa: BLE001 - a client's own kind; training goes on
            _logger.warning("Old checkpoints stay in %s: %s", self._place, error)
        now = time.monotonic()
        self._next = now + max(_EVERY, (now - started) / _SHARE)
