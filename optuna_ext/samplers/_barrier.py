from __future__ import annotations

import datetime
import statistics
import threading
import time
from typing import TYPE_CHECKING

from optuna_ext._logs import get_logger
from optuna_ext.samplers import _host


if TYPE_CHECKING:
    from collections.abc import Sequence

    from optuna.study import Study
    from optuna.trial import FrozenTrial

_logger = get_logger(__name__)

_FIRST_PAUSE, _LAST_PAUSE = 0.002, 1.0  # seconds
_STALE_CHECK = 2.0  # seconds between two looks at the heartbeats and at the usual duration
_SLOWEST = 10.0  # times the median interval: who takes longer must be dead
_LONGEST = 3600.0  # seconds to wait for a first interval, of whose length nothing is known
_SHORTEST = 60.0  # seconds, so that a hiccup costs nobody an interval


class Asked:
    """Which running trials were asked for by which thread of this process."""

    def __init__(self) -> None:
        self._threads: dict[tuple[int, int, int], int] = {}

    def add(self, study: Study, trial: FrozenTrial) -> None:
        self._threads[_host.trial_key(study, trial)] = threading.get_ident()

    def discard(self, study: Study, trial: FrozenTrial) -> None:
        self._threads.pop(_host.trial_key(study, trial), None)

    def by_this_thread(self, study: Study, trial: FrozenTrial) -> bool:
        return self._threads.get(_host.trial_key(study, trial)) == threading.get_ident()


class Barrier:
    """One trial's wait for others, which ends whatever becomes of them.

    - A trial that fails is not waited for any more; heartbeats, where the storage has them, tell
      which have died.
    - One that runs for much longer than others do is taken for dead.
    - One that this thread has asked for and now, in ``Study.optimize``, cannot run any more was
      interrupted.
    - If this thread has asked for it and is still to tell its value, the wait could not end: that
      is an error.

    Args:
        study: The study.
        trial: Who waits.
        asked: Who asked for what in this process.
        lost_after: Seconds after which a running trial is taken for dead; None to judge by the
            others.

    Attributes:
        lost: Numbers of the running trials that are taken for dead.
    """

    def __init__(
        self, study: Study, trial: FrozenTrial, *, asked: Asked, lost_after: float | None
    ) -> None:
        self._study = study
        self._trial = trial
        self._asked = asked
        self._lost_after = lost_after
        self._start = self._checked = time.monotonic()
        self._pause = _FIRST_PAUSE
        self._limit: float | None = None
        self.lost: set[int] = set()

    def wait(self, running: Sequence[FrozenTrial]) -> None:
        """Let some time pass, or find out that there is no use.

        Args:
            running: Those that are waited for, at least one.

        Raises:
            RuntimeError: If they wait for this thread.
        """
        own = [t for t in running if self._asked.by_this_thread(self._study, t)]
        if own and _host.is_optimizing(self._study):
            self._give_up(own, "it was interrupted")
            return
        if len(own) == len(running):
            numbers = ", ".join(str(t.number) for t in own)
            raise RuntimeError(
                f"Trial {self._trial.number} needs the values of the trials before it, but this "
                f"thread has asked for {numbers} without telling their values: tell each "
                "generation before asking for the next, or use `synchronous=False`."
            )
        if self._limit is None:
            self._limit = self._longest()
        limit = self._limit
        late = [t for t in running if self._age(t) > limit]
        if late:
            self._give_up(late, f"it has been running for more than {limit:.0f} s")
            return
        time.sleep(self._pause)
        self._pause = min(1.5 * self._pause, _LAST_PAUSE)
        if time.monotonic() - self._checked > _STALE_CHECK:
            _host.fail_stale_trials(self._study)
            self._limit = self._longest()
            self._checked = time.monotonic()

    def _give_up(self, trials: Sequence[FrozenTrial], reason: str) -> None:
        for trial in trials:
            _logger.warning(
                f"Trial {self._trial.number} does not wait for trial {trial.number}: {reason}."
            )
        self.lost.update(trial.number for trial in trials)

    def _longest(self) -> float:
        """Return for how many seconds a trial may run."""
        if self._lost_after is not None:
            return self._lost_after
        trials = _host.all_trials(self._study)
        known = [t.duration.total_seconds() for t in trials if t.duration is not None]
        return max(_SHORTEST, _SLOWEST * statistics.median(known)) if known else _LONGEST

    def _age(self, trial: FrozenTrial) -> float:
        """Return since when a trial is running, but at least how long we have waited for it.

        The start is by the clock of the trial's own machine.
        """
        waited = time.monotonic() - self._start
        if trial.datetime_start is None:
            return waited
        return max((datetime.datetime.now() - trial.datetime_start).total_seconds(), waited)
